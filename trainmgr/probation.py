"""The watch over what a manager changed: whether it harmed, and what is done then. Pure.

A change is on trial from the moment when it took effect until ``window_evals`` evaluations have come. What was measured
is compared with the forecast that was made from before the oldest change on trial. Effects that overlap are not told
apart: all changes on trial are taken back together.
"""

from __future__ import annotations

import math

from trainmgr import events, forecast
from trainmgr.ledger import Ledger, Trial
from trainmgr.policy import Policy
from trainmgr.protocol import Command
from trainmgr.run_state import RunState
from trainmgr.wire import Value

ROLLBACK = "rollback"  # the name under which trust in that command is kept


def expect(state: RunState) -> forecast.Forecast:
    """What the objective would be without the change that was applied just now."""
    assert state.start is not None
    goal = state.start.objective
    values = [value for _, value in state.course_before]
    best = state.best[1] if state.best else None
    return forecast.predict(values, evals=state.evals, mode=goal.mode, best=best, scale=goal.scale)


def assess(
    state: RunState, ledger: Ledger, policy: Policy, offset: int, sha256: str
) -> events.Reverted | events.Kept | events.Ending | None:
    """What follows from the last evaluation, as the event to put on record; to be asked again until it is None.

    ``offset`` and ``sha256`` say how much telemetry was read.
    """
    if ledger.started is None or ledger.ending or ledger.due or ledger.carrying or not state.evaluations:
        return None
    manifest, total = ledger.started.manifest, state.total_steps
    over = state.end is not None or (total is not None and state.step >= total)
    if over or state.start is None or manifest.replay_of is not None:
        return None
    if policy.watches(manifest.manager) and ledger.trials:
        oldest = ledger.trials[0]
        if harmed(state, oldest, policy):
            return _reverted(state, ledger, policy, offset, sha256)
        if state.evals - oldest.forecast.evals >= policy.probation.window_evals:
            return _kept(state, ledger, policy, offset, sha256)
    if policy.actions.end_on_best and manifest.mode != "shadow":
        return _ending(state, ledger, offset, sha256)
    return None


def harmed(state: RunState, trial: Trial, policy: Policy) -> bool:
    """Whether the objective is worse than was forecast before the change, by what the policy calls harm."""
    watch, found = policy.probation, excesses(state, trial)
    margin = trial.forecast.margin(watch.tolerance, watch.noise_factor)
    if not found or math.isinf(found[-1]) or margin <= 0:
        return bool(found) and math.isinf(found[-1])
    late, far = found[-watch.patience :], watch.catastrophe * margin
    lasting = len(late) == watch.patience
    if trial.forecast.noise is None:  # then it takes both
        return lasting and min(late) > far
    return found[-1] > far or (lasting and min(late) > margin)


def excesses(state: RunState, trial: Trial) -> list[float]:
    """How much worse than forecast each evaluation since was; infinite where it was not finite."""
    count = state.evals - trial.forecast.evals
    found = []
    rows = state.evaluations[-count:] if count > 0 else []
    for evals, row in enumerate(rows, start=count - len(rows) + 1):
        value, expected = state.objective_of(row), trial.forecast.at(evals)
        if value is not None and expected is not None:
            found.append(state.worse(value) - state.worse(expected) if math.isfinite(value) else math.inf)
    return found


def _reverted(state: RunState, ledger: Ledger, policy: Policy, offset: int, sha256: str) -> events.Reverted:
    assert state.start is not None
    watch, oldest = policy.probation, ledger.trials[0]
    saved = state.best_saved
    back = saved is not None and policy.actions.rollback and "rollback" in state.start.commands
    begun = max(oldest.step, saved.step) if back and saved is not None else oldest.step
    lost = max(1, state.step - begun)
    in_all, total = ledger.lost + lost, state.total_steps
    demoted = ledger.reversals >= watch.max_reversals if total is None else in_all > watch.loss_budget * total
    name = f"probation{ledger.revision + 1}"
    tried = [name for trial in ledger.trials for name in (*trial.before, *([ROLLBACK] if trial.rollback else []))]
    measured = state.latest
    return events.Reverted(
        decision=name,
        telemetry_offset=offset,
        telemetry_sha256=sha256,
        decisions=[decision for trial in ledger.trials for decision in trial.decisions][-32:],
        revisions=[revision for trial in ledger.trials for revision in trial.revisions][-32:],
        since=oldest.step,
        step=state.evaluations[-1].step,
        forecast=oldest.forecast.at(state.evals - oldest.forecast.evals),
        tolerance=oldest.forecast.margin(watch.tolerance, watch.noise_factor),
        measured=math.nan if measured is None else measured,
        parameters=_restored(state, ledger, demoted=demoted),
        command=Command(id=name, name="rollback", to="best") if back else None,
        trust={name: max(watch.least_trust, ledger.trust.get(name, 1.0) * watch.shrink) for name in tried},
        lost=lost,
        lost_in_all=in_all,
        demoted=demoted,
    )


def _restored(state: RunState, ledger: Ledger, *, demoted: bool) -> dict[str, Value]:
    """The values from before the oldest change on trial; at a demotion the whole recipe of the best evaluation.

    A change that is on its way may take effect before it is superseded: what it would move is named too.
    """
    assert state.start is not None
    space, values, moved = state.space.parameters, dict[str, Value](), dict[str, Value]()
    for trial in reversed(ledger.trials):
        values.update(trial.before)
    if demoted and state.best_recipe is not None:
        best = {name: value for name, value in state.best_recipe.items() if name in space}
        values.update({name: value for name, value in best.items() if not space[name].scheduled})
    if ledger.outstanding is not None:
        wanted, held = ledger.outstanding.params, ledger.held
        moved = {name: state.recipe[name] for name in wanted if wanted[name] != held.get(name) and name in space}
    return {
        name: value
        for name, value in {**moved, **values}.items()
        if name in space
        and space[name].objection(value) is None
        and (name in moved or value != state.recipe[name] or value != ledger.in_force.get(name, value))
    }


def _kept(state: RunState, ledger: Ledger, policy: Policy, offset: int, sha256: str) -> events.Kept:
    trial, watch = ledger.trials[0], policy.probation
    found = excesses(state, trial)
    since = state.evals - trial.forecast.evals
    helped = bool(found) and found[-1] < -(trial.forecast.noise or 0.0)
    doubted = [name for name in (*trial.before, *([ROLLBACK] if trial.rollback else [])) if name in ledger.trust]
    return events.Kept(
        decisions=list(trial.decisions),
        revisions=list(trial.revisions),
        telemetry_offset=offset,
        telemetry_sha256=sha256,
        step=state.evaluations[-1].step,
        forecast=trial.forecast.at(since),
        measured=state.latest,
        helped=helped,
        trust={name: min(1.0, ledger.trust[name] * watch.grow) for name in doubted} if helped else {},
    )


def _ending(state: RunState, ledger: Ledger, offset: int, sha256: str) -> events.Ending | None:
    """The last evaluation before the end is worse than the best, and the workload can end on that."""
    assert state.start is not None
    if "stop" not in state.start.commands or state.best_saved is None or state.best is None:
        return None
    value = state.latest
    if not state.nearly_over or value is None or state.worse(value) <= state.worse(state.best[1]):
        return None
    name = f"probation{ledger.revision + 1}"
    return events.Ending(
        decision=name,
        telemetry_offset=offset,
        telemetry_sha256=sha256,
        step=state.evaluations[-1].step,
        measured=value,
        best=state.best[1],
        best_step=state.best[0],
        command=Command(id=name, name="stop", to="best"),
    )
