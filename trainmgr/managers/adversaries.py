"""Managers that mean no good, to test the bounds: everything they ask for is allowed, unless it comes too late.

- `random[:STREAM]` draws from all that is allowed. Its randomness is a function of the snapshot, so that a replay draws
  the same, and of nothing in it that a clock wrote, so that a repeated run does.
- `adversary` asks for the worst of what is allowed. It knows parameters by their declared group and scale only.
- `flipflop` sends every parameter from one end of its reach to the other, as often as it may.
- `late[:SECONDS]` answers like `adversary`, once the answer is stale.

None has a memory but the snapshot's. Of the first three the guard accepts everything that it sees in time, with one
exception: where the objective began to diverge after the snapshot, no learning rate rises.
"""

from __future__ import annotations

import hashlib
import math
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from trainmgr.base.errors import ManagerError, UserError
from trainmgr.base.wire import Value, plain
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Action, Expectation, Proposal, keep
from trainmgr.deciding.snapshot import Past, RecipeRow, Snapshot
from trainmgr.managers.base import Exchange
from trainmgr.managers.reading import Changes
from trainmgr.state.budget import Spent

Item = TypeVar("Item")

UPWARDS = {  # whether more is worse, by group; of all other groups: whatever is further from the start
    "optimizer": True,
    "exploration": True,
    "trust region": True,
    "reward": True,
    "regularization": False,
    "averaging": False,
    "penalty": False,
}
PROTECTIVE = ("regularization", "averaging", "trust region", "penalty")  # worst when switched off
EARLY = 0.5  # of the planned steps: a stop before that leaves most of the run undone
TOO_LONG = 2.0  # times the age at which an answer is stale: the speed of training is an average


class Random:
    """Each allowed action is as likely as the others; each free parameter changes or not, as a coin says.

    A number is uniform on its scale within the reach of one change; where it has an `off` value, a coin decides between
    that and a number. It can stop a run at its first question: a policy that does not want that forbids it.
    """

    deterministic = True

    def __init__(self, stream: str = "") -> None:
        """``stream`` chooses other draws."""
        self.name = f"random:{stream}" if stream else "random"
        self._stream = stream

    def decide(self, snapshot: Snapshot) -> Any:
        draw = random.Random(self._seed(snapshot)).random  # noqa: S311 - of its methods the same in every Python
        options = {row.name: _drawn(draw, row, snapshot) for row in snapshot.recipe if _movable(row, snapshot)}
        action = _pick(draw, [action for action in snapshot.actions if action != "adjust" or options])
        changes: Changes = {}
        while action == "adjust" and not changes:
            changes = {name: value for name, value in options.items() if draw() < 0.5}
        if action == "rollback":
            changes = {name: value for name, value in options.items() if draw() < 0.5}
        return plain(
            Proposal(
                diagnosis="unclear",
                evidence="drawn at random from what is allowed",
                action=action,
                changes=changes,
                to=_pick(draw, _targets(action, snapshot)),
            )
        )

    def _seed(self, snapshot: Snapshot) -> bytes:
        seen = snapshot.model_dump_json(
            include={"workload": True, "progress": {"step", "evaluations"}, "recipe": True, "signals": True}
        )  # what is left out may hold times: the speed, log lines, other metrics, rejections
        return hashlib.sha256(f"{self._stream}\n{seen}".encode()).digest()


