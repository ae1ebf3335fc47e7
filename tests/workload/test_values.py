"""What the library is given: numbers of other libraries are numbers, and what is none is said where it is given."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st

from trainmgr import workload
from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
from trainmgr.workload import Checkpoints, Workload, values

pytestmark = pytest.mark.usefixtures("alone")

WHOLE = [
    3,
    np.int64(3),
    np.uint8(3),
    np.float32(3.0),
    3.0,
    torch.tensor(3),
    torch.tensor(3.0),
    np.array(3),
    Fraction(3),
]
NOT_WHOLE = [3.5, np.float64(0.5), torch.tensor(2.5), math.nan, math.inf, Decimal("1.5")]
NO_NUMBER = [None, "3", True, np.bool_(True), [3], {"n": 3}, torch.ones(2), np.ones((2, 2)), 3j, object(), b"3"]


def records(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines()]
    return [record for record in found if record["event"] == event]


def said(run: Path) -> list[str]:
    return [f"{record['level']}: {record['message']}" for record in records(run, "log")]


def folded(run: Path) -> RunState:
    """Read by the other side: every line is a record without a flaw."""
    state = RunState()
    for item in Feed(run / "telemetry.jsonl").records():
        assert not isinstance(item, protocol.Unreadable), item
        assert item.flaws == ()
        state.fold(item)
    assert state.gaps == 0
    return state


# ---- values that others go on writing into, and names that only look like text ---------------------------


@pytest.mark.parametrize("buffer", [torch.zeros(()), torch.zeros(1), np.zeros(()), np.zeros((1, 1))], ids=repr)
def test_a_value_is_that_of_the_moment_when_it_was_reported(
    run: Path, monkeypatch: pytest.MonkeyPatch, buffer: Any
) -> None:
    monkeypatch.setattr(Workload, "PERIOD", 1e9)
    with Workload("w", objective="loss") as w:
        for step in range(1, 6):
            buffer[...] = float(step)  # as the next replay of a graph does
            w.step(step, {"loss": buffer, "half": 0.5})
    assert [r["metrics"] for r in records(run, "step")] == [{"loss": float(n), "half": 0.5} for n in range(1, 6)]


class Box:
    """A number of the script's own, which changes."""

    def __init__(self) -> None:
        self.held = 0.0

    def __setitem__(self, _: object, value: float) -> None:
        self.held = value

    def __float__(self) -> float:
        return self.held


@pytest.mark.parametrize("make", [lambda: torch.zeros(()), lambda: np.zeros(()), lambda: np.zeros(1), Box])
def test_whatever_is_reported_has_the_values_of_that_moment(
    run: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]
) -> None:
    monkeypatch.setattr(Workload, "PERIOD", 1e9)
    value = make()
    metrics, info = {"loss": value}, {"x": value, "deep": {"y": [value]}}

    def now(number: float) -> dict[str, Any]:
        value[...] = number
        return metrics

    def save(path: Path) -> None:
        path.touch()
        now(-1.0)

    now(1.0)
    w = Workload("w", objective="loss", info=info)
    keep = Checkpoints(w, save, print)
    now(-1.0)
    w.step(1, now(2.0))
    info["x"] = metrics["late"] = -1.0
    del metrics["late"]
    w.eval(1, now(3.0), split={"part": metrics})
    w.step(2, now(4.0))
    step = np.array(2)
    keep.eval(step, now(5.0), split={"part": metrics})
    step[...] = -1
    w.checkpoint(3, "x", now(6.0))
    w.end(3, now(7.0))
    now(-1.0)
    assert records(run, "start")[0]["info"] == {"x": 1.0, "deep": {"y": [1.0]}}
    found = {
        event: [r["metrics"]["loss"] for r in records(run, event)] for event in ("step", "eval", "checkpoint", "end")
    }
    assert found == {"step": [2.0, 4.0], "eval": [3.0, 5.0], "checkpoint": [5.0, 5.0, 6.0], "end": [7.0]}
    assert [r["split"]["part"]["loss"] for r in records(run, "eval")] == [3.0, 5.0]
    assert (keep.best_step, keep.best_value) == (2, 5.0)


