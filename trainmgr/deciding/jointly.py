"""The watch over what a manager changed as it was up to edition 1, by which old logs are read. Pure.

All changes on trial were judged together.

A change is on trial from the moment when it took effect until ``window_evals`` evaluations have come, or longer while
it is better than forecast, but far from the best, and the loss budget allows it. What was measured is compared with
the forecast that was made from before the oldest change on trial, and with the best until then. What harms is taken
back at once, and so is, at the end of its trial, what has not proven itself: a forecast cannot see a harm that looks
like what went before, and a change that did nothing is no loss. Effects that overlap are not told apart: all changes on
trial are taken back together.

A proof does not last for ever. Where nothing new was learned for ``challenge_evals`` evaluations, the recipe of the
start goes on trial in place of the one that a manager has made, and stays unless it harms: a recipe that has proven
itself by luck must not keep a run where it is.
"""

from __future__ import annotations

import math
from typing import Literal

from trainmgr.contract import events
from trainmgr.deciding.restoring import ROLLBACK, restored, rollback
from trainmgr.deciding.verdicts import chance, gained, slowed
from trainmgr.state.lineage import Saved
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.state.trial import Trial

Why = Literal["harm", "no proof", "crash"]


def judged(now: Situation) -> events.Reverted | events.Kept | None:
    """What the last evaluation says of all that is on trial, of which there is something."""
    state, oldest = now.state, now.ledger.trials[0]
    if harmed(now, oldest):
        return _reverted(now, harm=True)
    if _measured(state, oldest) < now.policy.probation.window_evals:
        return None
    if oldest.challenge:
        if oldest.forecast.level is None or not math.isfinite(state.measured[-1][2]):  # nothing can be compared
            return _reverted(now, harm=True)
        return _kept(now, state.step)
    if (through := proven(now, oldest)) is not None:
        return _kept(now, through)
    return None if _promising(now) else _reverted(now, harm=False)


def harmed(now: Situation, trial: Trial) -> bool:
    """Whether the objective is worse than was forecast before the change, by what the policy calls harm."""
    watch, found = now.policy.probation, excesses(now.state, trial)
    margin = trial.forecast.margin(watch.tolerance, watch.noise_factor)
    if not found or math.isinf(found[-1]) or margin <= 0:
        return bool(found) and math.isinf(found[-1])
    patience, far = min(watch.patience, watch.window_evals), watch.catastrophe * margin
    late = found[-patience:]
    lasting = len(late) == patience
    if trial.forecast.noise is None:  # then it takes both
        return lasting and min(late) > far
    return found[-1] > far or (lasting and min(late) > margin)


def excesses(state: RunState, trial: Trial) -> list[float]:
    """How much worse than forecast the evaluations since were, the last ones; infinite where one was not finite."""
    found = []
    for number, step, value in state.measured:
        expected = trial.forecast.at(number - trial.forecast.evals)
        if number > trial.forecast.evals and step >= trial.step and expected is not None:
            found.append(state.worse(value) - state.worse(expected) if math.isfinite(value) else math.inf)
    return found


def _measured(state: RunState, trial: Trial) -> int:
    """Evaluations that say something of a trial."""
    return sum(number > trial.forecast.evals and step >= trial.step for number, step, _ in state.measured)


def proven(now: Situation, trial: Trial) -> int | None:
    """The step until which changes have proven themselves; None where nothing has.

    A new best proves the recipe that it was measured with, where learning goes on at no less than SLOWEST of the speed
    that was forecast. To be better than forecast and near the best proves the recipe of now. Better than forecast alone
    proves nothing: a run that goes through bad values on its way to good ones is helped least by what keeps it where it
    is.
    """
    state, before = now.state, trial.forecast
    _, step, value = state.measured[-1]
    if not math.isfinite(value):
        return None
    if before.best is None:  # any number is better than none
        return step
    if gained(state, trial) and not slowed(state, trial):
        assert state.best is not None
        return state.best[0]
    scale = (state.start.objective.scale if state.start else None) or abs(before.best)
    near = max(now.policy.probation.tolerance * scale, chance(trial))
    better = before.level is None or _beats(state, trial)
    return step if better and state.worse(value) - state.worse(before.best) <= near else None


def _beats(state: RunState, trial: Trial) -> bool:
    """Whether the last evaluation is better than forecast, by more than the noise."""
    found = excesses(state, trial)
    return bool(found) and found[-1] < -chance(trial)


