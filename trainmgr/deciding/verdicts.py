"""What the evaluations since a change say of it: harm, proof, promise, or neither; and what it has cost. Pure."""

from __future__ import annotations

import math

from trainmgr.deciding import allowed
from trainmgr.state.lineage import COURSE, Saved
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.state.trial import Trial

ROUNDING = 1e-9  # of the scale
SLOWEST = 0.5  # of the progress that was forecast: less is no proof, whatever the best
UNKNOWN = 10.0  # times the tolerance, where the noise is not known; and what is near the best
SETTLING = 1 / 2  # of the run: its second part, in which it may settle
PROTECTS = ("regularization", "averaging")  # groups of which more seldom costs anything
SETTLES = "exploration"  # the group of which less costs nothing late in a run, as of a learning rate


def over(now: Situation, trial: Trial) -> bool:
    """Whether a trial has had its time. A plan has it until its end, which may come sooner than planned."""
    state, ready = now.state, trial.step + grace(now, trial)
    decisions, underway = now.ledger.decisions, now.ledger.plans.underway.values()
    planned = any(decisions[name].plans for name in trial.decisions if name in decisions)
    waits = not planned or any(plan.decision in trial.decisions for plan in underway)
    in_time = waits and trial.until is not None and state.step < trial.until
    late = sum(n > trial.forecast.evals and step >= ready for n, step, _ in state.measured)
    return not in_time and late >= now.policy.probation.window_evals


def built_on(now: Situation, trial: Trial) -> bool:
    """Whether a later change is still on trial, which may need this one to show what it is worth: then it is too early
    to put this one back for want of proof. That waits for as long again at most."""
    later = [other for other in now.ledger.trials if other.step > trial.step and not over(now, other)]
    return bool(later) and _measured(now.state, trial) < 2 * now.policy.probation.window_evals


def grace(now: Situation, trial: Trial) -> int:
    """Steps that what went back has to come up again: those that it undid, as far as the loss budget goes. None where
    it undid far more than that: from the best it has nothing to come up from."""
    total = now.state.total_steps
    bearable = 0 if total is None else int(now.policy.probation.loss_budget * total)
    comes_up = trial.forecast.level is not None and trial.undone <= 2 * bearable
    return min(trial.undone, bearable) if comes_up else 0


def harmed(now: Situation, trial: Trial) -> bool:
    """Whether the objective is worse than was forecast before the change, by what the policy calls harm.

    Where the noise is not known, it takes both: that it lasts, and that it is a catastrophe; or half of one, at the
    end. What went back has the steps that it undid to come up again, as far as the loss budget goes.
    """
    watch, found, limit = now.policy.probation, excesses(now.state, trial), margin(now, trial)
    if not found or math.isinf(found[-1]) or limit <= 0:
        return bool(found) and math.isinf(found[-1])
    if trial.undone and now.state.step - trial.step <= grace(now, trial):
        return False
    patience, far = min(watch.patience, watch.window_evals), watch.catastrophe * limit
    late = found[-patience:]
    lasting = len(late) == patience
    if not _noisy(trial):
        whole = len(found) >= watch.window_evals
        return lasting and min(late) > (far / 2 if whole else far)
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
    if before.best is None or (gained(state, trial) and not slowed(state, trial)):  # any number is better than none
        return True
    scale = (state.start.objective.scale if state.start else None) or abs(before.best)
    near = max(UNKNOWN * watch.tolerance * scale, chance(trial))
    better = before.level is None or beats(state, trial)
    return better and state.worse(value) - state.worse(before.best) <= near


def slowed(state: RunState, trial: Trial) -> bool:
    """Whether what was gained since is less than SLOWEST of what was forecast, by more than the noise."""
    before, (number, _, value) = trial.forecast, state.measured[-1]
    expected = before.at(number - before.evals)
    if expected is None or before.level is None:
        return False
    level = state.worse(before.level)
    hoped = max(0.0, level - state.worse(expected))
    return level - state.worse(value) < SLOWEST * hoped - chance(trial)


def gained(state: RunState, trial: Trial) -> bool:
    """Whether there was a new best since, by more than the noise."""
    before = trial.forecast.best
    return before is None or (
        state.best is not None and state.worse(before) - state.worse(state.best[1]) > chance(trial)
    )


def surely_gained(state: RunState, trial: Trial) -> bool:
    """The same, where it is to be believed of a change that did harm. Before the noise is known any recipe learns, and
    an optimizer remembers the gradients of this one."""
    return _noisy(trial) and gained(state, trial)


def beats(state: RunState, trial: Trial) -> bool:
    """Whether the last evaluation is better than forecast, by more than the noise."""
    number, _, value = state.measured[-1]
    expected = trial.forecast.at(number - trial.forecast.evals)
    return expected is not None and state.worse(expected) - state.worse(value) > chance(trial)


def chance(trial: Trial) -> float:
    """A difference that says nothing: the noise, or the rounding where there is none."""
    return max(trial.forecast.noise or 0.0, ROUNDING * trial.forecast.scale)


def promising(now: Situation, trial: Trial) -> bool:
    """Whether an unproven trial may go on: better than forecast, and no longer than the loss budget would bear."""
    state, ledger, watch = now.state, now.ledger, now.policy.probation
    if not beats(state, trial):
        return False
    if state.total_steps is None:
        return _measured(state, trial) < 2 * watch.window_evals
    return ledger.lost + ledger.idle_since + cost(now, trial, None) <= watch.loss_budget * state.total_steps


def costs_nothing(now: Situation, trial: Trial) -> bool:
    """Whether a change that did neither good nor harm may stay: more regularization or a longer average, in the second
    half of the run a lower learning rate or less exploration; or nothing is left of it."""
    left, total = now.state.steps_left, now.state.total_steps
    late = left is not None and total is not None and left <= SETTLING * total
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


def cost(now: Situation, trial: Trial, back: Saved | None) -> int:
    """Steps of training that are lost if the weights go back there, or if they stay and what came of it is no good."""
    state = now.state
    since = state.step - trial.step
    if back is None:
        return max(1, since + trial.undone)
    further = state.lineage.trained(state.step) - back.trained
    return max(1, further if back.step > trial.step else max(since, further + trial.undone))