def test_a_loss_with_its_graph_is_a_number_without_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "PERIOD", 1e9)
    weight = torch.ones(3, requires_grad=True)
    with warnings.catch_warnings(record=True) as warned, Workload("w", objective="loss") as w:
        warnings.simplefilter("always")
        for step in (1, 2):
            w.step(step, {"loss": (weight * 2).sum()})
            w.eval(step, {"loss": (weight * 2).sum()})
    assert [r["metrics"] for r in records(run, "step") + records(run, "eval")] == [{"loss": 6.0}] * 4
    assert (said(run), list(map(str, warned))) == ([], [])


def test_what_numpy_masks_was_not_measured(run: Path) -> None:
    masked = [np.ma.masked, np.ma.masked_invalid([math.nan]).mean(), np.ma.array(5.0, mask=True)]
    with Workload("w", objective="loss") as w:
        for step, value in enumerate([*masked, np.ma.array(5.0), np.ma.array([5.0], mask=[False])], start=1):
            w.eval(step, {"loss": value})
            w.step(step, {"loss": value})
    assert [r["metrics"]["loss"] for r in records(run, "eval")] == ["NaN", "NaN", "NaN", 5.0, 5.0]
    assert [r["metrics"]["loss"] for r in records(run, "step")] == ["NaN", "NaN", "NaN", 5.0, 5.0]
    folded(run)


class Names(str, Enum):  # noqa: UP042  (whose str() is not its text)
    LOSS = "val_loss"
    TRAIN = "train_loss"
    LR = "learning rate"


