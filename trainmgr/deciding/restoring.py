"""What goes back: values and weights from before a change, the recipe of the start, the best at the end. Pure."""

from __future__ import annotations

import math

from trainmgr.base.wire import Value
from trainmgr.contract import events, forecast
from trainmgr.contract.protocol import Command
from trainmgr.state.lineage import Saved
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.state.trial import Trial, multiplied

ROLLBACK = "rollback"  # the name under which trust in that command is kept


def expect(state: RunState) -> forecast.Forecast:
    """What the objective would be without the change that was applied just now."""
    assert state.start is not None
    goal = state.start.objective
    values = [value for _, value in state.lineage.course_before]
    best = state.best[1] if state.best else None
    return forecast.predict(values, evals=state.evals, mode=goal.mode, best=best, scale=goal.scale)


# -- values and weights ------------------------------------------------------------------------------------------------


def restored(now: Situation, gone: list[Trial], *, start: bool) -> dict[str, Value]:
    """The values from before what is taken back, but for what a later change has moved on; or those of the start.

    A change that is on its way may take effect before it is superseded: what it would move is named too. Parts of plans
    that stay are taken over.
    """
    state, ledger, space = now.state, now.ledger, now.declared.parameters
    values, movements = dict[str, Value](), dict[str, Value]()
    shares: dict[str, float] = {}
    newer: set[str] = set()  # what a change that stays has made something else of since
    for trial in reversed(ledger.trials):
        if trial in gone:
            values.update({name: value for name, value in trial.before.items() if name not in newer})
            shares = multiplied(trial.shares, shares)
        else:
            newer |= trial.before.keys()
    for name in values.keys() & shares.keys() & state.moving.keys() & space.keys():  # the script has moved it on since
        value, parameter = state.recipe[name], space[name]
        if isinstance(value, float) and parameter.low is not None and parameter.high is not None:
            values[name] = min(max(value * shares[name], float(parameter.low)), float(parameter.high))
    if start:
        values.update({name: state.begun[name] for name in space if not space[name].scheduled})
        values.update({name: moving.value for name, moving in state.moving.items() if name in ledger.in_force})
    if ledger.outstanding is not None:
        wanted, held, parts = ledger.outstanding.params, ledger.held, _parts(now, ledger.outstanding.revision, gone)
        movements = {name: wanted[name] if name in parts else state.recipe[name]
                     for name in wanted if wanted[name] != held.get(name) and name in space}  # fmt: skip
    return {
        name: value
        for name, value in {**movements, **values}.items()
        if name in space
        and space[name].objection(value) is None
        and (name in movements or value != state.recipe[name] or value != ledger.in_force.get(name, value))
    }


def _parts(now: Situation, revision: int, gone: list[Trial]) -> set[str]:
    """The parameters that only go on in a revision, with plans that nothing is wrong with."""
    plans, taken_back = now.ledger.plans, {decision for trial in gone for decision in trial.decisions}
    go_on = plans.of(revision).go_on & plans.underway.keys()
    return {name for name in go_on if plans.underway[name].decision not in taken_back}


def rollback(state: RunState, name: str, back: Saved | None) -> Command | None:
    """The command that brings these weights back."""
    if back is None:
        return None
    return Command(id=name, name="rollback", to="best" if back == state.lineage.best else back.path)


# -- the recipe of the start -------------------------------------------------------------------------------------------


def challenger(now: Situation) -> dict[str, Value]:
    """The values of the start that are to be put on trial now; empty where it is not time, or they are in force."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    if not watch.challenge_evals or not ledger.on_probation or ledger.outstanding is not None or state.best is None:
        return {}
    if not can_go_back(now) or "divergence" in ledger.alarms or not math.isfinite(state.measured[-1][2]):
        return {}
    changes = [at for at in (*state.changed_at.values(), state.rollback_at) if at is not None]
    if state.evals - max(changes, default=state.evals) < watch.patience:  # what was taken back must be seen to be back
        return {}
    waited = min(state.evals_since_best, state.evals - ledger.challenged_at)
    if waited < watch.challenge_evals * 2**ledger.challenges:
        return {}
    if state.evals_left is not None and state.evals_left < watch.window_evals + 1:
        return {}
    space = now.declared.parameters
    return {
        name: state.begun[name]
        for name in ledger.in_force
        if name in space
        and not space[name].scheduled
        and state.recipe[name] != state.begun[name]
        and space[name].objection(state.begun[name]) is None
    }


def can_go_back(now: Situation) -> bool:
    """Whether the weights from before a challenge can be kept, and had back: nobody asked for it."""
    wanted = now.policy.actions.rollback and now.policy.probation.checkpoint
    return wanted and {"checkpoint", "rollback"} <= {*now.declared.commands}


def challenged(now: Situation, values: dict[str, Value]) -> events.Challenged:
    state = now.state
    assert state.best is not None
    age = now.policy.max_age(state.total_steps)
    return events.Challenged(
        decision=f"probation{now.ledger.revision + 1}",
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        step=state.evaluations[-1].step,
        measured=state.latest,
        best=state.best[1],
        best_step=state.best[0],
        evals=state.evals,
        parameters=values,
        valid_until_step=None if age is None else state.step + age,
    )


# -- the end -----------------------------------------------------------------------------------------------------------


def ending(now: Situation) -> events.Ending | None:
    """The last evaluation before the end is worse than the best, and the workload can end on that."""
    state = now.state
    if "stop" not in now.declared.commands or state.lineage.best is None or state.best is None:
        return None
    value = state.latest
    if not state.nearly_over or value is None or state.worse(value) <= state.worse(state.best[1]):
        return None
    name = f"probation{now.ledger.revision + 1}"
    return events.Ending(
        decision=name,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        step=state.evaluations[-1].step,
        measured=value,
        best=state.best[1],
        best_step=state.best[0],
        command=Command(id=name, name="stop", to="best"),
    )
