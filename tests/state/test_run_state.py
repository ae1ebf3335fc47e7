"""The state as a fold: the same whichever way the records are cut, in constant space, and honest about NaN."""

from __future__ import annotations

import copy
import json
import math
import pickle
import statistics
from typing import Any

import pytest
from factories import TOTAL, applied, checkpoint, curve, dropout, end, evaluation, fold, log, lr, refused, start, step
from factories.profiles import examples
from factories.situations import situation
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract import protocol
from trainmgr.contract.policy import ParameterLimits, Policy
from trainmgr.contract.protocol import parse_telemetry
from trainmgr.state import run_state
from trainmgr.state.evaluations import NORMS, SPIKE, USUAL, Norms
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.signals import measure

STEPS = st.integers(0, TOTAL)
VALUES = st.sampled_from([0.0, 1.0, 2.5, math.inf, 1e308, -1e308])  # not NaN, which is not equal to itself
NAMES = st.sampled_from(["val", "train", "loss", "grad_norm", "x" * 99])
RECORDS = st.lists(
    st.builds(lambda s, m: step(s, **m), STEPS, st.dictionaries(NAMES, VALUES, max_size=3))
    | st.builds(lambda s, v, p: evaluation(s, v, params=p), STEPS, VALUES,
                st.dictionaries(st.sampled_from(["lr", "other"]), st.sampled_from([1e-3, 3e-3, "NaN"])))
    | st.builds(checkpoint, STEPS, best=st.booleans())
    | st.builds(applied, STEPS, st.integers(1, 9), st.just({"lr": (3e-3, 1e-3)}) | st.just({}),
                st.sampled_from([None, "rollback"]))
    | st.builds(refused, STEPS, st.integers(1, 9)) | st.builds(log, st.text(max_size=5)) | st.builds(end, STEPS)
    | st.builds(lambda v, s: start(lr(value=v), seq=s), st.sampled_from([1e-3, 3e-3]), st.integers(0, 9))
    | st.builds(lambda k: protocol.Unreadable(kind=k, quote="", reason=""), st.sampled_from(["garbage", "unknown"])),
    max_size=25,
)  # fmt: skip


@examples(150)
@given(RECORDS, st.integers(0, 25))
def test_folding_in_two_parts_is_folding_at_once(records: list[Any], cut: int) -> None:
    whole, parts = RunState(), RunState()
    for record in records:
        whole.fold(record)
    for record in records[:cut]:
        parts.fold(record)
    for again in (pickle.loads(pickle.dumps(parts)), copy.deepcopy(parts), parts):
        for record in records[cut:]:
            again.fold(record)
        assert again == whole
        assert repr(again) == repr(whole)


@examples(100)
@given(RECORDS)
def test_records_are_only_read(records: list[Any]) -> None:
    before = [pickle.dumps(record) for record in records]
    for state in (RunState(), fold([start(lr())])):
        for record in records:
            state.fold(record)
        state.finish()
    assert [pickle.dumps(record) for record in records] == before


def sizes(state: RunState) -> dict[str, int]:
    return {name: len(value) for name, value in vars(state).items() if hasattr(value, "__len__")}


