"""What a run's closing keeps for comparisons with others, from the two folds."""

from __future__ import annotations

from trainmgr.contract.run_file import Measured
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState


def measured(state: RunState, ledger: Ledger) -> Measured:
    """All of it follows from telemetry and the log before the end."""
    course, spent = state.course, ledger.spent
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
