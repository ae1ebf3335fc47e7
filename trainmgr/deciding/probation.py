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
from trainmgr.deciding.jointly import ROLLBACK, ROUNDING, SLOWEST, can_go_back, challenged, ending, expect
from trainmgr.state.ledger import Trial, multiplied, same
from trainmgr.state.lineage import COURSE, LATER, TRIAL, Saved
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation

Why = Literal["harm", "no proof", "crash"]
UNKNOWN = 10.0  # times the tolerance, where the noise is not known; and what is near the best
LATE = 1 / 3  # of the run: its last part
PROTECTS = ("regularization", "averaging")  # groups of which more seldom costs anything
SETTLES = "exploration"  # the group of which less costs nothing late in a run, as of a learning rate


def first_evals(now: Situation) -> int:
    """Evaluations before which nobody is asked. Where there is a way back an early mistake costs what it undoes, which
    is little: the steps until then."""
    least = now.policy.probation.first_evals
    return least if now.manifest.edition == 1 or can_go_back(now) else max(least, allowed.BLIND)


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
    if now.manifest.edition == 1:
        return jointly.assess(now)
    if ledger.carrying is not None and not isinstance(ledger.carrying, events.Challenged):
        return None
    manifest, left = now.manifest, state.steps_left
    over = state.end is not None or state.stopped_at is not None or (left is not None and left <= 0)
    if over or state.start is None or manifest.replay_of is not None:
        return None
    if found := _judged(now):
        return found
    if not ledger.trials and manifest.mode != "shadow" and (values := _challenger(now)):
        return challenged(now, values)
    if ledger.ends_on_best and manifest.mode != "shadow":
        return ending(now)
    return None


def _judged(now: Situation) -> events.Reverted | events.Kept | None:
    """The first verdict on a trial: of harm the latest, of those that are over the oldest."""
    for trial in reversed(now.ledger.trials):
        if harmed(now, trial):
            return _reverted(now, trial, "harm")
    for trial in now.ledger.trials:
        if not _over(now, trial):
            continue
        if trial.challenge:
            lost = trial.forecast.level is None or not math.isfinite(now.state.measured[-1][2])  # nothing to compare
            return _reverted(now, trial, "harm") if lost else _kept(now, trial)
        if proven(now, trial):
            return _kept(now, trial)
        if _promising(now, trial):
            continue
        if _costs_nothing(now, trial):
            return _kept(now, trial, neutral=True)
        return _reverted(now, trial, "no proof")
    return None


def _over(now: Situation, trial: Trial) -> bool:
    """Whether a trial has had its time. A plan has it until its end, which may come sooner than planned."""
    decisions, underway = now.ledger.decisions, now.ledger.plans.underway.values()
    planned = any(decisions[name].plans for name in trial.decisions if name in decisions)
    waits = not planned or any(plan.decision in trial.decisions for plan in underway)
    in_time = waits and trial.until is not None and now.state.step < trial.until
    return not in_time and _measured(now.state, trial) >= now.policy.probation.window_evals


def harmed(now: Situation, trial: Trial) -> bool:
    """Whether the objective is worse than was forecast before the change, by what the policy calls harm.

    Where the noise is not known, it takes both: that it lasts, and that it is a catastrophe. What went back has the
    steps that it undid to come up again, as far as the loss budget goes.
    """
    watch, found, limit = now.policy.probation, excesses(now.state, trial), margin(now, trial)
    if not found or math.isinf(found[-1]) or limit <= 0:
        return bool(found) and math.isinf(found[-1])
    total = now.state.total_steps
    if total is not None and now.state.step - trial.step <= trial.undone <= watch.loss_budget * total:
        return False
    patience, far = min(watch.patience, watch.window_evals), watch.catastrophe * limit
    late = found[-patience:]
    lasting = len(late) == patience
    if not _noisy(trial):
        return lasting and min(late) > far
    return found[-1] > far or (lasting and min(late) > limit)


def margin(now: Situation, trial: Trial) -> float:
    """How much worse than forecast is no harm yet: by the noise, of which few evaluations say little, or the floor."""
    watch, before = now.policy.probation, trial.forecast
    if not _noisy(trial):
        return UNKNOWN * watch.tolerance * before.scale
    differences = max(1, min(before.evals, COURSE) - 2)
    return max(watch.tolerance * before.scale, watch.noise_factor * (before.noise or 0.0) * (1 + 2 / differences))


