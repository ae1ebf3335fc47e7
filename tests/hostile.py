"""Files of a run in which every text is hostile: made by walking the types, so that a new field is in them, too."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, MaxLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainmgr.base.files import sha256
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import MAX_INT, Whole, plain
from trainmgr.comparison import results
from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import Manifest, render_run_file
from trainmgr.deciding import snapshot
from trainmgr.log import audit

TEXTS = {
    "escapes": "\x1b[2J\x1b]0;title\x07\x1b[35;5mx\x9b31m\x85",
    "closing tag": "[/x]",
    "tags": "[bold]b[/] [link=file:///]l[/link] [@click=x]c :skull:",
    "half a tag": "x [/x",
    "other half": "x] y",
    "backslashes": "\\\\\\",
    "page": "\"'><script>alert(1)</script><img src=x onerror=y> &#x202e; </style>",
    "markdown": "# **b** ![i](javascript:x) [a](javascript:b) `c` | d ~~e~~ <i>f</i> _g_ [h]: i",
    "formula": "=cmd|' /C calc'!A0",
    "hidden": "a\u202eb\u2066c\u200bd\ufeffe\u2028f\u2029g\u3164h\U000e0041i" + "\u0301" * 40,
    "lines": "- a\n\r\tb\x0bc\x00d\x1c# e",
    "long": "x" * 10_000,
}
PLAIN = "a text"
GAUGE = {"name": "gauge", "type": "float", "low": -1.7e308, "high": 1.7e308, "value": 0.0}


NUMBERS = {
    "ordinary": 1.0, "huge": 1.7e308, "negative": -1.7e308, "tiny": 5e-324, "whole": float(MAX_INT), "zero": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Maker:
    """Makes values as JSON has them, with ``text`` for every text and every key, and ``number`` for every number."""

    text: str
    number: float = 1.0

    def made(self, kind: Any, limits: tuple[Any, ...] = ()) -> Any:
        """A value of a type."""
        origin, inner = get_origin(kind), get_args(kind)
        if kind is Any:
            return {self.text: [self.text, self.number]}
        if origin is Annotated:
            return self.made(inner[0], (*limits, *_limits(inner[1:])))
        if origin is Literal:
            return inner[0]
        if origin in (Union, types.UnionType):
            inner = tuple(one for one in inner if one is not type(None))
            return self.made(next((one for one in inner if _is_text(one)), inner[-1]), limits)
        if origin in (list, tuple):
            return [self.made(one) for one in (inner[:1] if origin is list else inner)]
        if origin is dict:
            return {self.made(inner[0]): self.made(inner[1])}
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return self.record(kind)
        if kind is str:
            return self._text(limits)
        return True if kind is bool else self._number(kind, limits)

    def _text(self, limits: tuple[Any, ...]) -> str:
        pattern = next((found for limit in limits if (found := getattr(limit, "pattern", None))), None)
        if pattern is not None:
            bare = self.text.replace("\0", "")
            return next(text for text in (bare, "trial", "") if re.fullmatch(pattern, text))
        return self.text[: next((limit.max_length for limit in limits if isinstance(limit, MaxLen)), None)]

    def _number(self, kind: type[Any], limits: tuple[Any, ...]) -> Any:
        assert kind in (int, float), kind
        low, high = (-MAX_INT, MAX_INT) if kind is int else (-sys.float_info.max, sys.float_info.max)
        for limit in limits:
            if isinstance(limit, Ge | Gt):
                low = limit.ge if isinstance(limit, Ge) else math.nextafter(limit.gt, math.inf)
            elif isinstance(limit, Le):
                high = limit.le
        return kind(min(max(self.number, low), high))

    def record(self, model: type[BaseModel], **fields: Any) -> dict[str, Any]:
        """A record of a model; ``fields`` are what must fit together."""
        if model is Policy:
            return {}
        if model is Parameter:
            name, value = (self.text if self.text.isprintable() else PLAIN)[:64], self.text[:64]
            return {"name": name, "type": "choice", "choices": [value, "other"], "value": value,
                    "group": self.text, "description": self.text}  # fmt: skip
        values = {
            name: self.made(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
            for name, field in model.model_fields.items()
        }
        return values | fields


def _limits(marks: tuple[Any, ...]) -> list[Any]:
    return [part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]


def _is_text(kind: Any) -> bool:
    return kind is str or (get_origin(kind) is Annotated and _is_text(get_args(kind)[0]))


def telemetry(make: Maker) -> bytes:
    """A line for each kind of record, and some that are none."""
    text, number = make.text, make.number
    objective, step = text[:64], make.made(Whole)
    given: dict[str, dict[str, Any]] = {
        "end": {"status": text}, "checkpoint": {"path": text}, "log": {"level": text},
        "start": {"action_space": [make.made(Parameter), GAUGE], "total_steps": step},
        "eval": {"step": step, "metrics": {objective: -number, f"{text}2"[-64:]: number}, "params": {"gauge": number}},
    }  # fmt: skip
    kinds = get_args(protocol.Telemetry)
    lines = []
    for kind in (*kinds[:3], *kinds[1:]):  # two evaluations, for a curve
        (event,) = get_args(kind.model_fields["event"].annotation)
        lines.append(make.record(kind, seq=len(lines), **given.get(event, {})))
        given["eval"]["metrics"] = {objective: number, f"{text}2"[-64:]: -number}
    *rest, last = lines
    warning = {"v": 1, "seq": len(lines) - 1, "t": -number, "event": "log", "level": "warning", "message": text}
    strange = [{"v": 1, "event": text}, {"event": "eval", text: text}, text, [text]]
    every = [*rest, warning, *strange, {**last, "seq": len(lines) + 1}]
    read = [protocol.parse_telemetry(_line(line)) for line in (*rest, last)]
    assert not [line for line in read if isinstance(line, protocol.Unreadable)]
    return b"".join(map(_line, every)) + text.encode(errors="replace").replace(b"\n", b" ") + b"\n"


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _valid(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    return plain(model.model_validate_json(json.dumps(values)))


def run(root: Path, text: str = PLAIN, number: float = 1.0) -> RunPaths:
    """A run directory with a whole log, in which every event occurs."""
    paths, make = RunPaths(root), Maker(text, number)
    root.mkdir(parents=True)
    lines = telemetry(replace(make, text=text[:1000]))  # a line has 64 KiB at the most
    paths.telemetry.write_bytes(lines)
    log = audit.Log(paths.audit)
    begun = _valid(Manifest, make.record(Manifest, id=root.name))
    view = _valid(snapshot.Snapshot, make.record(snapshot.Snapshot))
    digest = sha256(lines)
    given = {"manifest": begun, "telemetry_sha256": digest, "torn": "",
             "snapshot": view, "telemetry_offset": len(lines), "telemetry_length": len(lines)}  # fmt: skip
    last = None
    for kind in get_args(events.Payload):
        fields = {name: value for name, value in given.items() if name in kind.model_fields}
        last = events.PAYLOAD.validate_json(json.dumps(make.record(kind, **fields)))
        log.append(last, number)
    log.close()
    assert isinstance(last, events.RunEnded)
    paths.manifest.write_bytes(render_run_file(begun, plain(last)["closing"]))
    paths.control.write_text(json.dumps(make.record(protocol.Control)))
    paths.stdout.write_text(text, errors="replace")
    paths.stderr.write_text(text, errors="replace")
    return paths


def comparison(text: str = PLAIN, number: float = 1.0) -> results.Results:
    """Results of two managers with three seeds, in which all names are different."""
    one, two = f"{text}1", f"{text}2"
    make = Maker(text, number)
    runs = [
        make.record(results.Run, manager=manager, seed=seed, run=f"{text}{manager}{seed}",
                    failure=text if (manager, seed) == (two, 3) else None,
                    metrics={text: number / seed, "other": 1.0 / seed},
                    curve=[(step, value) for step, value in ((0, number), (MAX_INT, -number))])
        for manager in (one, two) for seed in (1, 2, 3)
    ]  # fmt: skip
    case = make.record(results.Case, managers=[one, two], reference=one, seeds=[1, 2, 3], runs=runs, variants={
        one: {"manager": text, "arguments": [text.replace("\0", "")]}})  # fmt: skip
    machines = [{"processor": text, "cores": 1}]
    whole = make.record(results.Results, cases=[case], machines=machines, metrics=[])
    return results.Results.model_validate_json(json.dumps(whole))
