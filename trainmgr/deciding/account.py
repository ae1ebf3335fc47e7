"""What a reader who remembers nothing must know of a run besides its figures: what it is, how much of it is left, every
change with what came of it, and what the manager itself said. Part of a snapshot since edition 2. Pure.

Its size does not grow with the run.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from trainmgr.base.wire import Number, Value, Wire, moved, short
from trainmgr.contract import protocol
from trainmgr.contract.proposal import Diagnosis, Plan
from trainmgr.deciding import allowed, asking, probation
from trainmgr.state.changes import Change
from trainmgr.state.evaluations import Evaluation
from trainmgr.state.run_state import RunState
from trainmgr.state.signals import rounded
from trainmgr.state.situation import Situation
from trainmgr.state.trial import Trial

NAME = 48  # characters of a name
DESCRIPTION = 160
TOGETHER = 16  # parameters of one change that are told
REPEATED = 3  # changes whose expectation and falsifier are given back
FALSIFIER = 300  # characters of one that are given back
SURELY = 2.0  # times the noise: a difference that says something

Kind = Literal["supervised", "reinforcement learning", "several losses"]
ROLES = {"success", "unsafe", "policy step", "action noise"}  # of metrics, in reinforcement learning


def _missing(value: object) -> bool:
    return value is None


class Told(Wire):
    """One change, and what came of it."""

    step: int
    """At which it took effect."""
    author: str
    """manager; or challenge: the recipe of the start, which was put on trial without being asked for."""
    diagnosis: Diagnosis | None
    changes: dict[str, tuple[Value, Value]]
    more: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Parameters that were changed besides."""
    plans: Annotated[dict[str, Plan], Field(exclude_if=operator.not_)] = {}
    command: Annotated[str, Field(exclude_if=operator.not_)] = ""
    fate: str
    """on trial; kept, neutral, harm, no proof, crash: what probation found; measured: what came, and nobody judges;
    open."""
    at: int | None
    """The step of the evaluation that said so; on trial: of the one that will, as far as can be told."""
    forecast: Number | None
    """The objective that was expected there without the change; on trial: now; of one that nobody judges, the one
    before it."""
    measured: Number | None
    undone: Annotated[bool, Field(exclude_if=operator.not_)] = False
    """Whether the weights went back with it."""


class Said(Wire):
    """What the manager expected of a change, and whether it came."""

    step: int
    metric: str
    direction: str
    by_step: int | None
    was: Number | None
    """The metric at the last evaluation before the change."""
    now: Number | None
    """The same at the first one from ``by_step`` on, or at the last; null where it is not measured."""
    at: int | None
    came: bool | None
    """Null where it is too early to say, or nobody can."""
    falsifier: str


class Spent(Wire):
    """What changes that were taken back have cost so far, in steps, and how much they may."""

    harm: int
    harm_limit: int
    idle: int
    """In trials that brought nothing since the last one that did."""
    idle_limit: int


class Account(Wire):
    """What a snapshot says besides, since edition 2."""

    kinds: list[Kind]
    facts: dict[str, Value]
    """As the workload declared them."""
    commands: list[str]
    """What the workload can be told to do."""
    every: int | None
    """Steps from one evaluation to the next, by the last two."""
    evals_left: int | None
    next_question: int | None
    """The step at which the manager is asked next, unless an alarm comes first."""
    questions_left: int | None
    """After this one."""
    scale: Number | None
    """What rise, noise and slope are fractions of."""
    level: Number | None
    """Where a change made now would be judged from; null where nobody judges, or nothing can be forecast."""
    ahead: Number | None
    """The objective that is forecast for the end of its trial without it."""
    changes: list[Told]
    before: Annotated[dict[str, int], Field(exclude_if=operator.not_)] = {}
    """Earlier changes, by their fate."""
    said: list[Said]
    definitions: dict[str, str]
    """Column of the evaluations to what it is, in the workload's words."""
    recipe: dict[str, list[Value | None]]
    """Parameters that had more than one value, to the one at each row of the evaluations."""
    marks: list[str]
    """What has to be known of each of these rows; mostly nothing."""
    spent: Annotated[Spent | None, Field(exclude_if=_missing)] = None
    """Null where nothing is on probation, or no number of steps is planned."""
    rests: Annotated[dict[str, int], Field(exclude_if=operator.not_)] = {}
    """Parameter to the step from which it may be changed again."""


def of(now: Situation, rows: Sequence[Evaluation]) -> Account:
    """The account of this moment; ``rows`` are the evaluations that the snapshot shows."""
    state, ledger = now.state, now.ledger
    assert state.start is not None
    every, left = state.spacing, state.evals_left
    following = probation.without(now) if ledger.on_probation else None
    window = now.policy.probation.window_evals
    return Account(
        kinds=kinds(state.start.metrics),
        facts={short(name, NAME): value for name, value in state.start.facts.items()},
        commands=list(state.start.commands),
        every=every,
        evals_left=None if left is None else math.floor(left),
        next_question=asking.next_question(now),
        questions_left=asking.questions_left(now),
        scale=rounded(state.start.objective.scale or (abs(state.best[1]) if state.best and state.best[1] else None)),
        level=rounded(following.level) if following else None,
        ahead=rounded(following.at(window)) if following else None,
        changes=[_told(now, change) for change in ledger.changes.listed],
        before=dict(ledger.changes.before),
        said=_said(now),
        definitions=_definitions(state, rows),
        recipe=_recipe(state, rows),
        marks=_marks(now, rows),
        spent=_spent(now),
        rests=_rests(now, every),
    )