def test_a_name_of_an_enumeration_of_texts_is_its_text(run: Path) -> None:
    recipe = {"lr": 0.1}
    w = Workload("w", objective=Names.LOSS, counterpart=Names.TRAIN, metrics={
        Names.LOSS: "nats", Names.TRAIN: workload.Metric("nats", depends=(Names.LR,))})  # fmt: skip
    w.float(Names.LR, get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
    keep = workload.Checkpoints(w, lambda path: path.write_text("x"), lambda path: None)
    content = {"v": 1, "run": run.name, "revision": 1, "issued": {"t": 0.0, "step": 0},
               "params": {"learning rate": 0.5}, "based_on_step": 0, "decision": "d"}  # fmt: skip
    (run / "control.json").write_text(json.dumps(content))
    w.step(1, {Names.TRAIN: 1.0})
    w.step(2, {Names.TRAIN: np.float32(1.0)})
    keep.eval(2, {Names.LOSS: 0.5, "train_loss": 0.4})
    assert [r["metrics"] for r in records(run, "step")] == [{"train_loss": 1.0}] * 2
    assert records(run, "eval")[0]["metrics"] == {"val_loss": 0.5, "train_loss": 0.4}
    assert (recipe["lr"], keep.best_value, said(run)) == (0.5, 0.5, [])
    assert folded(run).best == (2, 0.5)


@pytest.mark.parametrize("name", ["r\udce9sum\udce9.txt", "\ud800"])
def test_half_a_character_in_a_name_does_not_cost_the_record(run: Path, name: str) -> None:
    with Workload("w", objective="loss") as w:
        w.step(1, {"loss": 1.0, f"loss/{name}": 2.0})
        w.step(2, {"loss": math.nan, f"loss/{name}": 2.0})
        w.eval(2, {"loss": 1.0, f"loss/{name}": 2.0}, split={name: {name: 1.0}})
    state = folded(run)
    assert (state.step, state.latest) == (2, 1.0)
    assert [len(r["metrics"]) for r in records(run, "step") + records(run, "eval")] == [2, 2, 2]


# ---- where it is declared --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_of_others_are_whole_numbers_in_the_record(value: Any, run: Path) -> None:
    with Workload("w", objective="loss", total_steps=value, seed=value, sync_every=value, resumed_from="x",
                  resumed_step=value) as w:  # fmt: skip
        w.int("n", get=lambda: value, set=print, low=np.int64(1), high=np.float32(64.0), max_delta=np.int64(2))
        assert list(w.steps(value)) == [3]
        w.step(value, {"loss": np.float32(1.5)})
        w.eval(value, {"loss": value})
        w.checkpoint(value, "c", best=np.bool_(True))
        w.end(value)
    assert '"total_steps":3,' in (run / "telemetry.jsonl").read_text()
    (start,) = records(run, "start")
    space = start["action_space"][0]
    assert repr([start["seed"], start["resumed"]["step"], *(space[key] for key in ("low", "high", "value"))]) == (
        "[3, 3, 1, 64, 3]"
    )
    assert [repr(r["step"]) for e in ("step", "eval", "checkpoint", "end") for r in records(run, e)] == ["3"] * 4
    assert records(run, "checkpoint")[0]["best"] is True
    state = folded(run)
    assert (state.step, state.total_steps, state.latest) == (3, 3, 3.0)


@pytest.mark.parametrize("name", ["total_steps", "seed", "resumed_step", "sync_every"])
def test_what_is_no_whole_number_raises_where_it_is_declared(name: str) -> None:
    for value in NOT_WHOLE:
        with pytest.raises(ValueError, match=f"{name} is .*; it must be a whole number"):
            Workload("w", objective="loss", **{name: value})
    for value in NO_NUMBER[1 if name in ("total_steps", "seed") else 0 :]:
        with pytest.raises(TypeError, match=f"{name} is .*; it must be a whole number"):
            Workload("w", objective="loss", **{name: value})


def test_a_seed_may_have_64_bits_and_a_step_no_more_than_json_has_exactly() -> None:
    assert Workload("w", objective="loss", seed=np.uint64(2**64 - 1)).seed == 2**64 - 1
    for wrong in (2**53, 10**400, 1e300):
        with pytest.raises(ValueError, match="total_steps is beyond 9007199254740991"):
            Workload("w", objective="loss", total_steps=wrong)


@pytest.mark.parametrize("name", ["total_steps", "resumed_step"])
def test_a_number_of_steps_is_not_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; it must be at least 0"):
        Workload("w", objective="loss", **{name: np.int64(-1)})


@pytest.mark.parametrize("name", ["", "x" * 65, "eval_" + "very_long_dataset_name_" * 3, None, 3, ("a", "b")])
def test_a_name_that_nobody_would_follow_raises_where_it_is_declared(name: Any) -> None:
    with pytest.raises(ValueError, match=r"the name of the objective is .*; it must be text of 1 to 64 characters"):
        Workload("w", objective=name)
    if name is not None:
        with pytest.raises(ValueError, match="the name of the counterpart is "):
            Workload("w", objective="loss", counterpart=name)
    with pytest.raises(ValueError, match="a metric's name is "):
        Workload("w", objective="loss", metrics={name: "nats"})
    Workload("w", objective="x" * 64, counterpart="y" * 64, metrics={"z" * 64: "nats"})


@pytest.mark.parametrize(("kind", "value", "expected"), [
    ("int", np.int64(32), 32), ("int", torch.tensor(32), 32), ("int", np.array(32), 32), ("int", 32.0, 32),
    ("bool", np.bool_(True), True), ("bool", torch.tensor(False), False), ("bool", np.array(True), True),
    ("bool", 1, True), ("float", np.float32(0.5), 0.5), ("float", torch.tensor(0.5), 0.5), ("float", np.array(2), 2),
    ("float", Decimal("0.5"), 0.5), ("choice", np.str_("a"), "a"),
])  # fmt: skip
def test_the_value_of_a_parameter_is_one_of_python(run: Path, kind: str, value: Any, expected: Any) -> None:
    w, given_ = Workload("w", objective="loss"), {"x": value}
    more = {"bool": {}, "choice": {"choices": ["a", "b"]}}.get(kind, {"low": 0, "high": 64})
    getattr(w, kind)("x", get=lambda: given_["x"], set=lambda v: given_.update(x=v), **more)
    new = {"bool": not expected, "choice": "b", "int": 16, "float": 0.25}[kind]
    w.eval(1, {"loss": 1.0})
    control = {"v": 1, "run": run.name, "revision": 1, "issued": {"t": 0.0, "step": 0}, "params": {"x": new},
               "based_on_step": 0, "decision": "d1"}  # fmt: skip
    (run / "control.json").write_text(json.dumps(control))
    w.step(2, {"loss": 1.0})
    assert repr(given_["x"]) == repr(new)  # the setter gets what it always got
    assert repr(records(run, "start")[0]["action_space"][0]["value"]) == repr(expected)
    assert repr(records(run, "eval")[0]["params"]["x"]) == repr(expected)
    assert repr(records(run, "applied")[0]["changes"]["x"]) == repr([expected, new])
    assert folded(run).drifts == []


def test_a_value_that_is_changed_in_place_is_read_before_and_after(run: Path) -> None:
    rate = torch.tensor(0.5)
    w = Workload("w", objective="loss")
    w.float("x", get=lambda: rate, set=rate.fill_, low=0.0, high=1.0)
    control = {"v": 1, "run": run.name, "revision": 1, "issued": {"t": 0.0, "step": 0}, "params": {"x": 0.25},
               "based_on_step": 0, "decision": "d1"}  # fmt: skip
    (run / "control.json").write_text(json.dumps(control))
    w.step(1, {"loss": 1.0})
    assert records(run, "applied")[0]["changes"] == {"x": [0.5, 0.25]}


@pytest.mark.parametrize(("kind", "value", "said"), [
    ("int", 32.5, "its value at the start is 32.5; `get` must return a whole number"),
    ("int", None, "its value at the start is None; `get` must return a whole number"),
    ("int", True, "its value at the start is True; `get` must return a whole number"),
    ("bool", 2, "its value at the start is 2; `get` must return true or false"),
    ("bool", None, "its value at the start is None; `get` must return true or false"),
    ("float", "0.5", "its value at the start is the text '0.5'; `get` must return a number"),
    ("float", [0.5], "its value at the start is a list of 1; `get` must return a number"),
    ("float", torch.ones(2), "its value at the start is a Tensor of shape (2,); `get` must return a number"),
    ("choice", 3, "its value at the start is 3; `get` must return one of the choices"),
])  # fmt: skip
def test_a_value_of_another_type_raises_where_it_is_declared(kind: str, value: Any, said: str) -> None:
    more = {"bool": {}, "choice": {"choices": ["a", "b"]}}.get(kind, {"low": 0, "high": 64})
    with pytest.raises(ValueError, match=re.escape(f"x: {said}")):
        getattr(Workload("w", objective="loss"), kind)("x", get=lambda: value, set=print, **more)


def test_bounds_of_a_whole_number_that_are_none_raise(run: Path) -> None:
    with pytest.raises(ValueError, match=r"x: low is 0\.5; it must be a whole number"):
        Workload("w", objective="loss").int("x", get=lambda: 1, set=print, low=0.5, high=3)  # type: ignore[arg-type]


def test_facts_about_the_run_keep_their_type(run: Path) -> None:
    info = {"n": np.int64(3), "on": np.bool_(True), "x": np.float32(0.5), "nan": np.float64("nan"), "path": Path("/x"),
            "t": torch.tensor(2), "big": 10**400, "pair": torch.ones(2)}  # fmt: skip
    with Workload("w", objective="loss", info=info) as w:
        w.step(1, {})
    found = records(run, "start")[0]["info"]
    assert repr({key: found[key] for key in ("n", "on", "x", "nan", "path", "t", "big")}) == repr(
        {"n": 3, "on": True, "x": 0.5, "nan": "NaN", "path": "/x", "t": 2, "big": "Infinity"}
    )
    folded(run)


ANY = st.sampled_from(
    [*WHOLE, *NOT_WHOLE, *NO_NUMBER, "", "lr", "step", "log", "x" * 65, "a\nb", 0, 1, -1, 64, 1e-5, Path("x"), ("lr",),
     ["a", "b"], [np.str_("a")], ["a", 1], {"loss": "nats"}, {"loss": None}, {"loss": values}, 10**400, 2**70]
)  # fmt: skip
OPTIONS = {
    "float": ["low", "high", "scale", "max_ratio", "min_ratio", "max_delta", "off", "boundary", "group", "description",
              "scheduled"],
    "int": ["low", "high", "max_delta", "boundary", "group", "description"],
    "bool": ["boundary", "group", "description"], "choice": ["choices", "boundary", "group", "description"],
}  # fmt: skip
GIVEN = ["name", "objective", "mode", "counterpart", "scale", "total_steps", "seed", "metrics", "info", "resumed_step"]


@examples(400)
@given(st.data())
def test_what_is_declared_and_does_not_raise_is_read_by_the_other_side(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run = tmp_path_factory.mktemp("run")
    given_ = {
        "name": "w",
        "objective": "loss",
        "resumed_from": "x",
        **data.draw(st.dictionaries(st.sampled_from(GIVEN), ANY, max_size=2)),
    }
    kind = data.draw(st.sampled_from(sorted(OPTIONS)))
    good = {"float": {"low": 1, "high": 64}, "int": {"low": 1, "high": 64}, "choice": {"choices": ["a", "b"]}}.get(
        kind, {}
    )
    options = {**good, **data.draw(st.dictionaries(st.sampled_from(OPTIONS[kind]), ANY, max_size=2))}
    name = data.draw(st.just("x") | ANY)
    value = data.draw(st.just({"choice": "a", "bool": True}.get(kind, 3)) | ANY)
    try:
        w = Workload(**given_, directory=run)
        getattr(w, kind)(name, get=lambda: value, set=print, **options)
        with w:
            w.step(9, {"loss": 1.0})
    except (TypeError, ValueError, AttributeError):
        return
    start = next(Feed(run / "telemetry.jsonl").records())
    assert isinstance(start, protocol.Start), start
    assert start.flaws == ()


# ---- while it trains -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "warm", [0.1, 0.2], {"macro": {"f1": 0.5}}, torch.ones(3), np.ones((2, 2)),
                                   3j, object(), b"1"], ids=lambda value: type(value).__name__)  # fmt: skip
