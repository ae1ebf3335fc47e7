"""What a manager answers. From a language model it is hostile input, so nothing is converted and nothing ignored."""

from __future__ import annotations

import operator
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from trainmgr.base.wire import Name, Value, Whole, Wire

Diagnosis = Literal[
    "healthy",
    "overfitting",
    "worsening",
    "plateau",
    "divergence",
    "instability",
    "underfitting",
    "over-regularization",
    "loss-imbalance",
    "exploration-collapse",
    "unsafe-exploration",
    "routine",
    "unclear",
]
Action = Literal["keep", "adjust", "rollback", "stop", "undo"]
PLANS = 8  # parameters that one answer may bring somewhere by a plan
NOTE = 400  # characters


def _missing(value: object) -> bool:
    return value is None


class Expectation(Wire):
    """What should be seen if the proposal is right."""

    metric: Name
    direction: Literal["down", "up", "flat"]
    by_step: Whole | None = None


class Plan(Wire):
    """Where a parameter is brought little by little, a part of the way at each evaluation, within bounds and reach."""

    to: float | int
    """The value that it ends at."""
    by_step: Whole
    """When it is there."""
    shape: Literal["linear", "cosine"] = "linear"
    """The way there in equal parts; or gently at both of its ends."""


class Condition(Wire):
    """A metric of the evaluations that crosses a value."""

    metric: Name
    side: Literal["above", "below"]
    value: float


class Proposal(Wire):
    """One answer of a manager."""

    model_config = ConfigDict(revalidate_instances="always")

    diagnosis: Diagnosis
    """What is going on, from a closed list. worsening: the objective lost ground, and nobody knows whether that is
    overfitting; routine: a step that no symptom asks for."""
    evidence: Annotated[str, Field(max_length=1000)]
    """The figures that show it."""
    action: Action
    """keep: nothing; adjust: `changes` and `plans`; rollback: to `to`, then `changes` and `plans` if any; stop: end on
    `to`; undo: take the last change back, the weights too with `to`."""
    changes: Annotated[dict[str, Value], Field(max_length=64)] = {}
    """Parameter to new absolute value."""
    plans: Annotated[dict[str, Plan], Field(max_length=PLANS, exclude_if=operator.not_)] = {}
    """Parameter to where it is brought little by little, instead of at once; any later change of it ends that."""
    to: Annotated[str, Field(max_length=200)] | None = None
    """rollback: "best", "initial", or the name of a checkpoint that is kept; stop: "best" or null; undo: "weights" or
    null."""
    expected: Expectation | None = None
    falsifier: Annotated[str, Field(max_length=500)] = ""
    """What would show it wrong."""
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    judge_after: Annotated[Whole | None, Field(exclude_if=_missing)] = None
    """Steps that the change needs before it can be judged, where that is longer than usual."""
    ask_again_in: Annotated[Whole | None, Field(exclude_if=_missing)] = None
    """Steps until the next question, but for alarms and for `ask_again_when`."""
    ask_again_when: Annotated[Condition | None, Field(exclude_if=_missing)] = None
    """What makes the next question worth asking before."""
    note: Annotated[str, Field(max_length=NOTE, exclude_if=operator.not_)] = ""
    """To itself: what the next snapshots give back, since nothing else is remembered. "" leaves the last one as it is,
    and "-" takes it back."""
    helpless: Annotated[str, Field(max_length=1000, exclude_if=operator.not_)] = ""
    """keep: why nothing can be done about the diagnosis, and what would help; empty where nothing needs to be done, or
    something will be."""


def keep(diagnosis: Diagnosis, evidence: str, helpless: str = "") -> Proposal:
    return Proposal(diagnosis=diagnosis, evidence=evidence, action="keep", helpless=helpless)
