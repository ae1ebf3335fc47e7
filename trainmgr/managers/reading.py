"""What a snapshot says, and the moves that it leaves: what several rules read and do.

Parameters are known by their declared group and scale, metrics by their declared role; neither by name.
"""

from __future__ import annotations

import math

from trainmgr.base.wire import Value
from trainmgr.contract.proposal import Expectation, Plan
from trainmgr.deciding.snapshot import RecipeRow, Snapshot
from trainmgr.state.signals import rounded

Changes = dict[str, Value]
Plans = dict[str, Plan]
NO_PLANS: Plans = {}


def since_change(snapshot: Snapshot) -> float:
    """Evaluations since the last change; infinite before the first."""
    since = snapshot.signals.evals_since_change
    return math.inf if since is None else since


def settled(snapshot: Snapshot) -> float:
    """Evaluations that found no new best since the recipe is what it is."""
    return min(snapshot.signals.evals_since_best, since_change(snapshot))


def moved(snapshot: Snapshot, group: str, *, up: bool) -> bool:
    """Whether a change since the best moved one of this group up (down), of those that are shown. What answered to a
    rise of the objective, or went back to a checkpoint, does not count as up."""
    names = {row.name for row in real(snapshot, group)}
    for past in snapshot.interventions:
        answer = up and (past.command is not None or past.diagnosis in ("overfitting", "worsening"))
        if past.step < (snapshot.signals.best_step or 0) or answer:
            continue
        pairs = [past.changes[name] for name in names & past.changes.keys()]
        if any(number(old) and number(new) and (new > old if up else new < old) for old, new in pairs):  # type: ignore[operator]
            return True
    return False


def spacing(snapshot: Snapshot) -> float:
    """Steps from one evaluation to the next, on average. The first one may have been before the first step."""
    progress = snapshot.progress
    return progress.step / max(1, progress.evaluations - 1)


def left(snapshot: Snapshot) -> int | None:
    """Steps to the end; None without a plan, where it was overrun, or before anything was evaluated."""
    progress = snapshot.progress
    known = progress.total_steps is not None and progress.evaluations and not progress.overrun
    return progress.total_steps - progress.step if known and progress.total_steps is not None else None


def gap(snapshot: Snapshot) -> float | None:
    """How much worse the objective is than on training data, as a fraction of the absolute best."""
    return relative(snapshot, snapshot.signals.gap)


def gap_at_best(snapshot: Snapshot) -> float | None:
    """The same at the best evaluation; None where the table has thinned it out."""
    table, step = snapshot.evaluations, snapshot.signals.best_step
    for values in table.rows:
        row = dict(zip(table.columns, values, strict=True))
        ours, theirs = row.get(snapshot.objective), row.get(snapshot.counterpart or "")
        if row["step"] == step and ours is not None and theirs is not None:
            return relative(snapshot, ours - theirs)
    return None


def overfits(snapshot: Snapshot, wide: float) -> bool | None:
    """Whether the gap to the training data shows overfitting, where the objective has risen: it is wider than at the
    best, or ``wide`` where nobody knows how it was there. None where the gap says nothing."""
    now, then = gap(snapshot), gap_at_best(snapshot)
    if now is None:
        return None
    if then is None:
        return True if now > wide else None
    return now > then


def immeasurable(snapshot: Snapshot) -> bool:
    """Whether the objective is worse than its best, and nobody knows what that is worth: the best is 0, and no scale
    is declared."""
    signals = snapshot.signals
    return signals.best == 0 and signals.rise is None and signals.latest not in (None, signals.best)


def relative(snapshot: Snapshot, gap: float | None) -> float | None:
    best = snapshot.signals.best
    if gap is None or not best or not math.isfinite(gap):
        return None
    return (gap if snapshot.mode == "min" else -gap) / abs(best)


def rates(snapshot: Snapshot) -> list[RecipeRow]:
    """The learning rates that may be changed now, and on which a change lasts."""
    return [row for row in free(snapshot, "optimizer") if row.scale == "log" and not row.overwritten]


def origin(row: RecipeRow) -> float:
    """What the script itself has there: now, where it moves the value, else what the run began with."""
    return float(row.start_value if row.own is None else row.own)