def _promising(now: Situation) -> bool:
    """Whether an unproven trial may go on: better than forecast, and no longer than the loss budget would bear."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    oldest = ledger.trials[0]
    if not _beats(state, oldest):
        return False
    if state.total_steps is None:
        return _measured(state, oldest) < 2 * watch.window_evals
    spent = ledger.lost + ledger.idle + _lost(now, None)
    return spent <= watch.loss_budget * state.total_steps


def _way_back(now: Situation, *, harm: bool) -> Saved | None:
    """The checkpoint to go back to: of before the oldest change on trial, or of a real best since; else of the best.

    Without harm, too: an optimizer remembers the gradients that it saw for longer than a trial lasts, and where nothing
    got better nothing is lost. None where there is no way, or without harm no way but a long one.
    """
    state = now.state
    if not now.policy.actions.rollback or "rollback" not in now.declared.commands:
        return None
    kept, best, oldest = state.lineage.trial, state.lineage.best, now.ledger.trials[0]
    sane = oldest.forecast.level is not None
    if sane and kept is not None and kept.step >= oldest.step:  # not of an earlier trial
        return best if best is not None and best.step > kept.step and gained(state, oldest) else kept
    further = best is not None and best.trained > state.lineage.trained(state.step)  # after a rollback to the start
    return best if harm or further or not sane else None


def _lost(now: Situation, back: Saved | None) -> int:
    """Steps of training that are lost if the weights go back there, or if they stay and what came of it is no good."""
    state, trials = now.state, now.ledger.trials
    since = state.step - trials[0].step
    if back is not None:
        since = state.lineage.trained(state.step) - back.trained
    since += sum(trial.undone for trial in trials)
    return max(1, since)


def crashed(now: Situation) -> events.Reverted | None:
    """What is on trial when a workload crashed and is started again: it goes back, since it may have been the cause."""
    if now.ledger.started is None or not now.ledger.trials or now.state.start is None:
        return None
    return _taken_back(now, why="crash", back=None, idle=False)


def _reverted(now: Situation, *, harm: bool) -> events.Reverted:
    idle = not harm and not any(trial.rollback for trial in now.ledger.trials)
    return _taken_back(now, why="harm" if harm else "no proof", back=_way_back(now, harm=harm), idle=idle)


def _taken_back(now: Situation, *, why: Why, back: Saved | None, idle: bool) -> events.Reverted:
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    oldest = ledger.trials[0]
    steps, total = 0 if oldest.challenge else _lost(now, back), state.total_steps
    lost, vain = (0, steps) if idle else (steps, 0)
    lost_in_all, vain_in_all = ledger.lost + lost, ledger.idle + vain
    if total is None:
        demoted = ledger.reversals >= watch.max_reversals
    else:
        much = vain_in_all > watch.idle_budget * total and ledger.reversals >= 2
        demoted = lost_in_all > watch.loss_budget * total or much
    name = f"probation{ledger.revision + 1}"
    tried = [name for trial in ledger.trials for name in (*trial.before, *([ROLLBACK] if trial.rollback else []))]
    if oldest.challenge:
        demoted, tried = False, []
    measured = state.latest
    return events.Reverted(
        why=why,
        decision=name,
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        decisions=[decision for trial in ledger.trials for decision in trial.decisions][-32:],
        revisions=[revision for trial in ledger.trials for revision in trial.revisions][-32:],
        since=oldest.step,
        step=state.evaluations[-1].step if state.evaluations else state.step,
        forecast=oldest.forecast.at(state.evals - oldest.forecast.evals),
        tolerance=oldest.forecast.margin(watch.tolerance, watch.noise_factor),
        measured=math.nan if measured is None else measured,
        parameters=restored(now, ledger.trials, start=demoted and watch.fallback == "start"),
        command=rollback(state, name, back),
        trust={name: max(watch.least_trust, ledger.trust.get(name, 1.0) * watch.shrink) for name in tried},
        lost=lost,
        lost_in_all=lost_in_all,
        idle=vain,
        idle_in_all=vain_in_all,
        demoted=demoted or ledger.demoted,
        challenge=oldest.challenge,
    )


def _kept(now: Situation, through: int) -> events.Kept:
    """What was in effect at the step ``through`` stays."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    good, oldest = [trial for trial in ledger.trials if trial.step < through] or ledger.trials[:1], ledger.trials[0]
    names = [name for trial in good for name in (*trial.before, *([ROLLBACK] if trial.rollback else []))]
    if oldest.challenge and not _beats(state, oldest):
        trust = {}
    elif oldest.challenge:
        trust = {name: max(watch.least_trust, ledger.trust.get(name, 1.0) * watch.shrink) for name in names}
    else:
        trust = {
            name: min(1.0, ledger.trust[name] * watch.grow) for name in dict.fromkeys(names) if name in ledger.trust
        }
    return events.Kept(
        decisions=[decision for trial in good for decision in trial.decisions][-32:],
        revisions=[revision for trial in good for revision in trial.revisions][-32:],
        trials=len(good),
        telemetry_offset=now.mark.offset,
        telemetry_sha256=now.mark.sha256,
        step=state.evaluations[-1].step,
        forecast=oldest.forecast.at(state.evals - oldest.forecast.evals),
        measured=state.latest,
        trust=trust,
        challenge=oldest.challenge,
    )
