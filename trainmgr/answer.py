"""What a language model may answer to one snapshot: the JSON schema of it, and how its text is read. Pure.

The schema is made from the action space of this moment, so that an endpoint which keeps to it cannot name what is not
allowed now. Nothing rests on that: the text is read by us, and the guard judges it like any other answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from pydantic import ValidationError

from trainmgr.proposal import Diagnosis, Proposal
from trainmgr.protocol import explain
from trainmgr.snapshot import RecipeRow, Snapshot
from trainmgr.wire import Value, quoted, short

EVIDENCE, FALSIFIER = 1000, 500  # characters, as in Proposal
METRICS = 32  # of which an effect may be expected
TARGETS: dict[str, list[str | None]] = {"rollback": ["best", "initial"], "stop": ["best", None]}
CHOICES = 5  # values of a parameter that a grammar offers
DEPTH = 12  # of nesting
CANDIDATES = 16  # places of a long text where an object may begin
_FENCED = re.compile(r"```[A-Za-z]*\s*\n(.*?)```", re.DOTALL)


def schema(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The strict JSON schema of an answer: every key required, none besides, and limits as minimum and maximum.

    ``parameters`` are those that may be named. The evidence comes first, so that a model has written the figures before
    it decides.
    """
    adjustable = parameters if {"adjust", "rollback"} & set(view.actions) else ()
    targets: list[str | None] = ["best", "initial", None] if "rollback" in view.actions else ["best", None]
    return _object(
        {
            "evidence": {"type": "string"},
            "diagnosis": _one_of(get_args(Diagnosis)),
            "action": _one_of(view.actions),
            "to": {"type": ["string", "null"], "enum": targets},
            "changes": _object({row.name: _limits(row) for row in view.recipe if row.name in adjustable}),
            "expected": _expected(view),
            "falsifier": {"type": "string"},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1},
        }
    )