def settles(row: RecipeRow) -> bool:
    """Whether the script's own schedule brings a rate down by itself: to less than half of it, or nobody knows how far.

    Then nobody else should: two schedules that multiply end on nothing.
    """
    return row.moves and (row.end is None or row.end < 0.5 * float(row.value))


def free(snapshot: Snapshot, group: str) -> list[RecipeRow]:
    """The real-valued parameters of a group that may be changed now."""
    return [row for row in real(snapshot, group) if row.off is None and not row.resting]


def numbers(snapshot: Snapshot, group: str) -> list[RecipeRow]:
    """The numbers of a group, whole ones too, that may be changed now."""
    return [row for row in real(snapshot, group, ("float", "int")) if not row.resting]


def at(row: RecipeRow, place: float) -> float:
    """The value at ``place`` of the declared range, from 0 (lowest) to 1 (highest), on the parameter's scale."""
    assert row.low is not None
    assert row.high is not None
    if row.scale == "log":
        return math.exp((1 - place) * math.log(row.low) + place * math.log(row.high))
    return float(row.low) + place * (float(row.high) - float(row.low))


def place(row: RecipeRow) -> float:
    """Where its value is in the declared range: what `at` takes back. Outside of 0 to 1 where it drifted out of it."""
    assert row.low is not None
    assert row.high is not None
    value, low, high = float(row.value), float(row.low), float(row.high)
    if not low < high:  # in the six digits that are shown
        return 1.0
    if row.scale == "log":
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) if value > 0 else 0.0
    return (value - low) / (high - low)


def column(snapshot: Snapshot, name: str) -> list[float]:
    """A column of the evaluations, oldest first, without what was not measured."""
    table = snapshot.evaluations
    if name not in table.columns:
        return []
    place = table.columns.index(name)
    return [value for row in table.rows if (value := row[place]) is not None]


def real(snapshot: Snapshot, group: str, types: tuple[str, ...] = ("float",)) -> list[RecipeRow]:
    """The real-valued parameters of a group. One that drifted to something else than a number is left alone."""
    return [
        row
        for row in snapshot.recipe
        if row.group == group and row.type in types and number(row.value) and number(row.start_value)
    ]


def number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def move(row: RecipeRow, wanted: float, *, up: bool) -> Changes:
    """The change of a parameter towards ``wanted`` as far as one change reaches; none in the other direction."""
    low, high = row.reach
    value = float(min(max(rounded(wanted), low), high))
    if row.type == "int":
        value = math.floor(value) if up else math.ceil(value)  # not further than wanted
    return {row.name: value} if (value > float(row.value) if up else value < float(row.value)) else {}


def settle(snapshot: Snapshot, row: RecipeRow, least: float) -> Plans:
    """The plan that brings a parameter down to ``least``, or as far as it may go, in a straight line by the end of the
    run; none where one is under way already, or it is there."""
    total = snapshot.progress.total_steps
    assert row.low is not None
    assert row.high is not None
    to = min(max(rounded(least), row.low), row.high)
    if total is None or row.plan is not None or not to < float(row.value):
        return {}
    return {row.name: Plan(to=to, by_step=total)}


def better(snapshot: Snapshot) -> Expectation:
    return Expectation(metric=snapshot.objective, direction="down" if snapshot.mode == "min" else "up")


def figures(snapshot: Snapshot) -> str:
    """The figures that the rules look at, in words."""
    signals = snapshot.signals
    if signals.latest is None:
        return f"no evaluation of {snapshot.objective} yet" if snapshot.progress.evaluations else "no evaluation yet"
    if signals.best is None:
        return f"{snapshot.objective} {signals.latest:.4g}, not measured yet"
    text = f"{snapshot.objective} {signals.latest:.4g}"
    if signals.unseen:
        text += f", not in the last {_evaluations(signals.unseen)}"
    text += f", best {signals.best:.4g} at step {signals.best_step}"
    if signals.rise is not None and math.isfinite(signals.rise):
        ago = f"{_evaluations(signals.evals_since_best + signals.without)} ago"
        change = signals.rise if snapshot.mode == "min" else -signals.rise
        text += f" ({change + 0.0:+.1%}, {ago})"  # never "-0.0%" of a best
    if signals.gap is not None and math.isfinite(signals.gap):
        text += f", gap {signals.gap:.3g}"
    return text


def _evaluations(count: int) -> str:
    return f"{count} evaluation{'s' * (count != 1)}"
