"""The watch over what a manager changed: whether it harmed, whether it helped, and what is done then. Pure.

Each change is on trial by itself, from the moment when it took effect until ``window_evals`` evaluations have come, or
longer where it asked for that or is on its way to something good. What is measured is compared with the forecast that
was made from before it.

- Harm is judged all the time. It is put down to the last change whose forecast it violates: that one is taken back, the
  weights too, and what is left on trial is measured anew from there. If the harm goes on, the one before is next.
- What has brought something stays. What did neither good nor harm stays where that costs nothing, and is put back
  otherwise, without the weights and without a grudge: a forecast cannot see a harm that looks like what went before.
- A change that puts back what another had changed ends the trial of that one without a verdict. What that one did to
  the weights is held against the forecast from before it all the same, or nobody would have to answer for harm.

A proof does not last for ever. Where nothing new was learned for ``challenge_evals`` evaluations, the recipe of the
start goes on trial in place of the one that a manager has made, and stays unless it harms: a recipe that has proven
itself by luck must not keep a run where it is.

Runs up to edition 1 are judged by ``jointly``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from trainmgr.base.wire import Value, moved
from trainmgr.contract import events, protocol
from trainmgr.contract.forecast import Forecast, predict, rough_noise
from trainmgr.contract.proposal import Proposal
from trainmgr.contract.protocol import Command
from trainmgr.deciding import allowed, jointly, undoing
from trainmgr.deciding.restoring import (
    ROLLBACK,
    challenged,
    challenger,
    ending,
    expect,
    restored,
    rollback,
)
from trainmgr.deciding.verdicts import (
    ROUNDING,
    beats,
    built_on,
    cost,
    costs_nothing,
    harmed,
    margin,
    over,
    promising,
    proven,
    surely_gained,
)
from trainmgr.state.lineage import LATER, TRIAL, Saved
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.state.trial import Trial, same

Why = Literal["harm", "no proof", "crash"]
LATE = 1 / 3  # of the run: its last part, in which the recipe of the start tells nothing any more


def judge_after(proposal: Proposal, now: Situation) -> int | None:
    """For how many steps a change that asks for it is not judged to have brought nothing: what the policy allows, and
    what the loss budget would bear. None for what it has anyway."""
    total, spare = now.state.total_steps, undoing.spare(now)
    if proposal.judge_after is None or total is None or spare is None or proposal.action not in ("adjust", "rollback"):
        return None
    most = min(int(now.policy.probation.longest_trial * total), spare)
    return min(proposal.judge_after, most) if min(proposal.judge_after, most) > 0 else None


def keeps(now: Situation, command: Command | None) -> str | None:
    """The name under which the workload keeps its weights before a change; None where it cannot, or need not, or would
    overwrite what the command goes back to."""
    ledger, kept = now.ledger, now.state.lineage.trial
    wanted = ledger.on_probation and now.policy.probation.checkpoint and "checkpoint" in now.declared.commands
    if now.manifest.edition == 1:
        return TRIAL if wanted and not ledger.trials else None
    of_the_oldest = bool(ledger.trials) and kept is not None and kept.step >= ledger.trials[0].step
    to = {saved.path: name for name, saved in ((TRIAL, kept), (LATER, now.state.lineage.later)) if saved is not None}
    free = [name for name in (TRIAL, LATER) if command is None or to.get(command.to or "") != name]
    free = [name for name in free if name != TRIAL or not of_the_oldest]
    return free[0] if wanted and free else None


# -- what goes on trial ------------------------------------------------------------------------------------------------


def acknowledged(record: protocol.Applied | protocol.Refused, now: Situation) -> dict[str, Any]:
    """What the acknowledgment of a revision says of trials: fields of events.Acknowledged. Empty where nothing."""
    state, ledger = now.state, now.ledger
    if not isinstance(record, protocol.Applied) or not ledger.on_probation or state.start is None:
        return {}
    origin, carrying = ledger.origins.get(record.revision), ledger.carrying
    rolled = record.command is not None and record.command.name == "rollback"
    challenge = isinstance(carrying, events.Challenged) and record.revision == ledger.revision
    if now.manifest.edition == 1:
        on_trial = (origin == "manager" or challenge) and bool(moved(record.changes) or rolled)
        undone = {"undone": state.lineage.undone} if rolled else {}
        return {"forecast": expect(state), **undone} if on_trial else {}
    if isinstance(carrying, events.Reverted):  # what slipped in before it is put back with it
        ours = origin == "probation" and bool(ledger.trials) and (rolled or carrying.why == "harm")
        return {"forecast": _from_now(state, ledger.trials[0], rolled=rolled)} if ours else {}
    decision = ledger.decisions.get(ledger.revisions.get(record.revision, ""))
    go_on = ledger.plans.of(record.revision).go_on  # of other decisions, which are on trial already
    changes = {name: pair for name, pair in moved(record.changes).items() if name not in go_on}
    planned = decision is not None and bool(decision.plans)
    if not (origin == "manager" or challenge) or not (changes or planned or rolled):
        return {}
    undoes = {*decision.undoes} if decision else set()
    ended = [trial for trial in ledger.trials if undoes & {*trial.revisions} or _void(trial, now, changes)]
    found: dict[str, Any] = {"ends": [revision for trial in ended for revision in trial.revisions]}
    if undoes and rolled:
        began = min((item.step for item in state.interventions if item.revision in undoes), default=record.step)
        return found | {"lost": max(0, record.step - began)}
    course = state.lineage.course_before
    forecast = _from_now(state, ended[0], rolled=False) if ended else _forecast(state, course)
    return found | {"forecast": forecast, "undone": state.lineage.undone if rolled else 0}


def without(now: Situation) -> Forecast:
    """What a change that takes effect now would be held against. (Of runs up to edition 1 it was ``expect``.)"""
    return _forecast(now.state, now.state.lineage.course)


def _from_now(state: RunState, trial: Trial, *, rolled: bool) -> Forecast:
    """What the objective is to be from now on: as the weights went that are back, or as it was to be without a
    change."""
    best = state.best[1] if state.best else None
    if not rolled:
        return trial.forecast.after(state.evals - trial.forecast.evals).model_copy(update={"best": best})
    return _forecast(state, state.lineage.course)


def _forecast(state: RunState, course: list[tuple[int, float]]) -> Forecast:
    """What comes after these (step, objective)."""
    assert state.start is not None
    goal, values = state.start.objective, [value for _, value in course]
    best = state.best[1] if state.best else None
    found = predict(values, evals=state.evals, mode=goal.mode, best=best, scale=goal.scale)
    if found.noise is None or found.noise > ROUNDING * found.scale:
        return found
    return found.model_copy(update={"noise": rough_noise([value for value in values if math.isfinite(value)])})


def _void(trial: Trial, now: Situation, changes: dict[str, Any]) -> bool:
    """Whether every value that a trial had changed is as it was before it, or before an older one."""
    if trial.rollback or trial.challenge or not trial.before.keys() & changes.keys():
        return False
    trials, recipe = now.ledger.trials, now.state.recipe
    older = [*trials[: trials.index(trial)], trial]
    return all(
        any(name in one.before and same(recipe[name], one.before[name]) for one in older) for name in trial.before
    )


# -- what is found of it -----------------------------------------------------------------------------------------------


def assess(now: Situation) -> events.Judgment | None:
    """What follows from the last evaluation, as the event to put on record; to be asked again until it is None."""
    state, ledger = now.state, now.ledger
    if ledger.started is None or ledger.ending or ledger.due or not state.evaluations:
        return None
    if ledger.carrying is not None and not isinstance(ledger.carrying, events.Challenged):
        return None
    manifest, left = now.manifest, state.steps_left
    over = state.end is not None or state.stopped_at is not None or (left is not None and left <= 0)
    if over or state.start is None or manifest.replay_of is not None:
        return None
    judge, values_of = (jointly.judged, challenger) if manifest.edition == 1 else (_judged, _challenger)
    if ledger.trials and (found := judge(now)) and not _on_its_way(now, found):
        return found
    if not ledger.trials and manifest.mode != "shadow" and (values := values_of(now)):
        return challenged(now, values)
    if ledger.ends_on_best and manifest.mode != "shadow":
        return ending(now)
    return None


def _on_its_way(now: Situation, found: events.Judgment) -> bool:
    """Whether a verdict waits for the acknowledgment of a change that was decided before it. One that takes back for
    want of proof is not urgent, and would undo with a change what has just corrected it; harm does not wait."""
    order = now.ledger.outstanding
    if now.manifest.edition == 1 or order is None or now.ledger.origins.get(order.revision) == "plan":
        return False
    return isinstance(found, events.Reverted) and found.why == "no proof"


def _judged(now: Situation) -> events.Reverted | events.Kept | None:
    """The first verdict on a trial: of harm the latest, of those that are over the oldest."""
    for trial in reversed(now.ledger.trials):
        if harmed(now, trial):
            return _reverted(now, trial, "harm")
    for trial in now.ledger.trials:
        if not over(now, trial):
            continue
        if trial.challenge:
            lost = trial.forecast.level is None or not math.isfinite(now.state.measured[-1][2])  # nothing to compare
            return _reverted(now, trial, "harm") if lost else _kept(now, trial)
        if proven(now, trial):
            return _kept(now, trial)
        if promising(now, trial):
            continue
        if costs_nothing(now, trial):
            return _kept(now, trial, neutral=True)
        if built_on(now, trial) and restored(now, [trial], start=False):
            continue
        return _reverted(now, trial, "no proof")
    return None


# -- what is done then -------------------------------------------------------------------------------------------------


def _way_back(now: Situation, trial: Trial, *, harm: bool) -> Saved | None:
    """The checkpoint to go back to: of before the change, or of before the oldest on trial, or of a real best since;
    else the best. None where there is no way, or without harm no way but a long one."""
    state, trials = now.state, now.ledger.trials
    if not now.policy.actions.rollback or "rollback" not in now.declared.commands:
        return None
    best, own = state.lineage.best, _of_before(state, trials, trial)
    kept = own or _of_before(state, trials, trials[0])
    if kept is None or trial.forecast.level is None:  # of broken weights
        further = best is not None and best.trained > state.lineage.trained(state.step)  # after a rollback to the start
        return best if harm or further or trial.forecast.level is None else None
    better = best is not None and best.step > kept.step and (best.step <= trial.step or surely_gained(state, trial))
    return best if better else kept


def _of_before(state: RunState, trials: list[Trial], trial: Trial) -> Saved | None:
    """The checkpoint that was kept before a change on trial; None where there is none any more."""
    if trial.tainted:
        return None
    after = [other.step for other in trials if other.step > trial.step]
    for saved in (state.lineage.trial, state.lineage.later):
        if saved is not None and trial.step <= saved.step < min(after, default=math.inf):
            return saved
    return None


def crashed(now: Situation) -> events.Reverted | None:
    """What is on trial when a workload crashed and is started again: it goes back, since it may have been the cause."""
    if now.manifest.edition == 1:
        return jointly.crashed(now)
    if not now.ledger.trials or now.state.start is None:
        return None
    return _taken_back(now, now.ledger.trials, "crash", None)


def _reverted(now: Situation, trial: Trial, why: Why) -> events.Reverted:
    """Of harm the weights go back too; of a change that brought nothing only where it had moved them itself."""
    alone = now.ledger.trials == [trial]
    harm = why == "harm"
    back = _way_back(now, trial, harm=harm) if harm or (trial.rollback and alone) else None
    return _taken_back(now, [trial], why, back)


def _taken_back(now: Situation, trials: list[Trial], why: Why, back: Saved | None) -> events.Reverted:
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    first, total = trials[0], state.total_steps
    steps = 0 if first.challenge else cost(now, first, back)
    lost, vain = steps, 0
    if why == "no proof" and not first.rollback:
        lost, vain = 0, max(1, state.step - max(first.step, ledger.idle_until))
    if first.challenge:
        demoted = False
    elif total is None:
        demoted = ledger.reversals >= watch.max_reversals
    else:
        much = ledger.idle_since + vain > watch.idle_limit * total and ledger.reversals >= 2
        demoted = ledger.lost + lost > watch.loss_budget * total or much
    gone = ledger.trials if demoted else trials  # nothing of such a manager is judged any more
    name = f"probation{ledger.revision + 1}"
    measured = state.latest
    return events.Reverted(
        why=why,
        decision=name,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        decisions=[decision for trial in gone for decision in trial.decisions],
        revisions=[revision for trial in gone for revision in trial.revisions],
        since=first.step,
        step=state.evaluations[-1].step if state.evaluations else state.step,
        forecast=first.forecast.at(state.evals - first.forecast.evals),
        tolerance=margin(now, first),
        measured=math.nan if measured is None else measured,
        parameters=restored(now, gone, start=demoted and watch.fallback == "start"),
        command=rollback(state, name, back),
        trust=_shrunk(now, trials, why),
        lost=lost,
        lost_in_all=ledger.lost + lost,
        idle=vain,
        idle_in_all=ledger.idle + vain,
        demoted=demoted or ledger.demoted,
        challenge=first.challenge,
    )


def _shrunk(now: Situation, trials: list[Trial], why: Why) -> dict[str, float]:
    """What is trusted less: of harm all that was changed; of what brought nothing only a rollback, which cost steps."""
    ledger, watch = now.ledger, now.policy.probation
    if trials[0].challenge:
        return {}
    names = [name for trial in trials for name in (*(trial.before if why != "no proof" else ()),
                                                   *([ROLLBACK] if trial.rollback else []))]  # fmt: skip
    return {name: max(watch.least_trust, ledger.trust.get(name, 1.0) * watch.shrink) for name in names}


def _kept(now: Situation, trial: Trial, *, neutral: bool = False) -> events.Kept:
    """What is on trial stays."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    names = [*trial.before, *([ROLLBACK] if trial.rollback else [])]
    trust: dict[str, float] = {}
    if trial.challenge and beats(state, trial):
        trust = {name: max(watch.least_trust, ledger.trust.get(name, 1.0) * watch.shrink) for name in names}
    elif not trial.challenge and not neutral:
        trust = {name: min(1.0, ledger.trust[name] * watch.grow) for name in names if name in ledger.trust}
    return events.Kept(
        decisions=list(trial.decisions),
        revisions=list(trial.revisions),
        trials=1,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        step=state.evaluations[-1].step,
        forecast=trial.forecast.at(state.evals - trial.forecast.evals),
        measured=state.latest,
        trust=trust,
        neutral=neutral,
        challenge=trial.challenge,
    )


# -- the recipe of the start -------------------------------------------------------------------------------------------


def _challenger(now: Situation) -> dict[str, Value]:
    """The values of the start that are to be put on trial now; empty where it is not time, where that could tell
    nothing, or where they are in force."""
    state, signals = now.state, now.signals
    if state.steps_left is not None and state.total_steps is not None and state.steps_left < LATE * state.total_steps:
        return {}
    if now.ledger.alarms | now.policy.alarms(signals.diverging, signals.rise, signals.noise):
        return {}
    return {name: value for name, value in challenger(now).items() if not _lowered(now, name)}


def _lowered(now: Situation, name: str) -> bool:
    """Whether a learning rate was brought down, and the best came under that: then the start's says nothing."""
    state, parameter = now.state, now.declared.parameters[name]
    value, begun = state.recipe[name], state.begun[name]
    if not allowed.is_rate(parameter) or isinstance(value, str) or isinstance(begun, str) or value >= begun:
        return False
    return state.evals - state.evals_since_best > state.changed_at.get(name, state.evals)
