"""`schedule:NAME`: the classic learning-rate schedules and early stopping, as managers, for comparison.

They work on every parameter of group "optimizer" with a logarithmic scale (the learning rates), from the values that
the run began with, and are bound by the same limits as every other manager.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from trainmgr.base.errors import UserError
from trainmgr.base.wire import Value, plain
from trainmgr.contract.proposal import Proposal, keep
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.managers import reading

COSINE_END = 0.01  # of the first learning rate
WARM_RESTARTS = (0.1, 2)  # first period as a fraction of the run, and the factor of the next one
PLATEAU = (0.1, 5)  # factor and patience in evaluations; PyTorch's ReduceLROnPlateau has 0.1 and 10
EARLY_STOPPING = 5  # evaluations without a new best
MEANINGFUL = 0.02  # changes of less than this fraction are left out, so that the log stays readable


class Schedule:
    """One of SCHEDULES."""

    deterministic = True

    def __init__(self, schedule: str) -> None:
        if schedule not in SCHEDULES:
            raise UserError(f"There is no schedule {schedule!r}; there are: {', '.join(SCHEDULES)}.")
        self.name = f"schedule:{schedule}"
        self._decide = SCHEDULES[schedule]

    def decide(self, snapshot: Snapshot) -> Any:
        return plain(self._decide(snapshot))


def _fraction(snapshot: Snapshot) -> float:
    total = snapshot.progress.total_steps
    return min(1.0, snapshot.progress.step / total) if total else 0.0


def _unplanned(snapshot: Snapshot) -> Proposal | None:
    """Keep, where the plan was overrun: nobody knows what part of the run this is."""
    if not snapshot.progress.overrun:
        return None
    return keep("routine", f"the run has gone beyond the {snapshot.progress.total_steps} steps planned")


def _rates(snapshot: Snapshot) -> list[RecipeRow]:
    """The learning rates that may be changed now."""
    return reading.rates(snapshot) if "adjust" in snapshot.actions else []


def _scaled(snapshot: Snapshot, factor: float, why: str) -> Proposal:
    """Every learning rate at ``factor`` of its first value, as far as one change reaches.

    None rises while the objective diverges.
    """
    changes: dict[str, Value] = {}
    for row in _rates(snapshot):
        assert isinstance(row.start_value, (int, float))
        assert isinstance(row.value, (int, float))
        low, high = row.reach
        value = min(max(row.start_value * factor, low), high)
        rises_badly = value > row.value and snapshot.signals.diverging
        if abs(value - row.value) > MEANINGFUL * abs(row.value) and not rises_badly:
            changes[row.name] = value
    if not changes:
        return keep("routine", why)
    return Proposal(diagnosis="routine", evidence=why, action="adjust", changes=changes)


def cosine(snapshot: Snapshot) -> Proposal:
    """Half a cosine from the first value to COSINE_END of it (Loshchilov and Hutter 2017, eq. 5, one period)."""
    if (kept := _unplanned(snapshot)) is not None:
        return kept
    at = _fraction(snapshot)
    factor = COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * at)) / 2
    return _scaled(snapshot, factor, f"cosine at {at:.1%} of the run: {factor:.3f} of the first learning rate")


def warm_restarts(snapshot: Snapshot) -> Proposal:
    """SGDR (Loshchilov and Hutter 2017): cosines, each WARM_RESTARTS[1] times as long as the one before."""
    if (kept := _unplanned(snapshot)) is not None:
        return kept
    at, (period, growth) = _fraction(snapshot), WARM_RESTARTS
    begin = 0.0
    while at > begin + period - 1e-9 and begin + period < 1:  # 0.1 + 0.2 is more than 0.3
        begin, period = begin + period, period * growth
    within = max(0.0, at - begin) / period
    factor = COSINE_END + (1 - COSINE_END) * (1 + math.cos(math.pi * within)) / 2
    return _scaled(snapshot, factor, f"warm restarts at {within:.1%} of this period: {factor:.3f} of the first rate")


def reduce_on_plateau(snapshot: Snapshot) -> Proposal:
    """The learning rate times PLATEAU[0] after PLATEAU[1] evaluations without a new best and without a change."""
    factor, patience = PLATEAU
    waited = snapshot.signals.evals_since_best
    since = snapshot.signals.evals_since_change
    waited = waited if since is None else min(waited, since)
    if waited < patience:
        return keep("routine", f"{waited} evaluations since the best or the last change; it waits for {patience}")
    changes: dict[str, Value] = {}
    for row in _rates(snapshot):
        assert isinstance(row.value, (int, float))
        low, high = row.reach
        if row.value > low:
            changes[row.name] = min(max(row.value * factor, low), high)
    if not changes:
        return keep("plateau", "the learning rate is at its lowest")
    return Proposal(diagnosis="plateau", evidence=f"{waited} evaluations without a new best", action="adjust",
                    changes=changes)  # fmt: skip


def early_stopping(snapshot: Snapshot) -> Proposal:
    """Stop on the best weights after EARLY_STOPPING evaluations without a new best (Prechelt 1998)."""
    waited = snapshot.signals.evals_since_best
    if waited < EARLY_STOPPING or "stop" not in snapshot.actions:
        return keep("routine", f"{waited} evaluations since the best; it waits for {EARLY_STOPPING}")
    return Proposal(
        diagnosis="plateau",
        evidence=f"{waited} evaluations without a new best",
        action="stop",
        to="best" if snapshot.best_checkpoint is not None else None,
    )


SCHEDULES: dict[str, Callable[[Snapshot], Proposal]] = {
    "cosine": cosine,
    "warm-restarts": warm_restarts,
    "plateau": reduce_on_plateau,
    "early-stopping": early_stopping,
}