def _noisy(trial: Trial) -> bool:
    """Whether the noise is known: it takes four evaluations, and a score that stood still has shown none yet."""
    before = trial.forecast
    still = before.slope == 0 and (before.noise or 0.0) <= ROUNDING * before.scale
    return before.noise is not None and not still


def excesses(state: RunState, trial: Trial) -> list[float]:
    """How much worse the evaluations since were than forecast, or than half of the progress that was; the last ones,
    infinite where one was not finite."""
    found = []
    for number, value in _since(state, trial):
        expected, level = trial.forecast.at(number - trial.forecast.evals), trial.forecast.level
        if expected is None or level is None:
            continue
        bar, start = state.worse(expected), state.worse(level)
        bar = start - SLOWEST * (start - bar) if bar < start else bar
        found.append(state.worse(value) - bar if math.isfinite(value) else math.inf)
    return found


def _since(state: RunState, trial: Trial) -> list[tuple[int, float]]:
    """(number, objective) of the evaluations that say something of a trial."""
    return [(n, value) for n, step, value in state.measured if n > trial.forecast.evals and step >= trial.step]


def _measured(state: RunState, trial: Trial) -> int:
    return len(_since(state, trial))


def proven(now: Situation, trial: Trial) -> bool:
    """Whether a change has brought something.

    A new best is proof, where learning goes on at no less than SLOWEST of the speed that was forecast. So is what is
    better than forecast and near the best. Better than forecast alone proves nothing: a run that goes through bad
    values on its way to good ones is helped least by what keeps it where it is.
    """
    state, before, watch = now.state, trial.forecast, now.policy.probation
    value = state.measured[-1][2]
    if not math.isfinite(value):
        return False
    if before.best is None or (_gained(state, trial) and not _slowed(state, trial)):  # any number is better than none
        return True
    scale = (state.start.objective.scale if state.start else None) or abs(before.best)
    near = max(UNKNOWN * watch.tolerance * scale, _chance(trial))
    better = before.level is None or _beats(state, trial)
    return better and state.worse(value) - state.worse(before.best) <= near


def _slowed(state: RunState, trial: Trial) -> bool:
    """Whether what was gained since is less than SLOWEST of what was forecast, by more than the noise."""
    before, (number, _, value) = trial.forecast, state.measured[-1]
    expected = before.at(number - before.evals)
    if expected is None or before.level is None:
        return False
    level = state.worse(before.level)
    hoped = max(0.0, level - state.worse(expected))
    return level - state.worse(value) < SLOWEST * hoped - _chance(trial)


def _gained(state: RunState, trial: Trial) -> bool:
    """Whether there was a new best since, by more than the noise."""
    before = trial.forecast.best
    return before is None or (
        state.best is not None and state.worse(before) - state.worse(state.best[1]) > _chance(trial)
    )


def _beats(state: RunState, trial: Trial) -> bool:
    """Whether the last evaluation is better than forecast, by more than the noise."""
    number, _, value = state.measured[-1]
    expected = trial.forecast.at(number - trial.forecast.evals)
    return expected is not None and state.worse(expected) - state.worse(value) > _chance(trial)


def _chance(trial: Trial) -> float:
    """A difference that says nothing: the noise, or the rounding where there is none."""
    return max(trial.forecast.noise or 0.0, ROUNDING * trial.forecast.scale)