def long_run(count: int) -> RunState:
    """Many records, all of them with names never seen before."""
    state = fold([start()])
    for i in range(count // 10):
        fold([*(step(i, **{f"m{i * 5 + j}": 1.0, "grad_norm": 1.0}) for j in range(5)),
              evaluation(i, float(i), params={f"p{i}": 1}, **{f"e{i}": math.nan}),
              applied(i, i + 1, {"lr": (3e-3, 1e-3 + i * 1e-9), f"q{i}": (1, 2)}), log("x" * 500),
              checkpoint(i), refused(i, i + 1)], state)  # fmt: skip
    return state


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run() -> None:
    short, long = long_run(2_000), long_run(50_000)
    assert sizes(short) == sizes(long)
    assert len(pickle.dumps(long)) < 1.05 * len(pickle.dumps(short)) + 1_000
    assert (long.records, long.evals) == (50_001, 5_000)


def test_ten_thousand_names_in_one_stretch_are_counted_not_kept() -> None:
    state = fold([start(), *(step(i, **{f"m{i}": 1.0}) for i in range(10_000))])
    assert len(state.windows) == run_state.NAMES
    assert state.notices.kinds["name"].count == 10_000 - run_state.NAMES
    many = fold([start(), evaluation(1, 1.0, **{f"m{i}": 1.0 for i in range(1000)}, train=2.0)])
    assert list(many.evaluations[0].metrics)[:2] == ["val", "train"]
    assert len(many.evaluations[0].metrics) == run_state.NAMES
    assert many.notices.kinds["name"].count == 1002 - run_state.NAMES


def test_long_names_and_texts_are_not_kept() -> None:
    long = "x" * 60_000
    state = fold([start(), step(1, **{long: 1.0}), evaluation(1, 1.0, **{long: 1.0}), log(long, level=long)])
    assert len(pickle.dumps(state)) < 10_000
    assert state.notices.kinds["name"].count == 2


def test_restarts_with_ever_new_parameters_do_not_add_up() -> None:
    state = fold([start(lr(name=f"p{i}")) for i in range(100)])
    assert list(state.recipe) == ["p99"]
    assert state.starts == 100


@pytest.mark.parametrize(("mode", "values", "best"), [
    ("min", [3.0, 1.0, 2.0], (20, 1.0)), ("max", [1.0, 3.0, 2.0], (20, 3.0)),
    ("min", [math.nan, 2.0, math.nan], (20, 2.0)), ("max", [math.inf, 2.0, math.nan], (20, 2.0)),
    ("min", [-math.inf, 2.0], (20, 2.0)), ("min", [math.nan], None), ("min", [2.0, 2.0], (10, 2.0)),
])  # fmt: skip
def test_the_best_is_finite_and_the_first_of_equals(mode: str, values: list[float], best: Any) -> None:
    state = curve(values, mode=mode)
    assert state.best == best
    assert state.evals_since_best == (len(values) - best[0] // 10 if best else 0)  # nothing stands still before
    assert state.evals == len(values)


def test_nan_is_counted_and_kept() -> None:
    state = fold([start(), step(1, loss=math.nan), step(2, loss=math.inf, acc=1.0)])
    assert (state.non_finite, state.non_finite_total) == (2, 2)
    assert state.windows["loss"].non_finite == 2
    fold([evaluation(2, math.nan)], state)
    assert (state.non_finite, state.non_finite_total) == (0, 3)
    assert state.evaluations[-1].non_finite == 3
    assert math.isnan(state.latest or 0.0)
    assert state.evaluations[-1].means == {"acc": 1.0}


def test_a_first_counterpart_that_is_not_finite_waits_for_one_that_is() -> None:
    state = curve([2.0, 1.9, 1.8], train=[math.inf, 1.5, 1.4])
    assert state.first_counterpart == 1.5


def test_interventions_are_measured_until_the_next_change() -> None:
    state = curve([2.0, 1.9])
    fold([applied(20, 1, {"lr": (3e-3, 1e-3)}), evaluation(30, 1.8), applied(30, 2, command="rollback")], state)
    first, second = state.interventions
    assert (first.before, first.after, first.closed) == (1.9, [(30, 1.8)], "next change")
    assert (second.before, second.closed) == (1.8, None)
    assert state.changed_at == {"lr": 2}
    assert state.rollback_at == 3
    fold([evaluation(40 + i, 1.0) for i in range(run_state.OUTCOME_EVALS + 3)], state)
    assert second.closed == "measured"
    assert len(second.after) == run_state.OUTCOME_EVALS
    fold([applied(90, 3, {"lr": (1e-3, 2e-3)}), end(100)], state)
    assert state.interventions[-1].closed == "end"
    assert (state.intervention_count, state.acknowledged) == (3, 3)


def test_an_acknowledgment_without_a_change_is_no_intervention() -> None:
    state = fold([start(), applied(1, 1), applied(2, 2, {"stranger": (1, 2)}), refused(3, 3)])
    assert state.interventions == []
    assert state.acknowledged == 3
    assert "stranger" not in state.recipe


def test_a_change_without_an_override_is_drift() -> None:
    state = fold([start(lr(), dropout(scheduled=True)), evaluation(10, 1.0, params={"lr": 3e-3, "dropout": 0.1})])
    assert state.drifts == []
    assert state.recipe["dropout"] == 0.1
    fold([evaluation(20, 1.0, params={"lr": 1e-3}), evaluation(30, 1.0, params={"lr": "NaN", "else": 1})], state)
    assert [(d.name, d.expected, d.found, d.restart) for d in state.drifts] == [
        ("lr", 3e-3, 1e-3, False),
        ("lr", 1e-3, "NaN", False),
    ]
    fold([evaluation(40 + i, 1.0, params={"lr": 1e-3 * (1 + i % 2)}) for i in range(100)], state)
    assert len(state.drifts) == run_state.INTERVENTIONS
    assert state.drift_count == 102


def test_a_restart_begins_where_it_resumed() -> None:
    state = fold([start(lr()), step(80, loss=1.0), end(80)])
    fold([start(lr(value=1e-3), resumed=protocol.Resumed(path="checkpoints/x", step=50))], state)
    assert (state.starts, state.step, state.end) == (2, 50, None)
    assert [(d.step, d.restart, d.found) for d in state.drifts] == [(50, True, 1e-3)]
    assert state.recipe == {"lr": 1e-3}


def test_gaps_in_seq() -> None:
    state = RunState()
    for seq in (0, 1, 4, 4, 5):
        state.fold(step(1).model_copy(update={"seq": seq}))
    assert state.gaps == 3
    state.fold(protocol.Unreadable(kind="unknown", quote="", reason=""))
    state.fold(step(2).model_copy(update={"seq": 7}))
    assert (state.gaps, state.unknown, state.garbage) == (3, 1, 0)
    state.fold(protocol.Unreadable(kind="garbage", quote="", reason=""))
    state.fold(step(2).model_copy(update={"seq": 9}))
    assert (state.gaps, state.garbage) == (4, 1)


def test_gradient_outliers() -> None:
    state = fold([start(), *(step(i, grad_norm=1.0) for i in range(8)), step(9, grad_norm=11.0),
                  step(10, grad_norm=9.0), evaluation(10, 1.0)])  # fmt: skip
    assert state.evaluations[0].spikes == 0.1


def test_a_run_that_ended_on_its_best_ended_with_what_that_is_worth() -> None:
    records = [start(), evaluation(10, 1.0), evaluation(20, 2.0)]
    for to, final in (("best", 1.0), (None, 2.0)):
        assert run_state.figures(fold([*records, applied(20, 1, command="stop", to=to)]))["final"] == final


def test_records_before_the_start_do_no_harm() -> None:
    state = fold([step(1, loss=1.0), evaluation(2, 1.0), checkpoint(2), applied(2, 1, {"lr": (1, 2)})])
    assert state.best is None
    assert state.latest is None
    assert run_state.figures(state)["objective"] is None


@pytest.mark.parametrize(("resumed", "best"), [(None, None), (40, (40, 3.0))])
def test_a_restart_forgets_what_was_measured_beyond_it(resumed: int | None, best: tuple[int, float] | None) -> None:
    space = [{"name": "lr", "type": "float", "low": 0.0, "high": 1.0, "value": 0.1}]
    begin = {"v": 1, "t": 0.0, "event": "start", "workload": "w", "pid": 1, "objective": {"metric": "x", "mode": "min"}}
    records: list[dict[str, object]] = [{**begin, "action_space": space}]
    for at, value in ((20, 4.0), (40, 3.0), (60, 1.0)):
        records.append({"v": 1, "t": 0.0, "event": "eval", "step": at, "metrics": {"x": value}})
        records.append({"v": 1, "t": 0.0, "event": "checkpoint", "step": at, "path": f"c{at}", "best": True})
    again = {"path": "c", "step": resumed} if resumed is not None else None
    records.append({**begin, "action_space": space, "resumed": again})
    state = RunState()
    for seq, record in enumerate(records):
        state.fold(parse_telemetry(json.dumps({**record, "seq": seq}).encode()))
    assert state.best == best
    assert state.lineage.best is None
    assert [e.step for e in state.evaluations] == ([20, 40] if resumed else [])


# -- the course that a forecast rests on ---------------------------------------------------------------------------


def test_the_course_leads_to_the_weights_of_now() -> None:
    state = curve([4.0, 3.0, 2.0])
    fold([checkpoint(30), evaluation(40, 2.5), applied(40, 1, command="rollback")], state)
    assert [value for _, value in state.lineage.course_before] == [4.0, 3.0, 2.0, 2.5]
    assert state.lineage.course == [(10, 4.0), (20, 3.0), (30, 2.0)]
    initial = applied(50, 2).model_copy(update={"command": protocol.Command(id="d2", name="rollback", to="initial")})
    fold([evaluation(50, 1.9), initial, evaluation(60, 3.9)], state)
    assert state.lineage.course == [(10, 4.0), (60, 3.9)]
    fold([applied(60, 3, command="rollback")], state)
    assert [step for step, _ in state.lineage.course] == [10, 20, 30]
    fold([evaluation(70 + i, 2.0) for i in range(50)], state)
    assert len(state.lineage.course) == 12


def test_what_rollbacks_undid_is_counted() -> None:
    def to(where: str, at: int) -> protocol.Applied:
        command = protocol.Command(id=f"d{at}", name="rollback", to=where)
        return applied(at, at).model_copy(update={"command": command})

    kept = checkpoint(50, best=False).model_copy(update={"path": "checkpoints/trial.pt"})
    state = fold([start(lr()), step(0), checkpoint(0, best=False), step(30), checkpoint(30), step(50)])
    fold([to("best", 50), kept], state)
    assert (state.lineage.undone, state.lineage.set_back) == (20, 20)
    fold([step(60), to("initial", 60)], state)
    assert (state.lineage.undone, state.lineage.set_back) == (40, 60)
    fold([step(70), to("checkpoints/trial.pt", 70)], state)  # those of step 50 were trained for longer
    assert (state.lineage.undone, state.lineage.set_back) == (0, 20)
    saved = checkpoint(75)
    fold([step(75), evaluation(75, 1.0), to("initial", 75), saved], state)  # on disk before, reported after
    assert (state.lineage.undone, state.lineage.best and state.lineage.best.trained) == (55, 55)
    fold([step(78), to("best", 78), to("initial", 78), evaluation(78, 0.9), checkpoint(78)], state)
    assert (state.lineage.best and state.lineage.best.trained, state.lineage.set_back) == (0, 78)
    fold([step(80), to("best", 80), step(90), to("best", 90), to("elsewhere", 91)], state)
    assert (state.lineage.undone, state.lineage.set_back) == (0, 90)


@pytest.mark.parametrize("beyond", [step(31), evaluation(640, 1.0)])
def test_how_many_steps_are_left_is_not_known_once_the_plan_is_overrun(beyond: Any) -> None:
    state = fold([start(total_steps=30), step(10), evaluation(10, 2.0), step(20), evaluation(20, 1.5)])
    assert (state.steps_left, state.evals_left, state.nearly_over) == (10, 1.0, True)
    for record in (beyond, step(25)):  # nor after a step that is within it
        fold([record], state)
        assert (state.steps_left, state.evals_left, state.nearly_over) == (None, None, False)
    fold([start(total_steps=30), step(5)], state)
    assert state.steps_left == 25


@pytest.mark.parametrize("rows", [
    [evaluation(20, 1.0), evaluation(20, other=5.0)], [evaluation(20, other=5.0), evaluation(20, 1.0)],
    [evaluation(20, other=5.0), evaluation(20, 1.0), evaluation(20, more=2.0)],
])  # fmt: skip
def test_evaluations_of_one_step_are_one_where_one_of_them_has_the_objective(rows: list[Any]) -> None:
    """As of other data, or of a test set under another name."""
    state = fold([start(), step(10, loss=1.0), evaluation(10, 2.0), step(20, loss=0.5), *rows])
    assert (state.evals, state.latest, state.best, state.unseen, state.evals_since_best) == (2, 1.0, (20, 1.0), 0, 0)
    assert state.evaluations[-1].metrics.items() >= {"val": 1.0, "other": 5.0}.items()
    assert state.evaluations[-1].means == {"loss": 0.5}
    assert run_state.figures(state)["final"] == 1.0


@pytest.mark.parametrize("between", [[step(5)], [applied(20, 1, command="rollback")]])
def test_what_was_measured_before_the_weights_changed_is_not_their_objective(between: list[Any]) -> None:
    state = fold([start(), step(20), evaluation(20, 1.0), *between, evaluation(20, other=5.0)])
    assert (state.evals, state.latest, state.unseen) == (2, None, 1)
    assert run_state.figures(state)["final"] is None


def test_several_measurements_at_one_step_stay_several() -> None:
    state = fold([start(), evaluation(20, 1.0), evaluation(20, 2.0)])
    assert (state.evals, state.evals_since_best, len(state.evaluations)) == (2, 1, 2)


def test_how_long_ago_something_was_measured_counts_every_evaluation() -> None:
    state = fold([start(), evaluation(10, 1.0), evaluation(20, other=1.0), evaluation(30, 2.0)])
    assert (state.evals_since_best, state.without, state.unseen) == (1, 1, 0)
    fold([evaluation(40, other=1.0), evaluation(50, other=1.0)], state)
    assert (state.evals_since_best, state.without, state.unseen) == (1, 3, 2)
    fold([start(resumed=protocol.Resumed(path="x", step=40))], state)
    assert (state.evals_since_best, state.without, state.unseen) == (1, 2, 0)
    fold([evaluation(50, 0.5)], state)
    assert (state.evals_since_best, state.without, state.unseen) == (0, 0, 0)


def test_what_was_measured_before_a_rollback_is_no_end() -> None:
    state = fold([start(), evaluation(10, 1.0), evaluation(20, 2.0), applied(20, 1, command="rollback"), end(20)])
    assert (run_state.figures(state)["final"], state.rolled_back) == (None, True)
    fold([evaluation(30, 1.0)], state)
    assert (run_state.figures(state)["final"], state.rolled_back) == (1.0, False)


def test_a_change_that_changes_nothing_that_is_shown_is_no_intervention() -> None:
    """As where a rate is kept in 32 bits."""
    state = fold([start(lr(value=1e-3)), evaluation(10, 1.0)])
    fold([applied(10, 1, {"lr": (1e-3, 0.0010000000474974513)})], state)
    assert (state.interventions, state.intervention_count, state.changed_at, state.acknowledged) == ([], 0, {}, 1)
    assert state.recipe == {"lr": 0.0010000000474974513}
    fold([applied(10, 2, {"lr": (1e-3, 1e-3)}, "rollback", "best")], state)
    assert [(item.changes, item.command is not None) for item in state.interventions] == [({}, True)]
    fold([applied(10, 3, {"lr": (1e-3, 1.001e-3)})], state)
    assert state.intervention_count == 2


@examples(100)
@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 1.5, 11.0, 200.0, -3.0, 1e308]) | st.floats(0, 30), max_size=150))
def test_outliers_are_those_of_the_median_of_the_last_norms(values: list[float]) -> None:
    norms, outlying = Norms(), 0
    for number, value in enumerate(values):
        before = values[max(0, number - NORMS) : number]
        outlying += len(before) >= USUAL and value > SPIKE * statistics.median(before)
        norms.add(value)
    assert (norms.count, norms.outlying, list(norms.recent)) == (len(values), outlying, values[-NORMS:])


def test_what_is_derived_once_for_one_decision_is_of_this_very_moment() -> None:
    """What it is derived from once cannot go on under it: the next moment is another situation."""
    records = [start(lr(value=3e-3)), step(1), evaluation(1, 1.0), step(2), evaluation(2, 2.0),
               applied(3, 1, {"lr": (3e-3, 1e-3)}), step(4), evaluation(4, 0.5)]  # fmt: skip
    state, narrow = RunState(), Policy(parameters={"lr": ParameterLimits(high=2e-3)})
    for record in records:
        state.fold(record)
        now = situation(state, narrow)
        assert (now.signals, now.declared) == (measure(state), state.space)
        assert now.signals is now.signals
        assert now.space is now.space
    assert now.declared.parameters["lr"].value == 1e-3
    assert now.space.parameters["lr"].high == 2e-3
    assert situation(state).space.parameters["lr"].high == now.declared.parameters["lr"].high
    assert situation(state, narrow, Ledger(trust={"lr": 0.5})).space != now.space
