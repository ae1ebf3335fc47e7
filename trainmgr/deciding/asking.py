"""When a manager is asked, and when that would be in vain. Pure.

The policy's cadence and its alarms say when. From edition 2 on, questions are left out that can lead to nothing, and
those that the manager itself did not want yet: that only ever takes questions away.
"""

from __future__ import annotations

import json
import math

from trainmgr.base.wire import short
from trainmgr.contract.policy import asks_model, is_hybrid
from trainmgr.contract.proposal import Condition, Proposal
from trainmgr.deciding import allowed
from trainmgr.state.evaluations import Evaluation
from trainmgr.state.situation import Situation

LONGEST = 16  # evaluations that a manager may wait for where no number of steps is planned
NAME = 48  # characters of a metric's name, as snapshots show it
MEAN = "mean."  # how snapshots name the mean of a training metric


def trigger(now: Situation) -> str | None:
    """Why a manager should be asked now, or None.

    Never while a decision is pending or a change waits for its acknowledgment, unless that is a part of a plan.
    """
    why = _by_cadence(now)
    if why is None or now.manifest.edition == 1:
        return why
    if why == "evaluation" and _evaluated_next(now):
        return None
    if _in_vain(now) or (spared(now, why) and not is_hybrid(now.manifest.manager)):
        return None
    wait = now.ledger.answers.wait
    if wait is None or wait.when is None or _alarming(why) or not _met(now, wait.when, since=wait.step):
        return why
    return f"{why}: {_in_words(wait.when)}"


def spared(now: Situation, why: str) -> str:
    """Why whoever costs, or wants to wait, is not asked although it is time to ask somebody: "" where he is.

    Of a hybrid that is its model; its rules are asked all the same.
    """
    state, ledger, policy = now.state, now.ledger, now.policy
    if asks_model(now.manifest.manager) and _only_keep(now):
        return "nothing can be changed now"
    if _alarming(why):
        return ""
    least = policy.model_steps(state.total_steps) if is_hybrid(now.manifest.manager) else 0
    last = ledger.answers.model_step
    if last is not None and 0 <= state.step - last < least:  # below 0: after a restart
        return f"it was asked at step {last}, and once in {least} steps is enough"
    return _waits(now)


# -- the cadence -------------------------------------------------------------------------------------------------------


def _by_cadence(now: Situation) -> str | None:
    state, ledger, policy = now.state, now.ledger, now.policy
    if state.start is None or state.end is not None or ledger.waiting is not None:
        return None
    if ledger.outstanding is not None and ledger.origins.get(ledger.outstanding.revision) != "plan":
        return None
    if state.stopped_at is not None:  # nothing but its end is wanted of it
        return None
    manager = now.manifest.manager
    if ledger.challenged:  # what a manager changed meanwhile would spoil the comparison
        return None
    if ledger.demoted and asks_model(manager):  # its answers cost, and would not be applied
        return None
    watches = policy.watches(manager)
    early = watches and too_early(now)
    lost = policy.cadence.on_alarm and state.finiteness.lost
    if lost and ledger.last_alarm != state.evals and (state.evals or not early):
        return "alarm"
    if early or (watches and state.best is None):  # nothing can be compared yet
        return None
    new = state.evals - ledger.last_evals
    if policy.cadence.every_steps is not None:
        return _planned(now)
    if new <= 0:
        return None
    if policy.cadence.on_alarm and (begun := _alarms(now) - ledger.alarms):
        return f"alarm: {', '.join(sorted(begun))}"
    least = policy.min_steps(manager, state.total_steps)
    # A training step is reported before its evaluation: asked between the two, a manager would not see that.
    at = state.evaluations[-1].step if now.manifest.edition > 1 and state.evaluations else state.step
    steps = at - ledger.last_step if ledger.last_step is not None else least
    if new >= policy.cadence.every_evals and not 0 <= steps < least:  # below 0: after a restart
        return "evaluation"
    return None


def _evaluated_next(now: Situation) -> bool:
    """Whether this very step is to be evaluated. It is reported before its evaluation, without which a manager would be
    asked about what it has answered already."""
    state = now.state
    return bool(state.evaluations) and state.step - state.evaluations[-1].step == state.spacing


def _planned(now: Situation) -> str | None:
    """Whether the next step for which an answer is wanted is near enough, and nobody was asked for it yet."""
    state, last = now.state, now.ledger.last_step
    due = now.policy.due(state.step)
    assert due is not None
    begin = now.policy.asks_from(due)
    asked = last is not None and begin <= last <= state.step
    return f"step {due} is near" if state.evals and state.step >= begin and not asked else None


def _alarming(why: str) -> bool:
    return why.startswith("alarm")


def _alarms(now: Situation) -> frozenset[str]:
    found = now.signals
    return now.policy.alarms(found.diverging, found.rise, found.noise)


# -- what would be in vain ---------------------------------------------------------------------------------------------


def _in_vain(now: Situation) -> bool:
    """Whether no answer can take effect any more: the run is being ended, or these were its last steps."""
    left, total = now.state.steps_left, now.state.total_steps
    due = now.policy.due(now.state.step)
    beyond = left is not None and total is not None and due is not None and due > total
    return now.ledger.ending or (left is not None and left <= 0) or beyond


def _only_keep(now: Situation) -> bool:
    """Whether nothing else may be answered; a change of nothing but parameters that rest is none."""
    found = set(allowed.actions(now)[0]) - {"keep"}
    if found == {"adjust"}:
        return all(allowed.resting(now, name) for name in now.space.parameters)
    return not found


