"""A record as a line of telemetry: its JSON, and what is left out of one that is too long."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from trainmgr.workload.values import label, scalar

MAX_LINE = 64 * 1024  # bytes, line break included
MAX_TEXT = 2_000  # characters of a log message or a reason
SPARED = ("split", "moving", "info", "metrics", "action_space", "groups")  # of a record that is too long, in this order

encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=scalar).encode


def shortened(line: bytes, needed: Collection[str]) -> tuple[bytes, str, str]:
    """A line that is too long without what can be spared, what was left out in words, and its event.

    Never left out are the metrics that are ``needed``. It may be too long all the same: then the words say so.
    """
    record, left_out = json.loads(line), []
    short, event = line, record["event"]
    for part in SPARED:
        if len(short) > MAX_LINE and record.get(part):
            left_out.append(_spare(record, part, len(short) - MAX_LINE, needed))
            short = as_line(record)
    at = f" at step {record['step']}" if "step" in record else ""
    what = f"the record {event}{at} has {len(line):,} bytes, and {MAX_LINE:,} are allowed"
    fits = len(short) <= MAX_LINE
    return short, f"{what}; left out: {', '.join(left_out)}" if fits else f"{what}; it is dropped", event


def _spare(record: dict[str, Any], part: str, excess: int, needed: Collection[str]) -> str:
    """Leave out what comes last in a part of a record, as much as must be. Returns it in words."""
    held = record[part]
    if part == "metrics" and record["event"] == "start":
        for name, described in held.items():
            held[name] = {**described, "description": ""}
        return "descriptions of metrics"
    if part == "action_space":
        for parameter in held:
            parameter["description"] = ""
        return "descriptions of parameters"
    spared, freed = 0, 0
    for name in reversed(list(held)):
        if freed >= excess:
            break
        if part != "metrics" or name not in needed:
            freed += len(as_line({name: held.pop(name)})) - 2  # braces and line break, but for the comma
            spared += 1
    return f"{spared:,} of {spared + len(held):,} entries of {part}"


def as_line(record: Any) -> bytes:
    """A line of the file; lone surrogates are question marks in it."""
    return f"{dump(record)}\n".encode(errors="replace")


def dump(value: Any) -> str:
    """Compact JSON in which NaN and the infinities are the strings of the protocol."""
    try:
        return encode(value)
    except Exception:  # numbers of other libraries raise what they like (torch: RuntimeError)
        return encode(_wire(value))


def _wire(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 1023 else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {label(key): _wire(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_wire(item) for item in value]
    try:
        found = scalar(value)
    except Exception:
        return str(value)[:MAX_TEXT]
    if not isinstance(found, float):
        return found if isinstance(found, (bool, int)) else str(found)[:MAX_TEXT]
    if math.isfinite(found):
        return found
    return "NaN" if math.isnan(found) else "Infinity" if found > 0 else "-Infinity"
