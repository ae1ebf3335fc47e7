"""What a run is compared with others by: bounded whatever its length, and the same for the same training only."""

from __future__ import annotations

import math
from typing import Any

import factories
import pytest
from factories import applied, evaluation, fold, start, step
from hypothesis import given, settings
from hypothesis import strategies as st

from trainmgr.contract import events, protocol
from trainmgr.contract.run_file import Measured
from trainmgr.state.course import POINTS, SEEN
from trainmgr.state.ledger import Ledger
from trainmgr.state.measured import measured
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation


def summed(*records: protocol.Telemetry) -> Measured:
    return measured(Situation(fold(records), Ledger()))


def ended(at: int, **metrics: float) -> protocol.End:
    return factories.end(at).model_copy(update={"metrics": metrics})


def test_the_curve_is_that_of_the_weights_that_were_kept() -> None:
    found = summed(
        start(mode="max"),
        evaluation(10, 1.0),
        evaluation(20, 2.0),
        evaluation(25, other=2.0),
        evaluation(30, 3.0),
        start(mode="max", resumed=protocol.Resumed(path="checkpoints/x", step=20)),
        evaluation(30, 4.0),
    )
    assert (found.goal, found.every, found.curve) == ("max", 1, [(10, 1.0), (20, 2.0), (30, 4.0)])
    assert (found.calls, found.tokens, found.money) == (0, 0, 0.0)


@settings(deadline=None)
@given(st.integers(0, 5 * POINTS))
def test_a_long_curve_has_points_at_one_distance_and_its_end(count: int) -> None:
    curve = [(step, 1.0 / (step + 1)) for step in range(count)]
    found = summed(start(), *(evaluation(*point) for point in curve))
    assert found.every == 1 or len(curve) > POINTS
    assert found.curve == [*curve[:: found.every], *(curve[-1:] if (count - 1) % found.every else [])]
    assert len(found.curve) <= POINTS + 1
    assert count <= POINTS or len(found.curve) > POINTS // 2


@settings(deadline=None)
@given(st.lists(st.integers(0, 3 * POINTS), max_size=4))
def test_a_curve_stays_bounded_and_in_order_over_restarts(lengths: list[int]) -> None:
    state, at = fold([start()]), 0
    for length in lengths:
        fold((evaluation(at + i + 1, 1.0) for i in range(length)), state)
        at = (at + length) // 2
        fold([start(resumed=protocol.Resumed(path="x", step=at))], state)
        assert all(step <= at for step, _ in state.course.curve)
    found = measured(Situation(fold([evaluation(at + 1, 2.0)], state), Ledger()))
    assert [step for step, _ in found.curve] == sorted({step for step, _ in found.curve})
    assert found.curve[-1] == (at + 1, 2.0)
    assert len(found.curve) <= POINTS + 1


@pytest.mark.parametrize(("command", "to", "on_best"), [
    ("stop", "best", True), ("stop", None, False), ("rollback", "best", False), (None, None, False),
])  # fmt: skip
def test_whether_a_run_ended_on_its_best(command: str | None, to: str | None, on_best: bool) -> None:
    change = applied(10, 1, {"lr": (3e-3, 5e-4)})
    records: list[Any] = [start(), change, applied(20, 2, command=command, to=to)]
    assert summed(*records).on_best is on_best
    assert not summed(*records, start()).on_best  # it began again


def test_what_only_the_end_tells_is_held_out() -> None:
    records = [step(5, loss=1.0, test_of_step=1.0), evaluation(10, 1.0, test_of_eval=3.0), step(15, late=1.0)]
    last = ended(20, test=1.0, test_of_step=2.0, test_of_eval=3.0, late=1.0, val=1.0, **{"x" * 99: 1.0})
    assert summed(start(), *records, last).held_out == ["test"]
    assert summed(start(), *records).held_out == []
    many = [step(i, **{f"m{i}_{j}": 1.0 for j in range(70)}) for i in range(SEEN // 70 + 1)]
    assert summed(start(), *many, last).held_out == []  # nobody knows
    assert len(fold([start(), *many]).course.seen) == SEEN


@pytest.mark.parametrize(("prices", "money"), [([0.25, 0.5], 0.75), ([0.25, None], None), ([None, 0.25], None)])
def test_calls_are_counted_and_what_is_not_known_is_not_nothing(
    prices: list[float | None], money: float | None
) -> None:
    request = events.Request(
        decision="d1", purpose="decide", attempt=0, endpoint="", model="m", level="text", template="t",
        template_sha256="", messages=[], answer_schema=None, parameters={}, prompt_tokens=900,
    )  # fmt: skip
    reply = events.Reply(decision="d1", text="{}", prompt_tokens=900, completion_tokens=100, money=None, seconds=1.0)
    ledger = Ledger()
    for price in prices:
        ledger.fold(request)
        ledger.fold(reply.model_copy(update={"money": price}))
    found = measured(Situation(RunState(), ledger))
    assert (found.goal, found.calls, found.tokens, found.money) == (None, 2, 2000, money)


def test_two_runs_have_the_same_digests_where_all_figures_are_the_same() -> None:
    first, second, more = step(10, loss=1.5), evaluation(10, 1.0), evaluation(20, 0.5)
    one = summed(start(), first, second, more)
    later = summed(start(), *(record.model_copy(update={"t": 9e9}) for record in (first, second, more)))
    assert later == one
    for course, other in (
        (False, (first, evaluation(10, math.nextafter(1.0, 2)), more)),
        (False, (first, second)),
        (True, (first, evaluation(10, 1.0, extra=0.0), more)),
        (True, (step(10, loss=math.nextafter(1.5, 2)), second, more)),
    ):
        found = summed(start(), *other)
        assert (found.course == one.course) is course
        assert found.figures != one.figures
    assert summed(start(), step(5, loss=9.0), first, second, more).figures == one.figures  # only the last step counts
    assert summed(start(), first).figures is summed(start(), first).course is None
