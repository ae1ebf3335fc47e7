"""Policies, scripts and listeners of supervised runs."""

from __future__ import annotations

from typing import Any

from recorded import of

from trainmgr.base.paths import RunPaths
from trainmgr.contract import events
from trainmgr.contract.policy import Policy, Probation


def unwatched(**sections: Any) -> Policy:
    """A policy under which a manager is asked from the first evaluation on, and nothing is taken back."""
    return Policy(probation=Probation(enabled=False), **sections)


SIMPLE = """
recipe = {"lr": 0.1}
w = Workload("simple", objective="loss", total_steps=200, metrics={"loss": "made up"})
w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0, max_ratio=2.0)
"""


def failures(paths: RunPaths) -> list[tuple[str, str]]:
    return [(failure.where, failure.message) for failure in of(paths, events.Failure)]