@pytest.mark.parametrize("event", ["step", "eval", "split", "checkpoint", "end"])
def test_a_value_that_is_no_number_is_left_out_and_named_once(run: Path, value: Any, event: str) -> None:
    metrics = {"loss": 1.5, "x": value, "acc": True}
    with Workload("w", objective="loss") as w:
        for step in (1, 2):
            if event == "step":
                w.step(step, metrics)
            elif event == "checkpoint":
                w.checkpoint(step, "c", metrics)
            elif event != "end":
                w.eval(
                    step, {"loss": 1.5} if event == "split" else metrics, {"en": metrics} if event == "split" else {}
                )
        if event == "end":
            w.end(1, metrics)
    found = [
        r["split"]["en"] if event == "split" else r["metrics"] for r in records(run, event.replace("split", "eval"))
    ]
    assert found[0] == {"loss": 1.5, "acc": 1}
    (message,) = said(run)
    assert message.startswith(f"warning: 'x' is left out: it is {values.described(value)} at step 1, no number; ")
    folded(run)


def test_what_is_left_out_is_named_with_what_helps(run: Path) -> None:
    with Workload("w", objective="loss") as w:
        w.eval(10, {"loss": 1.0, "f1": None, "per_class": [0.1, 0.2], "report": {"macro": 1}, "note": "x" * 99,
                    "matrix": torch.ones(2, 2), "thing": object()})  # fmt: skip
    found = [
        re.fullmatch(r"warning: '(\w+)' is left out: it is (.*) at step 10, no number; (.*)", s) for s in said(run)
    ]
    one = "report one number: a mean, say, or each under a name of its own"
    assert [match.groups() for match in found if match] == [
        ("f1", "None", "leave out what was not measured, or report float('nan')"),
        ("per_class", "a list of 2", one),
        ("report", "a dict of 1", "report each number under a name of its own, such as 'report/macro_f1'"),
        ("note", f"the text '{'x' * 40}'", "text belongs in log()"),
        ("matrix", "a Tensor of shape (2, 2)", one),
        ("thing", "an object", one),
    ]


