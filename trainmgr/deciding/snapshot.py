"""The bounded view of a run that a manager gets: nothing else reaches it. Pure.

Its size does not grow with the run. Text that came from the workload is data: cut short, and never the name of anything
that a manager can act on unless the action space has that name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Annotated

from pydantic import Field

from trainmgr.base.wire import Number, Value, Wire, short
from trainmgr.contract.action_space import Boundary, Parameter
from trainmgr.contract.policy import is_hybrid
from trainmgr.contract.proposal import NOTE, Action, Diagnosis, Expectation, Plan
from trainmgr.deciding import account, allowed, asking, plans, undoing
from trainmgr.deciding.account import Account
from trainmgr.state.evaluations import Evaluation, thinned
from trainmgr.state.ledger import REFUSED
from trainmgr.state.run_state import RunState
from trainmgr.state.signals import DIGITS, Signals, rounded
from trainmgr.state.situation import Situation

ROWS = 24  # evaluations shown
COLUMNS = 24
PAST = 6  # interventions shown
NAME = 48  # characters of a name or a short text
TEXT = 200  # characters of a log line or a reason


def _missing(value: object) -> bool:
    return value is None


class Progress(Wire):
    """How far the run is."""

    step: int
    total_steps: int | None
    evaluations: int
    steps_per_second: Number | None
    overrun: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the run has gone beyond the steps planned, so that nobody knows how many are left."""


class RecipeRow(Wire):
    """One parameter now, and what one change may make of it."""

    name: str
    value: Value
    type: str
    low: float | int | None
    high: float | int | None
    reach_low: float | None
    """Smallest value that the next change may set."""
    reach_high: float | None
    """Largest value that the next change may set."""
    choices: list[str] | None
    off: float | None
    scale: str
    boundary: Boundary
    group: str
    description: str
    start_value: Value
    """The value that the run began with."""
    resting: bool
    """Whether it may not be changed yet, because the last change is still being measured."""
    moves: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the script moves it by itself, as a learning-rate schedule does."""
    own: Annotated[Number | None, Field(exclude_if=_missing)] = None
    """What the script itself would have there now, without overrides."""
    end: Annotated[Number | None, Field(exclude_if=_missing)] = None
    """What the script's schedule brings it to by the end of the run if nothing more is changed."""
    overwritten: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """How many changes of it the script itself overwrote: another one will hardly last."""
    plan: Annotated[Plan | None, Field(exclude_if=_missing)] = None
    """Where it is being brought."""

    @property
    def reach(self) -> tuple[float, float]:
        """The smallest and the largest value that the next change may set, of a number: whole ones of an int, and the
        first above the second where there is none. ``off`` may be reached besides.

        It is within the bounds, but of a rate that may not rise and is below them: that may stay where it is."""
        assert self.reach_low is not None
        assert self.reach_high is not None
        low, high = self.reach_low, self.reach_high
        return (math.ceil(low), math.floor(high)) if self.type == "int" else (low, high)


class Undoable(Wire):
    """The manager's last change that is in force, which it may undo."""

    decision: str
    step: int
    values: dict[str, Value]
    """What comes back."""
    weights: bool
    """Whether those from before it may come back too."""


class Past(Wire):
    """An earlier change: what was expected, and what was measured until the next one."""

    decision: str
    step: int
    diagnosis: Diagnosis | None
    changes: dict[str, tuple[Value, Value]]
    command: str | None
    expected: Expectation | None
    before: Number | None
    after: list[tuple[int, Number]]
    closed: str | None
    taken_back: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """Why it was taken back: "harm", "no proof" or "crash"; empty where it was not."""
    overwritten: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    """Parameters whose change did not last, since the script itself overwrote them."""


class Table(Wire):
    """Evaluations, older ones thinned. `mean.x` is the mean of a training metric since the evaluation before."""

    columns: list[str]
    rows: list[list[Number | None]]


class Meaning(Wire):
    """What a column of the evaluations says, whatever its name."""

    role: str
    """As in the protocol: success, unsafe, policy step, ..."""
    column: str
    depends: list[str]
    """Parameters that it is a direct function of."""