# -- what a manager asked for ------------------------------------------------------------------------------------------


def granted(proposal: Proposal, now: Situation, based_on_step: int) -> tuple[int | None, Condition | None, str]:
    """When a manager is asked again if it has its way: in so many steps, or on a condition; and what of its wish is not
    met, "" where all is. A wish that cannot be met costs no decision: it is left out."""
    steps, when, most, words = proposal.ask_again_in, proposal.ask_again_when, _longest(now), []
    if steps is not None and steps <= 0:
        steps = None
        words.append("ask_again_in is left out: it is less than a step")
    elif steps is not None and most is not None and steps > most:
        steps = most
        words.append(f"ask_again_in is {most}: no more may be waited")
    if when is not None:
        values = [
            v for e in now.state.evaluations if e.step <= based_on_step and (v := value(e, when.metric)) is not None
        ]
        if not values:
            words.append(f"ask_again_when is left out: evaluations have no {_quoted(when.metric)}")
        elif _beyond(values[-1], when):
            words.append(f"ask_again_when is left out: {_in_words(when)} already")
        when = when if values and not _beyond(values[-1], when) else None
    return steps, when, "; ".join(words)


def _waits(now: Situation) -> str:
    """Until when nobody is asked, since the manager wanted that; "" where it does not, or not any more.

    It waits for at least one evaluation, and no longer than the policy allows.
    """
    wait, state = now.ledger.answers.wait, now.state
    if wait is None or state.step < wait.step or (wait.when is not None and _met(now, wait.when, since=wait.step)):
        return ""
    most = _longest(now)
    if most is None:
        if state.evals - wait.evals >= LONGEST or (wait.steps is not None and state.step - wait.step >= wait.steps):
            return ""
        return f"it wanted to wait at step {wait.step}"
    until = wait.step + (most if wait.steps is None else min(wait.steps, most))
    return "" if state.step >= until else f"it wanted to wait until step {until}"


def _longest(now: Situation) -> int | None:
    """Steps that a manager may wait for; None where no number of steps is planned."""
    total = now.state.total_steps
    return None if total is None else math.floor(now.policy.cadence.longest_wait * total)


def _met(now: Situation, when: Condition, *, since: int) -> bool:
    """Whether a condition came true at an evaluation after this step."""
    values = [value(evaluation, when.metric) for evaluation in now.state.evaluations if evaluation.step > since]
    return any(value is not None and _beyond(value, when) for value in values)


def _beyond(value: float, when: Condition) -> bool:
    """Whether a value is on the side that is waited for; NaN is on neither."""
    return value > when.value if when.side == "above" else value < when.value


def value(evaluation: Evaluation, metric: str) -> float | None:
    """A figure of an evaluation by the name that snapshots have for it: a long one is cut there."""
    means = {MEAN + short(name, NAME): mean for name, mean in evaluation.means.items()}
    shown = {short(name, NAME): figure for name, figure in evaluation.metrics.items()}
    return {**means, **shown, **evaluation.metrics}.get(metric)


def _in_words(when: Condition) -> str:
    return f"{_quoted(when.metric)} is {when.side} {when.value:.6g}"


def _quoted(name: str) -> str:
    """A name that came from elsewhere: data, on one line, in ASCII."""
    return json.dumps(short(name, NAME)).replace("`", "\\u0060")


# -- what is to come ---------------------------------------------------------------------------------------------------


def next_question(now: Situation) -> int | None:
    """The step of the question after one that is asked now, if evaluations go on as they come, no alarm urges and the
    manager does not want to wait. None where none follows, or nobody knows."""
    found = _ahead(now)
    return found[0] if found is not None and found[1] != 0 else None


def questions_left(now: Situation) -> int | None:
    """How many of them there can be: as the cadence has it, and no more than the budget has calls for. None where
    nobody knows how long the run will be."""
    found = _ahead(now)
    if found is None or found[1] is None:
        return None
    if not asks_model(now.manifest.manager):
        return found[1]
    calls = 1 if now.policy.llm.formatter is None else 2  # of one decision, at least
    return min(found[1], max(0, (now.policy.budget.calls - now.ledger.spent.calls) // calls - 1))


def too_early(now: Situation) -> bool:
    """Whether a manager on probation has to wait for more evaluations. Not in a run that stands still from the start:
    it has nothing to lose but the time."""
    state = now.state
    still = state.evals > 1 and state.evals_since_best > 0 and now.manifest.edition > 1
    return state.evals < now.policy.probation.first_evals and not still


def _ahead(now: Situation) -> tuple[int, int | None] | None:
    """The step of the next question and the number of all that follow; None for what nobody knows."""
    state, policy, manager = now.state, now.policy, now.manifest.manager
    total = None if state.overrun else state.total_steps
    every, due = policy.cadence.every_steps, policy.due(state.step)
    if every is not None and due is not None:
        return policy.asks_from(due + every), None if total is None else max(0, (total - due) // every)
    spacing = state.spacing
    if spacing is None:
        return None
    least = policy.min_steps(manager, state.total_steps)
    if is_hybrid(manager):
        least = policy.model_steps(state.total_steps)
    last, evals = state.evaluations[-1].step, policy.cadence.every_evals
    early = policy.probation.first_evals - state.evals if policy.watches(manager) else 0
    first = last + spacing * max(evals, early, math.ceil((least + max(0, state.step - last)) / spacing))
    if total is None:
        return first, None
    apart = spacing * max(evals, math.ceil(least / spacing))
    return first, 0 if first >= total else 1 + (total - 1 - first) // apart