def test_of_ever_new_names_the_log_speaks_only_so_often(run: Path) -> None:
    with Workload("w", objective="loss") as w:
        for step in range(100):
            w.eval(step, {"loss": 1.0, f"m{step}": None})
    assert len(said(run)) == 16
    assert folded(run).evals == 100


@pytest.mark.parametrize("supervised", [True, False])
def test_without_the_objective_its_nearest_name_is_told_once(
    run: Path, supervised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supervised:
        monkeypatch.delenv("TRAINMGR_RUN_DIR")
    with Workload("w", objective="val_loss") as w:
        for step in (10, 20):
            w.eval(step, {"loss": 1.0, "Val/Loss": 2.0, "accuracy": 0.5})
    if supervised:
        (message,) = said(run)
        assert message.startswith(
            "warning: the evaluation at step 10 is without the objective 'val_loss'; it has: loss, "
        )
        assert message.endswith(" Was 'Val/Loss' meant?")
        assert folded(run).evals == 2


def test_an_objective_that_is_no_number_is_not_said_to_be_missing(run: Path) -> None:
    with Workload("w", objective="loss") as w:
        w.eval(10, {"loss": None})
    (message,) = said(run)
    assert message.startswith("warning: 'loss' is left out: it is None")


def test_a_step_that_goes_back_is_said_once(run: Path) -> None:
    with Workload("w", objective="loss", total_steps=30) as w:
        for _ in range(3):
            for step in range(1, 11):
                w.step(step, {"loss": 1.0})
            w.eval(10, {"loss": 1.0})
    (message,) = said(run)
    assert message.startswith("info: the step went back from 10 to 1: report steps of the whole run")
    assert folded(run).notices.kinds["back"].count == 2


def test_an_evaluation_numbered_ahead_and_a_resumed_counter_are_no_step_back(run: Path) -> None:
    with Workload("w", objective="loss", resumed_from="x", resumed_step=50) as w:
        for step in range(51, 55):
            w.eval(step + 1, {"loss": 1.0})
            w.step(step, {"loss": 1.0})
    assert said(run) == []


def test_a_step_that_is_no_whole_number_never_stops_training(run: Path) -> None:
    with Workload("w", objective="loss", total_steps=9) as w:
        for step in (0.5, 1.0, 1.5, "two", None, math.nan, 3):
            w.step(step, {"loss": 1.0})  # type: ignore[arg-type]
        w.eval(2.5, {"loss": 1.0})  # type: ignore[arg-type]
    assert [r["step"] for r in records(run, "step")] == [0, 1, 1, 1, 1, 1, 3]
    assert said(run) == [
        "warning: the step is 0.5; it must be a whole number; it counts as 0: report how many training steps are done"
    ]
    folded(run)


@pytest.mark.parametrize("metrics", [None, 1.5, [1.5], "loss"])
def test_metrics_without_names_never_stop_training(run: Path, metrics: Any) -> None:
    with Workload("w", objective="loss", total_steps=9) as w:
        for step in (1, 2):
            w.step(step, metrics)
            w.eval(step, metrics)
    (message,) = said(run)
    what = values.described(metrics)
    assert message.startswith(f"warning: the metrics at step 1 are {what}, and are left out; report names with numbers")
    assert folded(run).evals == 2


def test_a_log_takes_whatever_can_be_written(run: Path) -> None:
    with Workload("w", objective="loss") as w:
        w.log("warning", ValueError("no data"))  # type: ignore[arg-type]
    assert said(run) == ["warning: no data"]


REPORTED = st.dictionaries(
    st.text(max_size=8),
    st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=4) | st.sampled_from(NO_NUMBER)
    | st.floats().map(np.float64) | st.floats(width=32).map(np.float32) | st.integers(-99, 99).map(np.int64)
    | st.floats(width=32).map(torch.tensor)
    | st.sampled_from([10**400, -(10**5000), 1 << 1023, Decimal(3), Fraction(1, 3), "NaN", "-Infinity"]),
    max_size=5,
)  # fmt: skip


@examples(150)
@given(st.lists(REPORTED, max_size=6))
def test_whatever_is_reported_the_other_side_reads_without_a_flaw(
    tmp_path_factory: pytest.TempPathFactory, reported: list[dict[str, Any]]
) -> None:
    run = tmp_path_factory.mktemp("run")
    with Workload("w", objective="loss", directory=run) as w:
        for step, metrics in enumerate(reported):
            w.step(step, metrics)
            w.eval(step, {**metrics, "loss": float(step)}, {"en": metrics})
    if reported:
        assert folded(run).measured == [(i + 1, i, float(i)) for i in range(len(reported))]


@examples(200)
@given(st.integers() | st.floats() | st.sampled_from(WHOLE + NOT_WHOLE + NO_NUMBER))
def test_what_counts_as_whole_is_equal_to_it(value: Any) -> None:
    try:
        found = values.whole(value, "x", None)
    except (TypeError, ValueError):
        return
    assert type(found) is int
    assert found == value
