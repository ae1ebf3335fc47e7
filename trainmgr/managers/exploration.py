"""The diagnoses of reinforcement learning: frozen, unsafe, lost, slow, and time to consolidate.

For workloads that declare which metrics are shares of success and of harm. Whether a setting is too high or too low is
judged by what it does (how far an update moves the policy, how wide its actions scatter, how episodes end); it then
moves towards a place in its own declared range. Names are not looked at, and neither is how the run began.

The thresholds come from pilots on seeds 20 and 21 of workloads/reacher.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from trainmgr.contract.policy import Exploration
from trainmgr.contract.proposal import Diagnosis
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers import reading
from trainmgr.managers.reading import Changes, Plans


@dataclass(frozen=True)
class Episodes:
    """How episodes ended at the last evaluation, and how the policy moves."""

    success: float
    unsafe: float
    best_success: float
    """Of the evaluations shown."""
    step: float | None
    """How far an update moves the policy, as a multiple of what it may."""
    noise: float | None
    """Standard deviation of the actions, as a fraction of the largest action."""

    @property
    def idle(self) -> float:
        """Share of the episodes that ended in neither."""
        return max(0.0, 1 - self.success - self.unsafe)

    def __str__(self) -> str:
        shown = [f"success {self.success:.2f}, unsafe {self.unsafe:.2f}, neither {self.idle:.2f}"]
        shown += [f"policy step {self.step:.2g} of its limit"] if self.step is not None else []
        shown += [f"action noise {self.noise:.2f}"] if self.noise is not None else []
        return ", ".join(shown)


@dataclass(frozen=True)
class Finding:
    """What is the matter and what to do about it."""

    diagnosis: Diagnosis
    evidence: str
    changes: Changes
    """Empty where nothing is left to do, or all of it rests."""
    back: str | None = None
    """The checkpoint to go back to first: "best" or "initial"."""
    plans: Plans = field(default_factory=dict)
    """What is brought somewhere little by little."""


def declared(snapshot: Snapshot) -> bool:
    """Whether the workload says which of its metrics are shares of success and of harm: its episodes do not overfit,
    whether any of them has ended yet or not."""
    return {"success", "unsafe"} <= {meaning.role for meaning in snapshot.meanings}


def episodes(snapshot: Snapshot) -> Episodes | None:
    """None for a workload that does not say which of its metrics these are, or whose last ones are not finite."""
    columns = {m.role: reading.column(snapshot, m.column) for m in reversed(snapshot.meanings)}
    success, unsafe = columns.get("success", []), columns.get("unsafe", [])
    if not success or not unsafe or not math.isfinite(success[-1] + unsafe[-1]):
        return None
    step, noise = (next(reversed(columns.get(role, [])), None) for role in ("policy step", "action noise"))
    return Episodes(success[-1], unsafe[-1], max(success), step, noise)


def diagnose(snapshot: Snapshot, now: Episodes, limits: Exploration) -> Finding | None:
    """The first diagnosis that fits; None where all is well."""
    left, total = reading.left(snapshot), snapshot.progress.total_steps or 0
    early = left is None or left >= (1 - limits.early) * total
    late = left is not None and left <= limits.anneal * total
    evidence = f"{now}; {reading.figures(snapshot)}"

    if now.unsafe > limits.unsafe and now.noise is not None and now.noise > limits.wide:
        back = "initial" if early and now.best_success < limits.redo else None
        return Finding("unsafe-exploration", evidence, _calmer(snapshot, limits), back)
    if _lost(snapshot, limits):
        return Finding("instability", evidence, _scaled(snapshot, limits.retreat), "best")
    short = now.step is not None and now.step < limits.short
    if short and now.success < limits.learned:
        return Finding("exploration-collapse", evidence, _bolder(snapshot, limits))
    faster = _moved(snapshot, "optimizer", limits.rate, up=True)
    if short and now.success < limits.mastered and not late and faster:
        return Finding("underfitting", evidence, faster)

    changes: Changes = {}
    plans: Plans = {}
    if now.success >= limits.learned:
        changes |= _moved(snapshot, "exploration", limits.entropy, up=False)
    if late:
        assert left is not None
        evidence = f"{left} steps are left; {evidence}"
        share = max(0.0, 1 - 2 * reading.spacing(snapshot) / max(left, 1))
        for row in reading.rates(snapshot):
            if not row.moves:
                plans |= reading.settle(snapshot, row, 0.0)
            elif not reading.settles(row):
                changes |= reading.move(row, float(row.value) * share, up=False)
    return Finding("routine", evidence, changes, plans=plans) if changes or plans else None


def _lost(snapshot: Snapshot, limits: Exploration) -> bool:
    """Whether the objective was far under its best at both of the last two evaluations, and since the last change."""
    values = reading.column(snapshot, snapshot.objective)[-2:]
    rise, best = snapshot.signals.rise, snapshot.signals.best
    if len(values) < 2 or rise is None or best is None or reading.since_change(snapshot) < 2:
        return False
    latest, before = abs(values[1] - best), abs(values[0] - best)
    fall = max(limits.fall, 3 * (snapshot.signals.noise or 0.0))
    return rise > fall and before * rise > fall * latest  # the one before, on the scale of rise


# -- responses ---------------------------------------------------------------------------------------------------------


def _bolder(snapshot: Snapshot, limits: Exploration) -> Changes:
    """Learn faster, in larger steps, for more reward and less punishment."""
    return (
        _moved(snapshot, "optimizer", limits.rate, up=True)
        | _moved(snapshot, "trust region", limits.trust, up=True)
        | _moved(snapshot, "reward", limits.reward, up=True)
        | _moved(snapshot, "penalty", limits.penalty, up=False)
        | _moved(snapshot, "exploration", limits.entropy, up=True)
    )


def _calmer(snapshot: Snapshot, limits: Exploration) -> Changes:
    """Scatter less, learn more slowly, in smaller steps, and let harm count."""
    return (
        _moved(snapshot, "optimizer", limits.calm, up=False)
        | _moved(snapshot, "trust region", limits.trust, up=False)
        | _moved(snapshot, "penalty", limits.penalty, up=True)
        | _moved(snapshot, "exploration", limits.entropy, up=False)
    )


def _scaled(snapshot: Snapshot, share: float) -> Changes:
    """The learning rates at this share of what they are, down to the lowest that is declared."""
    changes: Changes = {}
    for row in reading.rates(snapshot):
        if not reading.settles(row):
            changes |= reading.move(row, float(row.value) * share, up=False)
    return changes


def _moved(snapshot: Snapshot, group: str, place: float, *, up: bool) -> Changes:
    """Every number of a group to a place of its range, where that is in this direction."""
    rows = reading.rates(snapshot) if group == "optimizer" else reading.numbers(snapshot, group)
    changes: Changes = {}
    for row in rows:
        changes |= reading.move(row, reading.at(row, place), up=up)
    return changes
