"""The JSON schema of an answer to one snapshot, made from the action space of its moment.

Endpoints got it with prompts of version 3. The grammar goes on to be what the embedded server gets: we compile it
each time, and it offers what a small model can use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from trainmgr.base.wire import Value
from trainmgr.contract.proposal import Diagnosis
from trainmgr.deciding.snapshot import RecipeRow, Snapshot

METRICS = 32  # of which an effect may be expected
CHOICES = 5  # values of a parameter that a grammar offers
TOGETHER = 8  # parameters that it lets be adjusted at once, of those that follow each other


def schema(view: Snapshot, parameters: tuple[str, ...]) -> dict[str, Any]:
    """The strict JSON schema of an answer: every key required, none besides, and limits as minimum and maximum.

    ``parameters`` are those that may be named. The evidence comes first, so that a model has written the figures before
    it decides.
    """
    adjustable = parameters if {"adjust", "rollback"} & set(view.actions) else ()
    targets = dict.fromkeys(to for action in view.actions for to in (*targets_of(action, view), None))
    return object_of(
        {
            "evidence": {"type": "string"},
            "diagnosis": one_of(get_args(Diagnosis)),
            "action": one_of(view.actions),
            "to": {"type": ["string", "null"], "enum": list(targets)},
            "changes": object_of({row.name: _limits(row) for row in view.recipe if row.name in adjustable}),
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
        none = [_changes(())]
        changes = {"keep": none, "stop": none, "undo": none, "rollback": [_changes(rows)]}
        adjusted = [_changes(rows[i : i + TOGETHER], first=True) for i, row in enumerate(rows) if _choices(row)]
        allowed = changes.get(action, adjusted)
        if not allowed:
            continue
        alternatives.append(
            object_of(
                {
                    "evidence": {"type": "string", "maxLength": 160},
                    "diagnosis": one_of(get_args(Diagnosis)),
                    "action": {"const": action},
                    "to": {"enum": targets_of(action, view)},
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
    return object_of({row.name: {"enum": [*_choices(row), *([] if first and not i else [None])]}
                    for i, row in enumerate(rows)})  # fmt: skip


def targets_of(action: str, view: Snapshot) -> list[str | None]:
    """What an action may go to."""
    if action == "undo":
        return ["weights", None] if view.undo is not None and view.undo.weights else [None]
    if action == "rollback":
        return [*(view.checkpoints or ("best", "initial"))]
    return ["best", None] if action == "stop" and view.best_checkpoint is not None else [None]


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _expected(view: Snapshot) -> dict[str, Any]:
    names = (view.objective, *view.evaluations.columns[1:])  # of which two long ones may look the same
    metrics = list(dict.fromkeys(name for name in names if name))
    return object_of(
        {
            "metric": one_of(metrics[:METRICS]),
            "direction": one_of(("down", "up", "flat")),
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
    low, high = row.reach
    ranges: list[dict[str, Any]] = [{"type": kind, "minimum": low, "maximum": high}] if low <= high else []
    if row.off is not None:
        ranges.append({"type": kind, "enum": [typed(row, row.off)]})
    return {"anyOf": [*ranges, null]}


def typed(row: RecipeRow, value: float) -> float:
    return int(value) if row.type == "int" else value


def _choices(row: RecipeRow) -> list[Value]:
    """A few other values that one change reaches, from low to high, evenly in the parameter's scale."""
    if row.type in ("bool", "choice"):
        there: list[Value] = [False, True] if row.type == "bool" else [*(row.choices or [])]
        return [value for value in there if value != row.value]
    low, high = row.reach
    found: list[Value] = [] if row.off is None else [typed(row, row.off)]
    for i in range(CHOICES if low <= high else 0):
        share = i / (CHOICES - 1)
        value = low * (high / low) ** share if row.scale == "log" and low > 0 else low + (high - low) * share
        value = min(max(float(f"{value:.3g}"), low), high)
        found.append(round(value) if row.type == "int" else value)
    return [value for value in dict.fromkeys(found) if value != row.value]
