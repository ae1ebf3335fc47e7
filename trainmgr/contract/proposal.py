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
Action = Literal["keep", "adjust", "rollback", "stop"]


class Expectation(Wire):
    """What should be seen if the proposal is right."""

    metric: Name
    direction: Literal["down", "up", "flat"]
    by_step: Whole | None = None


class Proposal(Wire):
    """One answer of a manager."""

    model_config = ConfigDict(revalidate_instances="always")

    diagnosis: Diagnosis
    """What is going on, from a closed list. worsening: the objective lost ground, and nobody knows whether that is
    overfitting; routine: a step that no symptom asks for."""
    evidence: Annotated[str, Field(max_length=1000)]
    """The figures that show it."""
    action: Action
    """keep: nothing; adjust: `changes`; rollback: to `to`, then `changes` if any; stop: end on `to`."""
    changes: Annotated[dict[str, Value], Field(max_length=64)] = {}
    """Parameter to new absolute value."""
    to: Annotated[str, Field(max_length=200)] | None = None
    """rollback: "best" or "initial"; stop: "best" or null."""
    expected: Expectation | None = None
    falsifier: Annotated[str, Field(max_length=500)] = ""
    """What would show it wrong."""
    confidence: Annotated[float, Field(ge=0, le=1)] | None = None
    helpless: Annotated[str, Field(max_length=1000, exclude_if=operator.not_)] = ""
    """keep: why nothing can be done about the diagnosis, and what would help; empty where nothing needs to be done, or
    something will be."""


def keep(diagnosis: Diagnosis, evidence: str, helpless: str = "") -> Proposal:
    return Proposal(diagnosis=diagnosis, evidence=evidence, action="keep", helpless=helpless)
