"""What the rollbacks of `trainmgr check` did to a script, judged. Pure."""

from __future__ import annotations

import itertools
import math

from trainmgr import protocol
from trainmgr.checked import Checked
from trainmgr.seen import Rollback, Seen

HARDLY = 0.01  # of a rate: a smaller difference says nothing
LEARNED = 0.2  # of the objective: with less progress than that a rollback cannot be seen by it
AT_ONCE = 0.25  # of the steps to the first evaluation: in so few nothing much is learned again
STEADY = 2.0  # times the way from the first to the last figure: a series that goes further is noise
EVALUATED = (
    "save() and load() must know all that is evaluated: averaged weights (EMA) too. load() must fill what is there: it "
    "has loaded nothing if names differ (`module.`, strict=False)."
)


def judge(checked: Checked, seen: Seen) -> None:
    """All of them."""
    for rollback in seen.rollbacks:
        _rolled(checked, seen, rollback)
    _trains(checked, seen)


def _rolled(checked: Checked, seen: Seen, rollback: Rollback) -> None:
    answer, where = seen.answers.get(rollback.revision), rollback.to
    if isinstance(answer, protocol.Refused):
        if where == "initial" and any(other.to == "best" for other in seen.rollbacks) and "load()" not in answer.reason:
            checked.warning(
                f"A rollback to the initial weights was refused: {answer.reason}", "Save them at the start."
            )
        else:
            checked.error(
                f"The rollback to {where} was refused: {answer.reason}",
                "Restore the weights and the optimizer from that file; for the names see `w.command`.",
            )
        return
    if answer is None:
        return
    before = [item for item in seen.evals if item.seq < answer.seq]
    after = [item for item in seen.evals if item.seq > answer.seq and item.step > answer.step]
    later = [i for i in seen.items if isinstance(i, protocol.Step | protocol.Eval) and i.seq > answer.seq]
    if later and later[0].step < answer.step:
        checked.error(
            f"After the rollback to {where} at step {answer.step} the script counts on from step {later[0].step}.",
            "load() must leave the step counter alone: a rollback takes back weights, not time. A resume restores it.",
        )
        return
    if not before or not after:
        return
    for name, moving in after[0].moving.items():
        then = before[0].moving.get(name) if where == "initial" else None
        last = before[-1].moving.get(name)
        if then and last and _nearer(moving.value, then.value, last.value):
            checked.error(
                f"After the rollback to {where} the schedule of {name} began again: {last.value:.4g} before it, "
                f"{moving.value:.4g} after it, {then.value:.4g} at the first evaluation.",
                "load() must leave the scheduler alone: its plan is for the whole run. Only a resume restores it.",
            )
    if where == "initial":
        _brought_back(checked, seen, before, answer.step, after[0])
    else:
        checked.passed.append(f"rollback to {where}: done")


def _brought_back(checked: Checked, seen: Seen, before: list[protocol.Eval], step: int, after: protocol.Eval) -> None:
    """Whether an evaluation after the rollback to the start at ``step`` is more like the first one than like the last.

    Only learning can be taken back: where there was none, evaluations show nothing.
    """
    assert seen.state.start is not None
    objective = seen.state.start.objective
    first, last, found = (item.metrics.get(objective.metric, math.nan) for item in (before[0], before[-1], after))
    learned = seen.state.worse(first) - seen.state.worse(last)
    scale = max(abs(first), abs(last))
    if not all(map(math.isfinite, (first, last, found))) or learned <= LEARNED * scale:
        if not seen.compared:
            checked.warning(
                f"Whether a rollback brings the weights back cannot be told: {objective.metric} was {first:.4g} at "
                f"first and {last:.4g} before it.",
                "Let it train longer: give --seconds more, or evaluate less often.",
            )
        return
    place = (found - first) / (last - first)  # 0: as at first; 1: as before the rollback, or a little further
    figures = (
        f"{objective.metric} was {first:.4g} at the first evaluation, {last:.4g} before the rollback and {found:.4g} "
        "after it"
    )
    if place >= 0.75 and abs(found - last) <= 0.5 * scale:
        at_once = after.step - step <= AT_ONCE * before[0].step
        if not seen.compared:
            checked.error(
                f"A rollback to the initial weights changed nothing: {figures}.",
                "Restore the weights, and the optimizer's state, where `do(to)` of the command gets its checkpoint.",
            )
        elif at_once and _steady(before, objective.metric):
            checked.error(f"After a rollback to the initial weights it evaluates as before it: {figures}.", EVALUATED)
        else:
            checked.warning(
                f"After a rollback to the initial weights it evaluated as before it, or learned it again: {figures}.",
                EVALUATED,
            )
    elif place <= 0.5:
        checked.passed.append(
            f"rollback: {objective.metric} is {found:.4g} after it, {first:.4g} at first, {last:.4g} before it"
        )


def _steady(evals: list[protocol.Eval], metric: str) -> bool:
    """Whether the figure goes its way without much noise."""
    values = [item.metrics[metric] for item in evals if metric in item.metrics]
    way = sum(abs(b - a) for a, b in itertools.pairwise(values))
    return way <= STEADY * abs(values[-1] - values[0])


def _trains(checked: Checked, seen: Seen) -> None:
    """Whether anything moves after a rollback: the very same figures twice, where no two were the same before it.

    Told of the first one only.
    """
    answers = [seen.answers.get(rollback.revision) for rollback in seen.rollbacks]
    done = [answer.seq for answer in answers if isinstance(answer, protocol.Applied)]
    before = [item for item in seen.evals if done and item.seq < done[0]]
    moved = [a.metrics != b.metrics for a, b in itertools.pairwise(before)]
    if not moved or not all(moved):
        return
    for begin, end in itertools.pairwise([*done, math.inf]):
        after = [item for item in seen.evals if begin < item.seq < end][:2]
        if len(after) == 2 and after[0].metrics == after[1].metrics and after[0].step < after[1].step:
            break
    else:
        return
    name, value = next(iter(after[0].metrics.items()))
    checked.error(
        f"After a rollback nothing is learned any more: {name} is {value:.9g} at step {after[0].step} and "
        f"at step {after[1].step}.",
        "load() must fill the model that the optimizer trains (`model.load_state_dict`): of a new model nobody knows.",
    )


def _nearer(value: float, one: float, other: float) -> bool:
    """Whether a value is clearly more like ``one``, or beyond it, than like ``other``."""
    apart = one - other
    return abs(apart) > HARDLY * max(abs(one), abs(other)) and (value - other) / apart > 0.6
