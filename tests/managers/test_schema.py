"""The one schema of a run, and answers that keep to it: plans, undo, notes, waiting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from factories import (
    FREE,
    applied,
    checkpoint,
    curve,
    dropout,
    ema,
    evaluation,
    everything,
    fold,
    kind,
    lr,
    start,
    view,
)
from factories.handover import ARM, ARM_METRICS, TEXT
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract.policy import Limits, ParameterLimits, Policy
from trainmgr.contract.proposal import Action, Proposal
from trainmgr.deciding.snapshot import Snapshot, Undoable
from trainmgr.managers import answer
from trainmgr.managers.answer import objection, read, schema
from trainmgr.managers.prompt import render

KNOWN = {"type", "enum", "anyOf", "properties", "required", "additionalProperties", "$ref", "$defs"}


def nodes(of: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and every schema in it."""
    yield of
    for inner in (*of.get("anyOf", ()), *of.get("properties", {}).values(), *of.get("$defs", {}).values()):
        yield from nodes(inner)


def said(action: Action = "keep", **more: Any) -> str:
    """An answer as a strict endpoint writes it: every key there, null for what is left out."""
    return json.dumps({
        "evidence": "x", "diagnosis": "unclear", "action": action, "to": None, "changes": {"lr": None},
        "plans": {"lr": None, "dropout": None}, "expected": None, "falsifier": "", "judge_after": None,
        "ask_again_in": None, "ask_again_when": None, "note": None, **more,
    })  # fmt: skip


def objected(shown: Snapshot, action: Action, **more: Any) -> str | None:
    return objection(read(said(action, **more)), shown, render(shown, 10**6).parameters)


# -- the schema ------------------------------------------------------------------------------------------------------


@examples(20)
@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=12), st.integers(0, 2))
def test_it_is_the_same_for_all_decisions_of_a_run(values: list[float], cooldown: int) -> None:
    policy = Policy(limits=Limits(cooldown_evals=cooldown), parameters={"batch": ParameterLimits(frozen=True)})
    state, found = fold([start(*everything())]), set()
    for i, value in enumerate(values):
        fold([evaluation(10 * i, value, extra=1.0 * i), checkpoint(10 * i)], state)
        found.add(json.dumps(schema(view(state, policy))))
        fold([applied(10 * i + 1, i + 1, {"lr": (3e-3, 3e-3 / (i + 2)), "kind": ("a", "b")})], state)
        found.add(json.dumps(schema(view(state, policy))))
    assert len(found) == 1
    assert '"batch"' not in found.pop()


def test_it_is_strict_and_uses_nothing_that_only_some_know() -> None:
    made = schema(view(curve([2.0], *everything())))
    for node in nodes(made):
        assert set(node) <= KNOWN
        if node.get("type") == "object":
            assert node["required"] == list(node["properties"])
            assert node["additionalProperties"] is False
    assert set(made["properties"]["plans"]["properties"]) == {"lr", "dropout", "ema", "batch"}  # the numbers
    assert made["properties"]["changes"]["properties"]["kind"]["anyOf"][0]["enum"] == ["a", "b", "c"]
    assert made["properties"]["action"]["enum"] == ["keep", "adjust", "rollback", "stop", "undo"]
    assert "confidence" not in made["properties"]


def test_it_names_the_diagnoses_that_this_kind_of_training_can_have() -> None:
    text = schema(view(curve([2.0], *TEXT)))["properties"]["diagnosis"]["enum"]
    assert not {"exploration-collapse", "unsafe-exploration", "loss-imbalance"} & {*text}
    arm = schema(view(fold([start(*ARM, metrics=ARM_METRICS), evaluation(1, 1.0)])))["properties"]["diagnosis"]["enum"]
    assert {*arm} - {*text} == {"exploration-collapse", "unsafe-exploration"}


def test_an_embedded_server_goes_on_to_get_a_grammar_of_the_moment() -> None:
    assert answer.form("local:m.gguf") is answer.form("local:m.gguf", "v3") is answer.grammar
    assert answer.form("llm:x") is schema
    assert answer.form("llm:x", "v3") is answer.schema_of_the_moment