def _spent(now: Situation) -> Spent | None:
    total, watch, ledger = now.state.total_steps, now.policy.probation, now.ledger
    if total is None or not ledger.on_probation:
        return None
    harm, idle = (math.floor(share * total) for share in (watch.loss_budget, watch.idle_limit))
    return Spent(harm=ledger.lost, harm_limit=harm, idle=ledger.idle_since, idle_limit=idle)


def kinds(metrics: dict[str, protocol.MetricInfo]) -> list[Kind]:
    """What sort of training this is, by the roles of its metrics."""
    roles = [info.role for info in metrics.values()]
    found: list[Kind] = ["reinforcement learning"] if ROLES.intersection(filter(None, roles)) else ["supervised"]
    return [*found, "several losses"] if roles.count("loss gradient") > 1 else found


def _told(now: Situation, change: Change) -> Told:
    changes, state = list(moved(change.changes).items()), now.state
    trial = next((trial for trial in now.ledger.trials if change.revision in trial.revisions), None)
    at, expected, measured = change.at, change.forecast, change.measured
    if trial is not None:
        at, expected, measured = _ends(now, trial), trial.forecast.at(state.evals - trial.forecast.evals), None
    return Told(
        step=change.step,
        author=change.author,
        diagnosis=change.diagnosis,
        changes=dict(changes[:TOGETHER]),
        more=max(0, len(changes) - TOGETHER),
        plans=change.plans,
        command=short(change.command, NAME),
        fate="on trial" if trial else change.fate,
        at=at,
        forecast=rounded(expected),
        measured=rounded(measured),
        undone=change.undone is not None,
    )


def _ends(now: Situation, trial: Trial) -> int | None:
    """The step at which a trial is over, as far as evaluations go on at the distance of the last two."""
    every = now.state.spacing
    window, done = now.policy.probation.window_evals, now.state.evals - trial.forecast.evals
    usual = None if every is None else now.state.evaluations[-1].step + max(0, window - done) * every
    return max((step for step in (usual, trial.until) if step is not None), default=None)


def _said(now: Situation) -> list[Said]:
    asked = [c for c in now.ledger.changes.listed if c.author == "manager" and (c.expected or c.falsifier)]
    return [_checked(now, change) for change in asked[-REPEATED:]]


def _checked(now: Situation, change: Change) -> Said:
    """What was expected, beside what came; a difference within the noise of before is none."""
    assert now.state.start is not None
    expected, goal = change.expected, now.state.start.objective
    metric = expected.metric if expected else goal.metric
    gone = now.ledger.changes.undone
    there = [(e.step, v) for e in now.state.evaluations
             if (v := asking.value(e, metric)) is not None and math.isfinite(v) and not gone(e.step)]  # fmt: skip
    before = [value for step, value in there if step <= change.step]
    was = before[-1] if before else None
    since = [(step, value) for step, value in there if step > change.step]
    by_step = expected.by_step if expected else None
    due = [pair for pair in since if by_step is not None and pair[0] >= by_step]
    at, value = due[0] if due else since[-1] if since else (None, None)
    came = None
    if expected and was is not None and value is not None and (due or by_step is None):
        noise = change.noise if metric == goal.metric else None
        rise, chance = value - was, SURELY * (noise or 0.0)
        came = {"up": rise > chance, "down": rise < -chance, "flat": abs(rise) <= chance}[expected.direction]
    return Said(
        step=change.step,
        metric=short(metric, NAME),
        direction=expected.direction if expected else "",
        by_step=by_step,
        was=rounded(was),
        now=rounded(value),
        at=at,
        came=came,
        falsifier=short(change.falsifier, FALSIFIER),
    )


def _definitions(state: RunState, rows: Sequence[Evaluation]) -> dict[str, str]:
    assert state.start is not None
    found: dict[str, str] = {}
    for name, info in state.start.metrics.items():
        column = _column(name, rows)
        if column and info.description:
            found[column] = short(info.description, DESCRIPTION)
    return found


def _column(name: str, rows: Sequence[Evaluation]) -> str | None:
    """Under which name a metric is in the table."""
    if any(name in row.metrics for row in rows):
        return short(name, NAME)
    return f"mean.{short(name, NAME)}" if any(name in row.means for row in rows) else None


def _recipe(state: RunState, rows: Sequence[Evaluation]) -> dict[str, list[Value | None]]:
    found = {}
    for name in state.recipe:
        values = [row.recipe.get(name) for row in rows]
        if len({repr(value) for value in (*values, state.recipe[name])}) > 1:
            found[name] = values
    return found


def _marks(now: Situation, rows: Sequence[Evaluation]) -> list[str]:
    back = [i.step for i in now.state.interventions if i.command is not None and i.command.name == "rollback"]
    changes, marks, before = now.ledger.changes, [], -1
    for row in rows:
        mark = ["the start's recipe on trial"] if changes.challenged(row.step) else []
        mark += ["undone"] if changes.undone(row.step) else []
        mark += ["after a rollback"] if any(before <= step < row.step for step in back) and not mark else []
        marks.append(", ".join(mark))
        before = row.step
    return marks


def _rests(now: Situation, every: int | None) -> dict[str, int]:
    """Until when parameters rest, as far as evaluations go on at the distance of the last two."""
    if every is None or not now.state.evaluations:
        return {}
    step, found = now.state.evaluations[-1].step, {}
    for name in now.space.parameters:
        found[name] = step + allowed.rest(now, name) * every
        if allowed.corrected(now, name):  # a correction answers for what it corrected, should that go back
            ends = [_ends(now, trial) or step for trial in now.ledger.trials if name in trial.before]
            found[name] = max(found[name], *ends)
    return {name: until for name, until in found.items() if until > step}