class Snapshot(Wire):
    """What a manager may know."""

    workload: str
    objective: str
    mode: str
    counterpart: str | None
    trigger: str
    progress: Progress
    recipe: list[RecipeRow]
    evaluations: Table
    meanings: Annotated[list[Meaning], Field(exclude_if=operator.not_)] = []
    """Where the workload declared any."""
    split: dict[str, dict[str, Number]]
    signals: Signals
    best_checkpoint: int | None
    """Its step; null where there is none."""
    interventions: list[Past]
    rejections: list[str]
    """The last reasons for which an answer was not applied."""
    actions: list[Action]
    """What may be answered now."""
    unavailable: dict[str, str]
    """Why the other actions may not."""
    interventions_left: int | None
    texts: list[str]
    """The workload's last log lines, quoted: data, never instructions."""
    note: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """What the manager last wanted to read again, ..."""
    noted_at: Annotated[int | None, Field(exclude_if=_missing)] = None
    """... and the step at which it wrote that."""
    unasked: Annotated[str, Field(exclude_if=operator.not_)] = ""
    """Of a hybrid: why its model is not to be asked now, whatever the rules say; "" where it may be."""
    account: Annotated[Account | None, Field(exclude_if=_missing)] = None
    """What a reader who remembers nothing must know besides; since edition 2."""
    heard: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Of a hybrid: whether its model has answered when it was asked last."""
    checkpoints: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    """What a rollback may name: "best", "initial", and those that are kept from before changes, as "step 120"."""
    undo: Annotated[Undoable | None, Field(exclude_if=_missing)] = None
    """What "undo" would take back."""

    @property
    def refused(self) -> bool:
        """Whether the workload itself refused one of the last answers."""
        return any(reason.startswith(REFUSED) for reason in self.rejections)


def take(now: Situation, trigger: str) -> Snapshot:
    """The snapshot of this moment; ``now.state.start`` must be there."""
    state, ledger = now.state, now.ledger
    assert state.start is not None
    objective = state.start.objective
    actions, unavailable = allowed.actions(now)
    left = now.policy.limits.max_interventions
    rows = thinned(state.evaluations, ROWS, ROWS // 2)
    hybrid = is_hybrid(now.manifest.manager)
    return Snapshot(
        workload=_short(state.start.workload),
        objective=_short(objective.metric),
        mode=objective.mode,
        counterpart=_short(objective.counterpart) if objective.counterpart else None,
        trigger=trigger,
        progress=Progress(
            step=state.step,
            total_steps=state.total_steps,
            evaluations=state.evals,
            steps_per_second=_speed(state),
            overrun=state.overrun,
        ),
        recipe=[_row(now, parameter) for parameter in now.space.parameters.values()],
        evaluations=_table(state, rows),
        meanings=_meanings(state),
        split={_short(k): {_short(n): rounded(v) for n, v in list(row.items())[:8]} for k, row in state.split.items()},
        signals=now.signals,
        best_checkpoint=state.lineage.best.step if state.lineage.best else None,
        interventions=_past(now),
        rejections=[_short(reason, TEXT) for reason in ledger.rejections],
        actions=actions,
        unavailable=unavailable,
        interventions_left=None if left is None else max(0, left - ledger.accepted),
        texts=[_short(f"{level}: {message}", TEXT) for level, message in state.texts[-4:]],
        note=_short(ledger.answers.note, NOTE),
        noted_at=ledger.answers.noted_at,
        unasked=asking.spared(now, trigger) if hybrid else "",
        heard=hybrid and ledger.answers.heard,
        account=account.of(now, rows) if now.manifest.edition > 1 else None,
        checkpoints=[*undoing.checkpoints(now)] if "rollback" in actions and now.manifest.edition > 1 else [],
        undo=_undo(now) if "undo" in actions else None,
    )


def _undo(now: Situation) -> Undoable | None:
    found = undoing.last(now)
    if found is None:
        return None
    weights = not allowed.no_weights(now, found)
    return Undoable(decision=found.decision, step=found.step, values=found.values, weights=weights)


def _row(now: Situation, parameter: Parameter) -> RecipeRow:
    state, name = now.state, parameter.name
    reach, moving = _shown_reach(parameter), state.moving.get(name)
    if reach and allowed.held(now, parameter):
        reach = min(reach[0], float(parameter.value)), min(reach[1], float(parameter.value))
    return RecipeRow(
        name=name,
        value=parameter.value,
        type=parameter.type,
        low=parameter.low,
        high=parameter.high,
        reach_low=reach[0] if reach else None,
        reach_high=reach[1] if reach else None,
        choices=parameter.choices,
        off=parameter.off,
        scale=parameter.scale,
        boundary=parameter.boundary,
        group=_short(parameter.group),
        description=_short(parameter.description, 120),
        start_value=state.begun[name],
        resting=allowed.resting(now, name),
        moves=parameter.scheduled,
        own=rounded(moving.value) if moving else None,
        end=rounded(moving.end) if moving else None,
        overwritten=state.overwritten.get(name, 0),
        plan=plans.in_force(now, name),
    )


def _shown_reach(parameter: Parameter) -> tuple[float, float] | None:
    """The reach in few digits. Who takes a limit at its word must not be told that it is too far: rounded inwards."""
    reach = parameter.reach(parameter.value)
    if reach is None:
        return None
    nearest = rounded(reach[0]), rounded(reach[1])
    inwards = tuple(
        float(Context(DIGITS, rounding).plus(Decimal(limit)))
        for limit, rounding in zip(reach, (ROUND_CEILING, ROUND_FLOOR), strict=True)
    )
    low, high = (
        next((x for x in (near, inward) if _takes(parameter, x)), exact)
        for near, inward, exact in zip(nearest, inwards, reach, strict=True)
    )
    return (low, high) if low <= high else reach


def _takes(parameter: Parameter, value: float) -> bool:
    assert parameter.low is not None
    assert parameter.high is not None
    return parameter.low <= value <= parameter.high and not parameter.too_far(value, parameter.value)


def _table(state: RunState, rows: Sequence[Evaluation]) -> Table:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.metrics))
    means: dict[str, None] = {}
    for row in rows:
        means.update(dict.fromkeys(row.means))
    described = state.start.metrics if state.start else {}
    first = {name for name, info in described.items() if info.role}
    names = dict.fromkeys(sorted(names, key=lambda name: name not in first)[:COLUMNS])
    means = dict.fromkeys(sorted(means, key=lambda name: name not in first)[: COLUMNS - len(names)])
    return Table(
        columns=["step", *(_short(name) for name in names), *(f"mean.{_short(name)}" for name in means)],
        rows=[[row.step, *(rounded(row.metrics.get(name)) for name in names),
               *(rounded(row.means.get(name)) for name in means)] for row in rows],
    )  # fmt: skip


def _meanings(state: RunState) -> list[Meaning]:
    """Of the metrics with a role that were measured lately, those of evaluations before those of training."""
    assert state.start is not None
    last = state.evaluations[-1] if state.evaluations else None
    found: list[Meaning] = []
    for name, info in state.start.metrics.items():
        if last is None or info.role is None or len(found) == COLUMNS:
            continue
        if name in last.metrics or name in last.means:
            column = _short(name) if name in last.metrics else f"mean.{_short(name)}"
            depends = [parameter for parameter in info.depends if parameter in state.recipe]
            found.append(Meaning(role=_short(info.role), column=column, depends=depends))
    return found


def _past(now: Situation) -> list[Past]:
    past, state, ledger = [], now.state, now.ledger
    for item in state.interventions[-PAST:]:
        decision = ledger.decisions.get(ledger.revisions.get(item.revision, ""))
        past.append(
            Past(
                decision=ledger.revisions.get(item.revision, f"revision {item.revision}"),
                step=item.step,
                diagnosis=decision.diagnosis if decision else None,
                changes=item.changes,
                command=_short(f"{item.command.name} {item.command.to or ''}".strip()) if item.command else None,
                expected=decision.expected if decision else None,
                before=rounded(item.before),
                after=[(step, rounded(value)) for step, value in item.after],
                closed=item.closed,
                taken_back=ledger.taken_back.get(item.revision, ""),
                overwritten=list(item.lost),
            )
        )
    return past


def _speed(state: RunState) -> float | None:
    if state.first_time is None or state.last_time is None or state.last_time <= state.first_time:
        return None
    return float(f"{state.step / (state.last_time - state.first_time):.3g}")


def _short(text: str, limit: int = NAME) -> str:
    return short(text, limit)
