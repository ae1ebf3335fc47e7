"""What a language model may answer to one snapshot: the JSON schema of it, and how its text is read. Pure.

The schema is made from the action space of this moment, so that an endpoint which keeps to it cannot name what is not
allowed now. Nothing rests on that: the text is read by us, and the guard judges it like any other answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from trainmgr.proposal import Diagnosis, Proposal
from trainmgr.protocol import explain
from trainmgr.snapshot import RecipeRow, Snapshot
from trainmgr.wire import Value, quoted, short

EVIDENCE, FALSIFIER = 1000, 500  # characters, as in Proposal
METRICS = 32  # of which an effect may be expected
CHOICES = 5  # values of a parameter that a grammar offers
TOGETHER = 8  # parameters that it lets be adjusted at once, of those that follow each other
THOUGHT = "</think>"  # ends what some models write before their answer
DEPTH = 12  # of nesting
CANDIDATES = 32  # places of a long text where an object may begin


def form(manager: str) -> Callable[[Snapshot, tuple[str, ...]], dict[str, Any]]:
    """How answers of a manager of this name are formed: ``grammar`` for the embedded server, else ``schema``."""
    return grammar if manager.startswith("local:") else schema


def schema(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The strict JSON schema of an answer: every key required, none besides, and limits as minimum and maximum.

    ``parameters`` are those that may be named. The evidence comes first, so that a model has written the figures before
    it decides.
    """
    adjustable = parameters if {"adjust", "rollback"} & set(view.actions) else ()
    targets = dict.fromkeys(to for action in view.actions for to in (*_targets(action, view), None))
    return _object(
        {
            "evidence": {"type": "string"},
            "diagnosis": _one_of(get_args(Diagnosis)),
            "action": _one_of(view.actions),
            "to": {"type": ["string", "null"], "enum": list(targets)},
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
        changes = {"keep": [_changes(())], "stop": [_changes(())], "rollback": [_changes(rows)]}
        adjusted = [_changes(rows[i : i + TOGETHER], first=True) for i, row in enumerate(rows) if _choices(row)]
        allowed = changes.get(action, adjusted)
        if not allowed:
            continue
        alternatives.append(
            _object(
                {
                    "evidence": {"type": "string", "maxLength": 160},
                    "diagnosis": _one_of(get_args(Diagnosis)),
                    "action": {"const": action},
                    "to": {"enum": _targets(action, view)},
                    "changes": allowed[0] if len(allowed) == 1 else {"anyOf": allowed},
                    "expected": _expected(view),
                    "falsifier": {"type": "string", "maxLength": 80},
                    "confidence": {"enum": [0.1, 0.3, 0.5, 0.7, 0.9]},
                }
            )
        )
    return {"anyOf": alternatives}


def _changes(rows: Sequence[RecipeRow], *, first: bool = False) -> dict[str, Any]:
    """Changes of these or of none; with ``first``, of the first one in any case."""
    return _object({row.name: {"enum": [*_choices(row), *([] if first and not i else [None])]}
                    for i, row in enumerate(rows)})  # fmt: skip


def _targets(action: str, view: Snapshot) -> list[str | None]:
    """What an action may go to."""
    if action == "rollback":
        return ["best", "initial"]
    return ["best", None] if action == "stop" and view.best_checkpoint is not None else [None]


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _expected(view: Snapshot) -> dict[str, Any]:
    names = (view.objective, *view.evaluations.columns[1:])  # of which two long ones may look the same
    metrics = list(dict.fromkeys(name for name in names if name))
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
    low, high = _span(row)
    ranges: list[dict[str, Any]] = [{"type": kind, "minimum": low, "maximum": high}] if low <= high else []
    if row.off is not None:
        ranges.append({"type": kind, "enum": [_typed(row, row.off)]})
    return {"anyOf": [*ranges, null]}


def _span(row: RecipeRow) -> tuple[float, float]:
    """The values of a number that one change reaches."""
    assert row.reach_low is not None
    assert row.reach_high is not None
    if row.type == "int":
        return math.ceil(row.reach_low), math.floor(row.reach_high)
    return row.reach_low, row.reach_high


def _typed(row: RecipeRow, value: float) -> float:
    return int(value) if row.type == "int" else value


def _choices(row: RecipeRow) -> list[Value]:
    """A few other values that one change reaches, from low to high, evenly in the parameter's scale."""
    if row.type in ("bool", "choice"):
        there: list[Value] = [False, True] if row.type == "bool" else [*(row.choices or [])]
        return [value for value in there if value != row.value]
    low, high = _span(row)
    found: list[Value] = [] if row.off is None else [_typed(row, row.off)]
    for i in range(CHOICES if low <= high else 0):
        share = i / (CHOICES - 1)
        value = low * (high / low) ** share if row.scale == "log" and low > 0 else low + (high - low) * share
        value = min(max(float(f"{value:.3g}"), low), high)
        found.append(round(value) if row.type == "int" else value)
    return [value for value in dict.fromkeys(found) if value != row.value]


# -- reading -----------------------------------------------------------------------------------------------------------


def read(text: str) -> Any:
    """The answer in a model's text: a proposal as JSON values if there is an object in it, else the text, shortened.

    Tolerant of prose and code fences around the object, of null for what is left alone, and of long explanations, which
    are cut; of nothing else. Never raises.
    """
    found = extract(text.rpartition(THOUGHT)[2])  # a draft in a model's thoughts is no answer
    if found is None and THOUGHT in text:
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
    """The first JSON object in a text that has an "action", else the object that begins first, if it is whole: what
    stands in the rest of an answer that was cut off is none."""
    first: dict[str, Any] | None = None
    at = -1
    for tried in range(CANDIDATES):
        at = text.find("{", at + 1)
        if at < 0:
            break
        try:
            value, _ = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):  # not JSON, a key twice, a number of 5,000 digits, nesting without end
            continue
        if _shallow(value):
            if "action" in value:
                return dict(value)
            first = first if tried else value
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


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


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
    if proposal.to is not None and proposal.to not in _targets(proposal.action, view):
        return f'"to" = {quoted(proposal.to)} is nothing that "{proposal.action}" takes'
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
        return None if value in (row.choices or []) else f"is not one of {short(', '.join(row.choices or []), 200)}"
    if row.type == "bool":
        return None if isinstance(value, bool) else "is not true or false"
    if isinstance(value, bool | str) or (row.type == "int" and not isinstance(value, int)):
        return f"is not of type {row.type}"
    low, high = _span(row)
    if low <= value <= high or value == row.off:
        return None
    if value == row.value and row.low is not None and row.high is not None and row.low <= value <= row.high:
        return None  # it is there already, between two limits that were rounded inwards
    also = "" if row.off is None else f" or {_typed(row, row.off)!r}"
    return f"is not between {low!r} and {high!r}{also}"