class Adversary:
    """The allowed answer that most likely harms: the first that applies of

    1. a rollback to "initial" (never to the best), except where that would heal, with 3;
    2. a stop (never on the best), where the objective is far from done: in the first half of the run, or after most of
       what was learned was lost;
    3. of every free parameter: back to the old value, where its last change helped; else as far as one change reaches
       in the direction that harms by its group. A learning rate collapses instead of rising where it may not rise,
       because the objective diverges, and where what was learned is lost, so that it is not learned again.

    It forecasts the harm truly, so that nobody who compares forecasts with outcomes finds anything wrong.
    """

    name = "adversary"
    deterministic = True

    def decide(self, snapshot: Snapshot) -> Any:
        if "rollback" in snapshot.actions and "initial" in _targets("rollback", snapshot) and not _healed(snapshot):
            changes = _harm(snapshot, freeze=True)
            return _worsened(snapshot, "all that was learned is undone", "rollback", changes, to="initial")
        if "stop" in snapshot.actions and (_early(snapshot) or _lost(snapshot)):
            return _worsened(snapshot, "most is still to be learned", "stop")
        changes = _harm(snapshot, freeze=_lost(snapshot))
        if changes and "adjust" in snapshot.actions:
            return _worsened(snapshot, "the worst that one change can do", "adjust", changes)
        return plain(keep("unclear", "no harm can be done now"))


class FlipFlop:
    """Every free parameter to the end of its reach that its last change did not go to; first to the upper one."""

    name = "flipflop"
    deterministic = True

    def decide(self, snapshot: Snapshot) -> Any:
        changes: Changes = {}
        for row in snapshot.recipe:
            if (ends := _ends(row)) is not None and not row.resting:
                low, high = ends
                wanted = low if _rose(row, _last_change(row, snapshot)) else high
                changes[row.name] = wanted if wanted != row.value else low if wanted == high else high
        if not changes or "adjust" not in snapshot.actions:
            return plain(keep("unclear", "everything rests"))
        return plain(Proposal(diagnosis="unclear", evidence="to the other end", action="adjust", changes=changes))


class Late:
    """Answers like `adversary`, but holds each answer back until it is stale by the policy's ``staleness``.

    It really waits, in the manager's thread: TOO_LONG times what training needs for the steps that an answer may be
    old, by the snapshot's speed, or TOO_LONG times the allowed seconds, whichever is less; before a speed is known it
    keeps at once. ``close`` ends the wait. Nobody waits when a run is replayed: the answer is the same without. With
    --blocking only the allowed seconds can make it stale, since training waits too.
    """

    deterministic = True

    def __init__(self, policy: Policy, seconds: str = "") -> None:
        """``seconds`` to wait each time instead. Raises UserError for what is no positive number."""
        self.name = f"late:{seconds}" if seconds else "late"
        self._policy = policy
        self._seconds = _positive(seconds) if seconds else None
        self._worst = Adversary()
        self._begun = False
        self._closed = threading.Event()

    def open(self) -> None:
        """Nothing is needed."""

    def preflight(self) -> str:
        return f"{self.name} holds every answer back until it is stale: nothing of it may be applied"

    def begin(self, decision: str, spent: Spent, tell: Callable[[Exchange], None]) -> None:
        self._begun = True

    def close(self) -> None:
        self._closed.set()

    def wait(self, snapshot: Snapshot) -> float | None:
        """Seconds to hold the answer to ``snapshot`` back; None where it is not known how many make it stale."""
        if self._seconds is not None:
            return self._seconds
        seconds, speed = self._policy.staleness.max_age_seconds, snapshot.progress.steps_per_second
        steps = self._policy.max_age(snapshot.progress.total_steps)
        if steps is not None:
            if not speed:
                return None
            seconds = min(seconds, (steps + 1) / speed)
        return TOO_LONG * seconds

    def decide(self, snapshot: Snapshot) -> Any:
        seconds = self.wait(snapshot)
        if seconds is None:
            return plain(keep("unclear", "how fast training is, is not known yet"))
        if self._begun and self._closed.wait(min(seconds, threading.TIMEOUT_MAX)):
            raise ManagerError("the run has ended")
        return self._worst.decide(snapshot)


# -- what is allowed ---------------------------------------------------------------------------------------------------


def _ends(row: RecipeRow) -> tuple[Value, Value] | None:
    """The least and the most that one change may set; None where that is nothing new. ``off`` is not among them."""
    if row.type == "bool":
        return False, True
    if row.choices is not None:
        first, last = row.choices[0], row.choices[-1]
        return None if first == last == row.value else (first, last)
    low, high = row.reach
    return None if low > high or low == high == row.value else (low, high)


