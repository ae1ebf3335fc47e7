"""What a run's closing keeps for comparisons with others."""

from __future__ import annotations

from trainmgr.contract.run_file import Measured
from trainmgr.state.situation import Situation


def measured(now: Situation) -> Measured:
    """What follows from telemetry and the log until now."""
    state, course, spent = now.state, now.state.course, now.ledger.spent
    return Measured(
        goal=state.start.objective.mode if state.start else None,
        on_best=state.kept_best and state.stopped_at is not None,
        curve=course.curve,
        every=course.every,
        course=course.objectives,
        figures=course.figures,
        held_out=course.unseen([*state.end.metrics]) if state.end else [],
        calls=spent.calls,
        tokens=spent.tokens,
        money=spent.money if spent.priced else None,
    )
