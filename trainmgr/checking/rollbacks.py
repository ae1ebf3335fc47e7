"""What the rollbacks of `trainmgr check` did to a script, judged. Pure."""

from __future__ import annotations

import itertools
import math

from trainmgr.checking.checked import Checked
from trainmgr.checking.seen import Rollback, Seen
from trainmgr.contract import protocol

HARDLY = 0.01  # of a rate: a smaller difference says nothing
LEARNED = 0.2  # of the objective: with less progress than that a rollback cannot be seen by it
AT_ONCE = 0.25  # of the steps to the first evaluation: in so few nothing much is learned again
STEADY = 2.0  # times the way from the first to the last figure: a series that goes further is noise
CLOSE = 1e-9  # relative
SCHEDULE = "load() must leave the scheduler alone: its plan is for the whole run. Only a resume restores it."
EVALUATED = (
    "save() and load() must know all that is evaluated: averaged weights (EMA) too. load() must fill what is there: it "
    "has loaded nothing if names differ (`module.`, strict=False)."
)


def judge(checked: Checked, seen: Seen) -> None:
    """All of them."""
    for rollback in seen.rollbacks:
        _rolled(checked, seen, rollback)
    _scheduled(checked, seen)
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
    if where == "initial":
        _brought_back(checked, seen, before, answer.step, after[0])
    else:
        checked.passed.append(f"rollback to {where}: done")


def _scheduled(checked: Checked, seen: Seen) -> None:
    """Whether schedules are where they would be without the rollbacks: there is a run without one, of another seed.

    One that both runs followed to the last digit must be the same to the last digit. Any other (it may wait for what is
    measured) must not be more like its beginning after a rollback to that, unless it is so in the other run, too: warm
    restarts begin again by themselves.
    """
    alone = {item.step: item.moving for item in seen.other or () if isinstance(item, protocol.Eval)}
    begun = seen.done()
    plain = [item for item in seen.evals if begun and item.seq < begun[0].seq]
    for name in plain[0].moving if plain else ():
        before = plain
        after = [item for item in seen.evals if item.seq > begun[0].seq and name in item.moving]
        known = _follows(name, before, alone)
        if seen.other is not None and max(alone, default=0) < before[-1].step:
            checked.warning(
                f"Whether the schedule of {name} goes on after a rollback cannot be told: without one the script got "
                f"to step {max(alone, default=0)}, with one to step {before[-1].step} before it.",
                "Check it again when the machine has less to do.",
            )
            continue
        if not known:
            back = [answer for answer in begun if answer.command and answer.command.to == "initial"]
            before = [item for item in seen.evals if back and item.seq < back[0].seq] or plain
            after = [item for item in after if back and item.seq > back[0].seq][:1]
        first, last = before[0].moving.get(name), before[-1].moving.get(name)
        if not first or not last or not after:
            continue
        if not known and not _nearer(after[0].moving[name].value, first.value, last.value):
            continue
        near = CLOSE * abs(last.value) if known else 0.1 * abs(first.value - last.value)
        planned = [(item, alone[item.step][name]) for item in after if name in alone.get(item.step, {})]
        off = [(item, there) for item, there in planned if abs(item.moving[name].value - there.value) > near]
        if off:
            item, there = off[-1]
            checked.error(
                f"After a rollback the schedule of {name} began again: it is {item.moving[name].value:.9g} at step "
                f"{item.step}, and {there.value:.9g} there in a run without a rollback.",
                SCHEDULE,
            )
        elif not planned:
            checked.warning(
                f"After a rollback the schedule of {name} may have begun again: {last.value:.4g} before it, "
                f"{after[0].moving[name].value:.4g} after it, {first.value:.4g} at the first evaluation.",
                SCHEDULE,
            )


def _follows(name: str, before: list[protocol.Eval], alone: dict[int, dict[str, protocol.Moving]]) -> bool:
    """Whether a schedule is a plan that both runs followed, and that has moved at each evaluation."""
    values = [(item.moving[name].value, alone.get(item.step, {}).get(name)) for item in before if name in item.moving]
    same = [there is not None and abs(value - there.value) <= CLOSE * abs(value) for value, there in values]
    moves = len(values) > 1 and all(a != b for (a, _), (b, _) in itertools.pairwise(values))
    return moves and all(same) and any(item.moving[name].end is not None for item in before if name in item.moving)


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
    done = [answer.seq for answer in seen.done()]
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