# -- what keeps to it --------------------------------------------------------------------------------------------------


def test_null_stands_for_what_is_left_out() -> None:
    found = read(said())
    assert Proposal.model_validate(found) == Proposal(diagnosis="unclear", evidence="x", action="keep")
    plan = {"to": 1e-4, "by_step": 900, "shape": None}
    assert read(said("adjust", plans={"lr": plan, "dropout": None}))["plans"] == {"lr": {"to": 1e-4, "by_step": 900}}
    assert len(read(said(note="n" * 2000))["note"]) == 400


@pytest.mark.parametrize(("action", "more", "why"), [
    ("adjust", {"plans": {"lr": {"to": 1e-4, "by_step": 900, "shape": "cosine"}}}, None),
    ("adjust", {"changes": {"dropout": 0.1}, "plans": {"lr": {"to": 1e-4, "by_step": 900, "shape": "linear"}}}, None),
    ("adjust", {}, '"adjust" needs at least one change or plan'),
    ("adjust", {"plans": {"lr": {"to": 1.0, "by_step": 900, "shape": "linear"}}},
     "the plan for lr ends at 1.0, which is not between 1e-05 and 0.005"),
    ("adjust", {"plans": {"lr": {"to": 1e-4, "by_step": 20, "shape": "linear"}}},
     "the plan for lr ends at step 20; the run is at step 20"),
    ("adjust", {"changes": {"lr": 1e-3}, "plans": {"lr": {"to": 1e-4, "by_step": 900, "shape": "linear"}}},
     "'lr' is both changed at once and planned: one of the two"),
    ("keep", {"plans": {"lr": {"to": 1e-4, "by_step": 900, "shape": "linear"}}},
     '"keep" takes no changes and no plans'),
    ("rollback", {"to": "a-name"},
     "\"to\" = 'a-name' is nothing that \"rollback\" takes; that is \"best\", \"initial\""),
    ("rollback", {"to": "best"}, None),
    ("rollback", {"to": "initial", "plans": {"lr": {"to": 1e-4, "by_step": 900, "shape": "linear"}}}, None),
    ("keep", {"to": "best"}, "\"to\" = 'best' is nothing that \"keep\" takes; that is null"),
    ("keep", {"ask_again_in": 100, "ask_again_when": {"metric": "val", "side": "above", "value": 3.0}, "note": "n",
              "judge_after": 200}, None),
    ("undo", {}, 'the action "undo" is not allowed now; allowed are keep, adjust, rollback, stop'),
])  # fmt: skip
def test_objections(action: Action, more: dict[str, Any], why: str | None) -> None:
    shown = view(curve([2.0, 1.9], lr(), dropout(), ema(), kind()), FREE)
    if "undo" in shown.actions:
        shown = shown.model_copy(update={"actions": [a for a in shown.actions if a != "undo"], "unavailable": {}})
    assert objected(shown, action, **more) == why


def test_undo_goes_to_the_weights_or_nowhere() -> None:
    shown = view(curve([2.0, 1.9], lr()), FREE)
    kept = Undoable(decision="d1", step=10, values={"lr": 1e-3}, weights=True)
    shown = shown.model_copy(update={"actions": ["keep", "undo"], "undo": kept})
    assert objected(shown, "undo") is None
    assert objected(shown, "undo", to="weights") is None
    assert objected(shown, "undo", to="best") is not None
    gone = shown.model_copy(update={"undo": kept.model_copy(update={"weights": False})})
    assert objected(gone, "undo", to="weights") is not None


def test_an_objection_says_until_when_a_parameter_rests() -> None:
    state = fold([applied(20, 1, {"lr": (3e-3, 1e-3)})], curve([2.0, 1.9], lr(), dropout()))
    shown = view(state, FREE)
    why = "'lr' is not a parameter that may be changed now: it rests until step 30; those are dropout"
    assert objected(shown, "adjust", changes={"lr": 2e-3}) == why