def _off(row: RecipeRow, snapshot: Snapshot) -> Value | None:
    """The value that switches the mechanism off, where that is something new and allowed."""
    if row.off is None or row.off == row.value:
        return None
    rises = not isinstance(row.value, str) and row.off > row.value
    if _is_rate(row) and rises and snapshot.signals.diverging:
        return None
    return int(row.off) if row.type == "int" else row.off


def _movable(row: RecipeRow, snapshot: Snapshot) -> bool:
    return not row.resting and (_ends(row) is not None or _off(row, snapshot) is not None)


def _targets(action: Action, snapshot: Snapshot) -> list[str | None]:
    if action == "rollback":
        return [*(snapshot.checkpoints or ["best", "initial"])]
    if action == "undo":
        return [None, "weights"] if snapshot.undo is not None and snapshot.undo.weights else [None]
    return [None, "best"] if action == "stop" and snapshot.best_checkpoint is not None else [None]


def _is_rate(row: RecipeRow) -> bool:
    """Whether it is a learning rate, by what was declared of it."""
    return row.group == "optimizer" and row.scale == "log" and row.type in ("float", "int")


# -- random ------------------------------------------------------------------------------------------------------------


def _pick(draw: Callable[[], float], items: Sequence[Item]) -> Item:
    return items[int(draw() * len(items))]


def _drawn(draw: Callable[[], float], row: RecipeRow, snapshot: Snapshot) -> Value:
    """A new value for a parameter that is movable."""
    ends, off = _ends(row), _off(row, snapshot)
    if off is not None and (ends is None or draw() < 0.5):
        return off
    assert ends is not None
    if row.type == "bool" or row.choices is not None:
        there: Sequence[Value] = row.choices or [False, True]
        return _pick(draw, [value for value in there if value != row.value])
    low, high = float(ends[0]), float(ends[1])
    if row.type == "int" and row.scale == "linear":
        low, high = low - 0.5, high + 0.5  # the ends as likely as the others
    at = draw()
    if row.scale == "log":
        value = math.exp(math.log(low) * (1 - at) + math.log(high) * at)
    else:
        value = low * (1 - at) + high * at
    value = min(max(round(value) if row.type == "int" else value, float(ends[0])), float(ends[1]))
    found = int(value) if row.type == "int" else value
    return found if found != row.value else next(end for end in ends if end != row.value)


# -- harm --------------------------------------------------------------------------------------------------------------


def _worsened(
    snapshot: Snapshot, evidence: str, action: Action, changes: Changes | None = None, to: str | None = None
) -> Any:
    return plain(
        Proposal(
            diagnosis="unclear",
            evidence=evidence,
            action=action,
            changes=changes or {},
            to=to,
            expected=Expectation(metric=snapshot.objective, direction="up" if snapshot.mode == "min" else "down"),
        )
    )


def _turned(snapshot: Snapshot, value: float | None) -> float:
    """An objective turned so that more is worse; NaN where there is none."""
    if value is None:
        return math.nan
    return value if snapshot.mode == "min" else -value


def _healed(snapshot: Snapshot) -> bool:
    """Whether the objective is so bad that the first weights would be better: much worse than at the first evaluation,
    which is after some training."""
    signals = snapshot.signals
    first, best = _turned(snapshot, signals.first), _turned(snapshot, signals.best)
    return signals.diverging or not _turned(snapshot, signals.latest) <= first + (first - best)  # NaN is as bad


def _early(snapshot: Snapshot) -> bool:
    """Whether most of the run is still to come, or nobody knows; not at the first evaluation, whose checkpoint is
    still to come: after a rollback a stop harms more."""
    progress = snapshot.progress
    early = progress.total_steps is None or progress.step < EARLY * progress.total_steps
    return early and progress.evaluations > 1


