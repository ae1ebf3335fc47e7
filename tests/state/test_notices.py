"""What cannot be used as it was reported: counted, said with the first of it, and no end is claimed from before it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from factories import checkpoint, curve, end, evaluation, fold, log, start, step
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract import protocol
from trainmgr.contract.protocol import parse_telemetry
from trainmgr.state.notices import TEXT, Notice
from trainmgr.state.run_state import NAMES, RunState, figures
from trainmgr.terminal import display

HEAD = {"v": 1, "t": 0.0}


def garbage(event: str = "", reason: str = "not JSON") -> protocol.Unreadable:
    return protocol.Unreadable(kind="garbage", quote="", reason=reason, event=event)


def read(**fields: Any) -> Any:
    return parse_telemetry(json.dumps({**HEAD, "seq": 0, **fields}).encode())


def notices(state: RunState) -> dict[str, tuple[int, str]]:
    return {kind: (notice.count, notice.first) for kind, notice in state.notices.kinds.items()}


def test_each_kind_is_counted_and_the_first_of_it_kept_with_its_line() -> None:
    state = fold([start(), step(1, loss=1.0)])
    for reason in ("not JSON", "too long"):
        state.fold(garbage(reason=reason))
    state.fold(read(event="novelty"))
    bad = {"val": 1.0, "f1": None, "auc": [1], "lr": math.nan}
    fold([read(event="eval", step=1, metrics=bad), log("the loader was restarted", "warning"), log("hello")], state)
    assert notices(state) == {
        "unreadable": (2, "line 3: not JSON"),
        "unknown": (1, "line 5: event 'novelty' is not known"),
        "left out": (2, "line 6: metrics.f1: must be a number (found None)"),
        "spelling": (1, "line 6: metrics.lr: NaN without quotes"),
        "warning": (1, "line 7: the loader was restarted"),
    }
    assert state.lines == 8
    unreadable, unknown = state.notices.in_words(("unreadable", "unknown"))
    assert unreadable.startswith("2 lines of telemetry could not be read; the first: line 3: not JSON. schemas/")
    assert unknown.startswith("1 record is of an event that is not known: line 5: event 'novelty' is not known. schem")


def test_a_run_in_shape_has_none() -> None:
    assert curve([3.0, 2.0, math.nan, math.inf]).notices.kinds == {}


def test_a_counter_that_begins_again_with_each_epoch_is_noted_once_for_each() -> None:
    state = fold([start()])
    for epoch in range(3):
        fold([step(at) for at in range(1, 6)] + [evaluation(5, 1.0 - epoch / 10)], state)
    assert notices(state) == {"back": (2, "line 8: from 5 to 1")}


def test_evaluations_counted_in_epochs_are_noted() -> None:
    state = fold([start()])
    for epoch in range(1, 4):
        fold([step(epoch * 100), evaluation(epoch, 1.0)], state)
    assert notices(state) == {
        "back": (2, "line 5: an evaluation at step 2; the one before it came after step 100"),
    }


def test_steps_reported_twice_evaluations_that_come_late_and_restarts_are_no_step_back() -> None:
    state = fold([start(), step(1), step(1), step(90), evaluation(90, 2.0), step(130), evaluation(100, 1.0), step(140)])
    fold([start(resumed=protocol.Resumed(path="x", step=100)), step(101), step(110), evaluation(110, 1.0)], state)
    fold([start(), step(1), evaluation(1, 1.0)], state)
    assert notices(state) == {}
    fold([start(resumed=protocol.Resumed(path="x", step=100)), step(1)], state)  # goes on elsewhere than it says
    assert notices(state) == {"back": (1, "line 17: from 100 to 1")}


def test_names_that_are_not_followed_are_noted() -> None:
    state = fold([start(), step(7, **{"x" * 65: 1.0}), evaluation(7, 1.0, **{"y" * 99: 1.0})])
    assert notices(state) == {"name": (2, f"line 2: {'x' * 39}… (65 characters)")}
    many = fold([start(), evaluation(1, 1.0, **{f"m{i}": 1.0 for i in range(NAMES + 3)})])
    assert notices(many) == {"name": (4, f"line 2: m{NAMES - 1} (beyond the first 64 names)")}


@pytest.mark.parametrize("metrics", ["garbage", {"val": None, "acc": 0.5}, {"val": [1.0]}])
def test_the_end_is_not_claimed_from_before_evaluations_that_are_lost(metrics: Any) -> None:
    state = curve([3.0, 1.0])
    for at in (30, 40):
        item = garbage("eval") if metrics == "garbage" else read(event="eval", step=at, metrics=metrics)
        state.fold(item if metrics == "garbage" else item.model_copy(update={"seq": state.next_seq}))
    state.finish()
    assert (state.notices.lost, figures(state)["final"], figures(state)["best"]) == (2, None, 1.0)
    assert state.notices.lost_why.startswith("line 7: ")
    fold([evaluation(50, 2.0)], state)
    assert (state.notices.lost, state.notices.lost_why, figures(state)["final"]) == (0, "", 2.0)


def test_what_the_script_says_at_its_end_is_an_end() -> None:
    state = curve([3.0, 1.0])
    state.fold(garbage("eval"))
    fold([read(event="end", step=30, status="completed", metrics={"val": 1.5})], state)
    assert figures(state)["final"] == 1.5


def test_a_restart_forgets_what_was_lost_before_it() -> None:
    state = curve([3.0, 1.0])
    state.fold(garbage("eval"))
    fold([start(resumed=protocol.Resumed(path="x", step=20))], state)
    assert (state.notices.lost, figures(state)["final"]) == (0, 1.0)


def test_an_evaluation_that_is_without_the_objective_on_purpose_is_not_lost() -> None:
    state = fold([start(), evaluation(10, 1.0), evaluation(15, None, other=1.0)])
    assert state.notices.lost == 0


ITEMS = st.lists(
    st.builds(garbage, st.sampled_from(["", "eval"]), st.text(max_size=400))
    | st.builds(lambda at: step(at, **{"x" * 70: 1.0}), st.integers(0, 9))
    | st.builds(lambda at: evaluation(at, 1.0), st.integers(0, 9))
    | st.builds(lambda text: log(text, "warning"), st.text(max_size=400)),
    max_size=30,
)


@examples(100)
@given(ITEMS)
def test_they_are_bounded_printable_and_only_grow(items: list[Any]) -> None:
    state, told = RunState(), display.Told()
    before: dict[Any, Notice] = {}
    said: list[str] = []
    for item in items:
        state.fold(item)
        said += told.new(state)
        now = dict(state.notices.kinds)
        assert all(
            now[kind].count >= notice.count and now[kind].first == notice.first for kind, notice in before.items()
        )
        before = now
    assert len(said) == len(before)  # each kind once, when the first of it comes
    assert all(len(notice.first) <= TEXT + 20 for notice in before.values())
    assert all(text.isprintable() for text in state.notices.in_words())


def test_steps_beyond_those_planned_are_noted() -> None:
    state = fold([start(total_steps=3), *(step(at) for at in range(1, 6)), start(), step(9)])
    assert notices(state) == {"beyond": (2, "line 5: step 4 of 3")}


def test_evaluations_beyond_the_steps_planned_are_noted() -> None:
    state = fold([start(total_steps=30), step(10), evaluation(10, 1.0), evaluation(640, 1.0), step(20)])
    assert notices(state) == {"beyond": (1, "line 4: an evaluation at step 640 of 30")}


def test_evaluations_far_beyond_the_training_are_noted() -> None:
    """As where training counts batches and evaluation counts samples."""
    state = fold([start(), step(1), evaluation(64, 1.0), step(2), evaluation(128, 1.0)])
    assert notices(state) == {"apart": (1, "line 5: step 128, and the last step of training is 2")}


@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 1))
def test_training_that_is_reported_rarely_is_not_far_from_its_evaluations(log: int, every: int, first: int) -> None:
    state = fold([start()])
    for at in range(first, 200):
        fold([step(at)] * (at % log == first) + [evaluation(at, 1.0)] * (at % every == 0), state)
    assert notices(state) == {}


def test_records_that_are_missing_or_came_twice_are_noted() -> None:
    state = RunState()
    for at, seq in enumerate((0, 1, 4, 4, 5)):
        state.fold(step(at).model_copy(update={"seq": seq}))
    assert notices(state) == {"gap": (3, "line 3: seq 4 where 2 was to come")}


def test_lines_that_cannot_be_read_are_not_missing_too() -> None:
    state = fold([start(), step(1)])
    state.fold(garbage(""))
    state.fold(step(2).model_copy(update={"seq": 3}))
    fold([step(3)], state)
    assert notices(state) == {"unreadable": (1, "line 3: not JSON")}


@pytest.mark.parametrize(("record", "text"), [
    (step(21), "line 4: step 21 came after it"),
    (evaluation(21, 1.0), "line 4: an evaluation at step 21 came after it"),
])  # fmt: skip
def test_training_that_goes_on_after_its_end_is_no_end(record: Any, text: str) -> None:
    """As where a fork of the training left by sys.exit() and reported it."""
    state = fold([start(), step(20), end(20), record])
    assert (state.end, notices(state)) == (None, {"end": (1, text)})
    assert fold([end(30)], state).end is not None
    assert fold([start(), step(20), end(20), log("bye"), checkpoint(20)]).end is not None
