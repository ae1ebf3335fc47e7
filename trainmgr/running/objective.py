"""Whether the first evaluation has what the run is managed by: it is said at once, and not after a day."""

from __future__ import annotations

from trainmgr.base.wire import nearest, short
from trainmgr.state.run_state import RunState


def lacking(state: RunState) -> tuple[str, str] | None:
    """What is missing ("objective" or "counterpart"), and that in words; None where nothing is."""
    if not state.evaluations:
        return None
    names = state.evaluations[0].metrics
    metric = state.start.objective.metric if state.start else "objective"  # where nobody could read what it is called
    found = short(", ".join(names), 200) or "nothing"
    if not state.measured:
        text = f"the first evaluation has no {metric}; it has: {found}. Nothing can be managed without it."
        return "objective", f"{text}{nearest(metric, names)}"
    other = state.start.objective.counterpart if state.start else None
    if other and other not in names:
        text = f"the first evaluation has no {other}, without which overfitting cannot be told; it has: {found}."
        return "counterpart", f"{text}{nearest(other, [name for name in names if name != metric])}"
    return None