def grammar(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The same for llama.cpp, which makes a grammar of it: that knows no minimum and maximum of fractions, but lengths
    and alternatives. One alternative for each action, with what belongs to it, and a few values of each parameter to
    choose from: whoever keeps to it is valid.
    """
    rows = [row for row in view.recipe if row.name in parameters]
    alternatives = []
    for action in view.actions:
        targets = TARGETS.get(action, [None])
        adjusts = action in ("adjust", "rollback")
        alternatives.append(
            _object(
                {
                    "evidence": {"type": "string", "maxLength": 160},
                    "diagnosis": _one_of(get_args(Diagnosis)),
                    "action": {"const": action},
                    "to": {"enum": targets},
                    "changes": _object({row.name: {"enum": _choices(row)} for row in rows} if adjusts else {}),
                    "expected": _expected(view),
                    "falsifier": {"type": "string", "maxLength": 80},
                    "confidence": {"enum": [0.1, 0.3, 0.5, 0.7, 0.9]},
                }
            )
        )
    return {"anyOf": alternatives}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _expected(view: Snapshot) -> dict[str, Any]:
    metrics = [view.objective, *(name for name in view.evaluations.columns if name not in ("step", view.objective))]
    return _object(
        {
            "metric": _one_of(metrics[:METRICS]),
            "direction": _one_of(("down", "up", "flat")),
            "by_step": {"type": ["integer", "null"]},
        }
    )


def _limits(row: RecipeRow) -> dict[str, Any]:
    """One parameter: null leaves it."""
    null = {"type": "null"}
    if row.type == "choice":
        return {"anyOf": [{"type": "string", "enum": row.choices}, null]}
    if row.type == "bool":
        return {"type": ["boolean", "null"]}
    kind = "integer" if row.type == "int" else "number"
    ranges: list[dict[str, Any]] = [{"type": kind, "minimum": row.reach_low, "maximum": row.reach_high}]
    if row.off is not None:
        ranges.append({"type": kind, "enum": [row.off]})
    return {"anyOf": [*ranges, null]}


def _choices(row: RecipeRow) -> list[Value | None]:
    """A few values that one change reaches, from low to high, evenly in the parameter's scale."""
    if row.type == "choice":
        return [*(row.choices or []), None]
    if row.type == "bool":
        return [False, True, None]
    assert row.reach_low is not None
    assert row.reach_high is not None
    low, high = row.reach_low, row.reach_high
    found: list[Value] = [] if row.off is None else [row.off]
    for i in range(CHOICES):
        share = i / (CHOICES - 1)
        value = low * (high / low) ** share if row.scale == "log" and low > 0 else low + (high - low) * share
        value = min(max(float(f"{value:.3g}"), low), high)
        found.append(round(value) if row.type == "int" else value)
    return [*dict.fromkeys(found), None]


# -- reading -----------------------------------------------------------------------------------------------------------


def read(text: str) -> Any:
    """The answer in a model's text: a proposal as JSON values if there is an object in it, else the text, shortened.

    Tolerant of prose and code fences around the object, of null for what is left alone, and of long explanations, which
    are cut; of nothing else. Never raises.
    """
    found = extract(text)
    if found is None:
        return short(text, 500)
    answer = dict(found)
    if isinstance(answer.get("changes"), dict):
        answer["changes"] = {name: value for name, value in answer["changes"].items() if value is not None}
    for name, limit in (("evidence", EVIDENCE), ("falsifier", FALSIFIER)):
        if isinstance(answer.get(name), str):
            answer[name] = short(answer[name], limit)
    return answer


def extract(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text that has an "action", else the first object at all."""
    first: dict[str, Any] | None = None
    for candidate in _candidates(text):
        try:
            value = json.loads(candidate, object_pairs_hook=_once)
        except (ValueError, RecursionError):  # not JSON, a key twice, a number of 5,000 digits, nesting without end
            continue
        if isinstance(value, dict) and _shallow(value):
            if "action" in value:
                return value
            first = first if first is not None else value
    return first


def _shallow(value: Any) -> bool:
    """Whether nothing is nested deeper than an answer can be, by far."""
    layer = [value]
    for _ in range(DEPTH):
        inner = [x.values() if isinstance(x, dict) else x for x in layer if isinstance(x, dict | list)]
        layer = [value for values in inner for value in values]
        if not layer:
            return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key twice")
    return found


def _candidates(text: str) -> Iterator[str]:
    yield text
    yield from _FENCED.findall(text)
    at = -1
    for _ in range(CANDIDATES):
        at = text.find("{", at + 1)
        if at < 0:
            return
        end = _closing(text, at)
        if end is not None:
            yield text[at:end]


def _closing(text: str, at: int) -> int | None:
    """Where the object that begins at ``at`` ends; None where it does not."""
    depth, inside, escaped = 0, False, False
    for i in range(at, len(text)):
        c = text[i]
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
        elif c == '"':
            inside = True
        elif c in "{[":
            depth += 1
        elif c in "}]":
            depth -= 1
            if depth == 0:
                return i + 1
    return None


# -- objections --------------------------------------------------------------------------------------------------------


def objection(answer: Any, view: Snapshot, parameters: tuple[str, ...]) -> str | None:
    """Why an answer is not valid for this snapshot, in words that a model can mend it by; None for a valid one."""
    if not isinstance(answer, dict):
        return "there is no JSON object in it"
    try:
        proposal = Proposal.model_validate(answer)
    except ValidationError as error:
        return explain(error, Proposal)
    if proposal.action not in view.actions:
        return f'the action "{proposal.action}" is not allowed now; allowed are {", ".join(view.actions)}'
    if proposal.action in ("keep", "stop") and proposal.changes:
        return f'"{proposal.action}" takes no changes'
    if proposal.action == "adjust" and not proposal.changes:
        return '"adjust" needs at least one change'
    if proposal.to is not None and proposal.action not in ("rollback", "stop"):
        return f'"to" is null for "{proposal.action}"'
    rows = {row.name: row for row in view.recipe if row.name in parameters}
    for name, value in proposal.changes.items():
        if name not in rows:
            return f"{quoted(name)} is not a parameter that may be changed now; those are {', '.join(rows) or 'none'}"
        wrong = _out_of_reach(rows[name], value)
        if wrong:
            return f"{name} = {quoted(value)} {wrong}"
    return None


def _out_of_reach(row: RecipeRow, value: Value) -> str | None:
    if row.type == "choice":
        return None if value in (row.choices or []) else f"is not one of {', '.join(row.choices or [])}"
    if row.type == "bool":
        return None if isinstance(value, bool) else "is not true or false"
    if isinstance(value, bool | str) or (row.type == "int" and not isinstance(value, int)):
        return f"is not of type {row.type}"
    assert row.reach_low is not None
    assert row.reach_high is not None
    if row.reach_low <= value <= row.reach_high or (row.off is not None and value == row.off):
        return None
    also = "" if row.off is None else f" or {row.off:g}"
    return f"is not between {row.reach_low:g} and {row.reach_high:g}{also}"