def _promising(now: Situation, trial: Trial) -> bool:
    """Whether an unproven trial may go on: better than forecast, and no longer than the loss budget would bear."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    if not _beats(state, trial):
        return False
    if state.total_steps is None:
        return _measured(state, trial) < 2 * watch.window_evals
    return ledger.lost + ledger.idle_since + _lost(now, trial, None) <= watch.loss_budget * state.total_steps


def _costs_nothing(now: Situation, trial: Trial) -> bool:
    """Whether a change that did neither good nor harm may stay: more regularization or a longer average, late in the
    run a lower learning rate or less exploration; or nothing is left of it."""
    left, total = now.state.steps_left, now.state.total_steps
    late = left is not None and total is not None and left <= LATE * total
    if trial.rollback:
        return False
    for name, old in trial.before.items():
        parameter, value = now.declared.parameters.get(name), now.state.recipe.get(name)
        if parameter is None or isinstance(value, str | None) or isinstance(old, str):
            return False
        settles = late and value < old and (allowed.is_rate(parameter) or parameter.group == SETTLES)
        if not settles and not (value > old and parameter.group in PROTECTS):
            return False
    return True


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
    better = best is not None and best.step > kept.step and (best.step <= trial.step or _gained(state, trial))
    return best if better else kept


def _of_before(state: RunState, trials: list[Trial], trial: Trial) -> Saved | None:
    """The checkpoint that was kept before a change on trial; None where there is none any more."""
    after = [other.step for other in trials if other.step > trial.step]
    for saved in (state.lineage.trial, state.lineage.later):
        if saved is not None and trial.step <= saved.step < min(after, default=math.inf):
            return saved
    return None


def _lost(now: Situation, trial: Trial, back: Saved | None) -> int:
    """Steps of training that are lost if the weights go back there, or if they stay and what came of it is no good."""
    state = now.state
    since = state.step - trial.step
    if back is None:
        return max(1, since + trial.undone)
    return max(1, since, state.lineage.trained(state.step) - back.trained + trial.undone)


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
    steps = 0 if first.challenge else _lost(now, first, back)
    lost, vain = steps, 0
    if why == "no proof" and not first.rollback:
        lost, vain = 0, max(1, state.step - max(first.step, ledger.idle_until))
    if first.challenge:
        demoted = False
    elif total is None:
        demoted = ledger.reversals >= watch.max_reversals
    else:
        much = ledger.idle_since + vain > watch.idle_budget * total and ledger.reversals >= 2
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
        parameters=_restored(now, gone, start=demoted and watch.fallback == "start"),
        command=_rollback(state, name, back),
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


def _rollback(state: RunState, name: str, back: Saved | None) -> Command | None:
    if back is None:
        return None
    return Command(id=name, name="rollback", to="best" if back == state.lineage.best else back.path)


def _restored(now: Situation, gone: list[Trial], *, start: bool) -> dict[str, Value]:
    """The values from before what is taken back, but for what a later change has moved on; or those of the start.

    A change that is on its way may take effect before it is superseded: what it would move is named too.
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
        wanted, held = ledger.outstanding.params, ledger.held
        movements = {name: state.recipe[name] for name in wanted if wanted[name] != held.get(name) and name in space}
    return {
        name: value
        for name, value in {**movements, **values}.items()
        if name in space
        and space[name].objection(value) is None
        and (name in movements or value != state.recipe[name] or value != ledger.in_force.get(name, value))
    }


def _kept(now: Situation, trial: Trial, *, neutral: bool = False) -> events.Kept:
    """What is on trial stays."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    names = [*trial.before, *([ROLLBACK] if trial.rollback else [])]
    trust: dict[str, float] = {}
    if trial.challenge and _beats(state, trial):
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
    state, ledger, watch, signals = now.state, now.ledger, now.policy.probation, now.signals
    if not watch.challenge_evals or not ledger.on_probation or ledger.outstanding is not None or state.best is None:
        return {}
    alarms = ledger.alarms | now.policy.alarms(signals.diverging, signals.rise, signals.noise)
    if not can_go_back(now) or alarms or not math.isfinite(state.measured[-1][2]):
        return {}
    changes = [at for at in (*state.changed_at.values(), state.rollback_at) if at is not None]
    if state.evals - max(changes, default=state.evals) < watch.patience:  # what was taken back must be seen to be back
        return {}
    waited = min(state.evals_since_best, state.evals - ledger.challenged_at)
    if waited < watch.challenge_evals * 2**ledger.challenges:
        return {}
    if state.evals_left is not None and state.evals_left < watch.window_evals + 1:
        return {}
    if state.steps_left is not None and state.total_steps is not None and state.steps_left < LATE * state.total_steps:
        return {}
    space = now.declared.parameters
    return {
        name: state.begun[name]
        for name in ledger.in_force
        if name in space
        and not space[name].scheduled
        and state.recipe[name] != state.begun[name]
        and space[name].objection(state.begun[name]) is None
        and not _lowered(now, name)
    }


def _lowered(now: Situation, name: str) -> bool:
    """Whether a learning rate was brought down, and the best came under that: then the start's says nothing."""
    state, parameter = now.state, now.declared.parameters[name]
    value, begun = state.recipe[name], state.begun[name]
    if not allowed.is_rate(parameter) or isinstance(value, str) or isinstance(begun, str) or value >= begun:
        return False
    return state.evals - state.evals_since_best > state.changed_at.get(name, state.evals)