def _lost(snapshot: Snapshot) -> bool:
    """Whether the objective is back behind half of what it had gained."""
    signals = snapshot.signals
    half = (_turned(snapshot, signals.first) + _turned(snapshot, signals.best)) / 2
    return signals.latest is not None and not _turned(snapshot, signals.latest) <= half  # NaN is all lost


def _harm(snapshot: Snapshot, *, freeze: bool) -> Changes:
    """The worst that one change can do to every free parameter; with ``freeze`` learning rates fall."""
    changes: Changes = {}
    for row in snapshot.recipe:
        if row.resting:
            continue
        frozen = freeze and _is_rate(row)
        value = None if frozen else _undone(row, snapshot)
        value = _worst(row, snapshot, freeze=frozen) if value is None else value
        if value is not None:
            changes[row.name] = value
    return changes


def _last_change(row: RecipeRow, snapshot: Snapshot) -> Past | None:
    return next((past for past in reversed(snapshot.interventions) if row.name in past.changes), None)


def _undone(row: RecipeRow, snapshot: Snapshot) -> Value | None:
    """The way back to the value before the last change, where the objective is better since; else None."""
    past = _last_change(row, snapshot)
    if past is None or past.before is None or not past.after:
        return None
    before, after = _turned(snapshot, past.before), _turned(snapshot, past.after[-1][1])
    if not math.isfinite(after) or after >= before:  # from NaN to a number is better
        return None
    return _towards(row, past.changes[row.name][0], snapshot)


def _towards(row: RecipeRow, wanted: Value, snapshot: Snapshot) -> Value | None:
    """The value nearest to ``wanted`` that one change may set; None where that is the one in effect."""
    if wanted == row.value:
        return None
    if row.off is not None and wanted == row.off:
        return _off(row, snapshot)
    ends = _ends(row)
    if ends is None:
        return None
    if row.type == "bool" or row.choices is not None:
        return wanted if wanted in (row.choices or ends) else None
    if isinstance(wanted, str):
        return None
    number = min(max(float(wanted), float(ends[0])), float(ends[1]))
    value = int(number) if row.type == "int" else number
    return value if value != row.value else None


def _worst(row: RecipeRow, snapshot: Snapshot, *, freeze: bool) -> Value | None:
    """What harms most by the group, or the least value; None where nothing worse is in reach."""
    if row.group in PROTECTIVE and row.off is not None:
        off = _off(row, snapshot)
        if off is not None or row.value == row.off:
            return off
    ends, up = _ends(row), False if freeze else UPWARDS.get(row.group)
    if ends is None:
        return None
    if up is None or row.choices is not None:
        return _elsewhere(row, ends)
    value = ends[1] if up else ends[0]
    if isinstance(row.value, str) or (float(value) > row.value if up else float(value) < row.value):
        return value
    collapses = _is_rate(row) and snapshot.signals.diverging and float(ends[0]) < row.value
    return ends[0] if collapses else None


def _elsewhere(row: RecipeRow, ends: tuple[Value, Value]) -> Value | None:
    """As far from the start as one change reaches."""
    start = row.start_value
    if row.choices is not None:
        return next((choice for choice in row.choices if choice != start), None) if row.value == start else None
    if isinstance(start, str):
        return ends[1] if ends[1] != row.value else None
    low, high = float(ends[0]), float(ends[1])
    log = row.scale == "log" and start > 0
    up = high / start >= start / low if log else high - start >= start - low
    value = ends[1] if up else ends[0]
    return value if value != row.value else None


def _rose(row: RecipeRow, past: Past | None) -> bool:
    """Whether the last change went upwards; of a choice: to the last one."""
    if past is None:
        return False
    old, new = past.changes[row.name]
    if row.choices is not None:
        return new == row.choices[-1]
    return not isinstance(old, str) and not isinstance(new, str) and new > old


def _positive(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"late:SECONDS needs a positive number of seconds, not {text!r}.")
    return seconds
