"""The JSON schema of an answer, the same for all decisions of a run.

It names what was declared, and no limit of the moment: those stand in the prompt, and the guard holds them. An endpoint
compiles it once, and what it was asked before is in its cache. Every key is required, as strict modes want it; null
stands for what is left out. No keywords but those that all of them know.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

from trainmgr.contract.proposal import Action, Diagnosis
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers.prompts.words import exact

REINFORCEMENT: tuple[Diagnosis, ...] = ("exploration-collapse", "unsafe-exploration")
SEVERAL: tuple[Diagnosis, ...] = ("loss-imbalance",)
NULL = {"type": "null"}


def diagnoses(kinds: Iterable[str]) -> list[Diagnosis]:
    """Those that a run of these kinds can have."""
    there = set(kinds)
    others = (REINFORCEMENT if "reinforcement learning" not in there else ()) + (
        SEVERAL if "several losses" not in there else ()
    )
    return [name for name in get_args(Diagnosis) if name not in others]


def schema(view: Snapshot, parameters: tuple[str, ...] = ()) -> dict[str, Any]:  # noqa: ARG001
    """The strict schema; ``parameters``, those that may be changed at this moment, are for forms that depend on it.

    The evidence comes first, so that a model has written the figures before it decides.
    """
    rows = [row for row in view.recipe if exact(row.name) is not None]
    numbers = [row for row in rows if row.type in ("float", "int")]
    kinds = view.account.kinds if view.account else ()
    text, maybe_text, maybe_step = {"type": "string"}, {"type": ["string", "null"]}, {"type": ["integer", "null"]}
    condition = _object({"metric": text, "side": _one_of(("above", "below")), "value": {"type": "number"}})
    expected = _object({"metric": text, "direction": _one_of(("down", "up", "flat")), "by_step": maybe_step})
    plan = _object(
        {"to": {"type": "number"}, "by_step": {"type": "integer"}, "shape": _one_of(("linear", "cosine"))}
    )  # fmt: skip
    found = _object(
        {
            "evidence": text,
            "diagnosis": _one_of(diagnoses(kinds)),
            "action": _one_of(get_args(Action)),
            "to": maybe_text,
            "changes": _object({row.name: _value(row) for row in rows}),
            "plans": _object({row.name: _or_null({"$ref": "#/$defs/plan"}) for row in numbers}),
            "expected": _or_null(expected),
            "falsifier": text,
            "judge_after": maybe_step,
            "ask_again_in": maybe_step,
            "ask_again_when": _or_null(condition),
            "note": maybe_text,
        }
    )
    return {**found, "$defs": {"plan": plan}} if numbers else found


def _value(row: RecipeRow) -> dict[str, Any]:
    """One parameter: null leaves it."""
    if row.type == "choice":
        return _or_null(_one_of(row.choices or []))
    return {"type": [{"bool": "boolean", "int": "integer"}.get(row.type, "number"), "null"]}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _one_of(names: Iterable[str]) -> dict[str, Any]:
    return {"type": "string", "enum": list(names)}


def _or_null(of: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [of, NULL]}
