"""Commands are done once, and a change is in effect as it was asked for or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factories.reporting import Script, command, control, folded, records

from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


def test_a_command_is_done_once_even_when_the_file_is_read_again_and_after_a_restart(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(2, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(3, {"loss": 1.0})
        assert script.done == ["rollback best"]
    with Script(resumed_from="a", resumed_step=2) as script:  # crashed, and started again
        for step in script.w.steps():
            script.w.step(step, {"loss": 1.0})
            if step == 10:
                break
        assert script.done == []
        assert script.recipe["lr"] == 0.2  # it converges to what is in force, without a new answer
    assert records(run, "start")[1]["action_space"][0]["value"] == 0.2
    assert [r["revision"] for r in records(run) if r["event"] in ("applied", "refused")] == [1, 2]
    assert folded(run).drift_count == 0


def test_a_restart_applies_what_came_while_it_was_down_and_nothing_else(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
    control(run, 2, {"lr": 0.3})
    with Script(resumed_from="a", resumed_step=1) as script:
        script.w.step(2, {"loss": 1.0})
        script.w.step(3, {"loss": 1.0})
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 1), (2, 2)]


def test_a_setter_that_raises_during_a_restart_does_not_stop_training(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
    w = Workload("test", objective="loss", resumed_from="a", resumed_step=1)

    def broken(value: float) -> None:
        raise RuntimeError("out of order")

    w.float("lr", get=lambda: 0.1, set=broken, low=0.01, high=1.0)
    w.step(2, {"loss": 1.0})
    assert "out of order" in records(run, "log")[0]["message"]


def test_the_recipe_in_force_survives_a_rollback_that_overwrites_it(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2})
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.2}, command=command("rollback", "best"))
        script.w.step(2, {"loss": 1.0})
        assert script.recipe["lr"] == 0.2
        control(run, 3, {"lr": 0.4}, command=command("rollback", "initial"))
        script.w.step(3, {"loss": 1.0})
        assert script.recipe["lr"] == 0.4
    assert [r["changes"] for r in records(run, "applied")[1:]] == [{}, {"lr": [0.2, 0.4]}]
    assert script.done == ["rollback best", "rollback initial"]


def test_a_checkpoint_is_kept_first_where_that_is_wanted(run: Path) -> None:
    with Script() as script:
        control(run, 1, {"lr": 0.2}, keep="trial")
        script.w.step(1, {"loss": 1.0})
        control(run, 2, {"lr": 0.3}, command=command("rollback", "best"), keep="trial")
        script.w.step(2, {"loss": 1.0})
    assert script.done == ["checkpoint trial lr 0.1", "checkpoint trial lr 0.2", "rollback best"]


def test_a_checkpoint_that_cannot_be_kept_and_a_script_that_keeps_none_change_all_the_same(run: Path) -> None:
    def full(to: str) -> None:
        raise OSError("no space left")

    w, recipe = Workload("test", objective="loss"), {"lr": 0.1}
    w.float("lr", get=lambda: recipe["lr"], set=lambda value: recipe.update(lr=value), low=0.01, high=1.0)
    control(run, 1, {"lr": 0.2}, keep="trial")
    w.step(1, {"loss": 1.0})
    assert recipe["lr"] == 0.2
    w._commands["checkpoint"] = full
    control(run, 2, {"lr": 0.3}, keep="trial")
    w.step(2, {"loss": 1.0})
    assert recipe["lr"] == 0.3
    assert [r["message"] for r in records(run, "log")] == ["no checkpoint was kept as 'trial': OSError: no space left"]


def test_a_script_may_end_its_own_loop_as_a_stop_does(run: Path) -> None:
    with Workload("test", objective="loss", total_steps=9) as w:
        for step in w.steps():
            w.step(step, {"loss": 1.0})
            w.stopping = step == 3
    assert [(r["step"], r["status"]) for r in records(run, "end")] == [(3, "stopped")]


def test_a_command_that_refuses_is_refused_and_one_that_is_not_offered_too(run: Path) -> None:
    done = []

    def rollback(to: str) -> None:
        done.append(to)
        raise ValueError("there is no checkpoint")

    w = Workload("test", objective="loss")
    w.command("rollback", rollback)
    control(run, 1, command=command("rollback", "best"))
    w.step(1, {"loss": 1.0})
    control(run, 2, command=command("stop"))
    w.step(2, {"loss": 1.0})
    assert done == ["best"]
    assert not w.stopping
    assert [r["reason"] for r in records(run, "refused")] == [
        "ValueError: there is no checkpoint", "this workload offers no stop",
    ]  # fmt: skip


def test_a_stop_ends_the_loop_after_its_acknowledgment(run: Path) -> None:
    with Script() as script:
        steps = []
        for step in script.w.steps():
            if step == 3:
                control(run, 1, command=command("stop", "best"))
            script.w.step(step, {"loss": 1.0})
            steps.append(step)
        script.w.end(steps[-1])
    assert steps == [1, 2, 3]
    assert script.done == ["stop best"]
    assert [r["event"] for r in records(run)][-2:] == ["applied", "end"]
    assert records(run)[-1]["status"] == "stopped"


def test_a_command_may_report_by_itself(run: Path) -> None:
    w = Workload("test", objective="loss")
    w.command("checkpoint", lambda to: w.checkpoint(1, "checkpoints/a"))
    control(run, 1, command=command("checkpoint"))
    w.step(1, {"loss": 1.0})
    w.step(2, {"loss": 1.0})
    assert [r["event"] for r in records(run)] == ["start", "step", "checkpoint", "applied", "step"]


def test_a_setter_that_raises_is_refused_and_everything_is_set_back(run: Path) -> None:
    recipe = {"a": 0.1, "b": 0.1}
    w = Workload("test", objective="loss")

    def set_b(value: float) -> None:
        recipe["b"] = value
        if value > 0.5:
            raise RuntimeError("cannot be")

    w.float("a", get=lambda: recipe["a"], set=lambda v: recipe.update(a=v), low=0.0, high=1.0)
    w.float("b", get=lambda: recipe["b"], set=set_b, low=0.0, high=1.0)
    control(run, 1, {"a": 0.9, "b": 0.9})
    w.step(1, {"loss": 1.0})
    assert recipe == {"a": 0.1, "b": 0.1}
    assert records(run, "refused")[0]["reason"] == "RuntimeError: cannot be"
    control(run, 2, {"a": 0.9, "b": 0.2})
    w.step(2, {"loss": 1.0})
    assert recipe == {"a": 0.9, "b": 0.2}
    assert records(run, "applied")[0]["changes"] == {"a": [0.1, 0.9], "b": [0.1, 0.2]}


def test_the_acknowledgment_carries_what_is_in_effect_not_what_was_asked(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": np.float32(0.1)}
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=np.float32(v)), low=1e-4, high=1.0)
    control(run, 1, {"lr": 1e-4})
    w.step(1, {"loss": 1.0})
    assert records(run, "applied")[0]["changes"] == {"lr": [float(np.float32(0.1)), float(np.float32(1e-4))]}
    assert folded(run).space.parameters["lr"].objection(float(np.float32(1e-4))) is None  # a little below low


def test_a_bound_that_went_through_float32_is_inside(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": np.float32(1e-4)}
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=np.float32(v)), low=1e-4, high=1.0)
    w.step(1, {"loss": 1.0})
    assert records(run, "log") == []


UNHEARD = {  # a setter, what is asked, and what it says
    "does nothing": (lambda recipe, value: None, 0.9, "set(0.9) left lr at 0.1"),
    "clamps": (lambda recipe, value: recipe.update(lr=min(value, 0.5)), 0.9, "set(0.9) left lr at 0.5"),
    "rounds": (lambda recipe, value: recipe.update(lr=round(value, 1)), 0.77, "set(0.77) left lr at 0.8"),
    "loses": (lambda recipe, value: recipe.update(lr=None), 0.9,
              "set(0.9) left lr unreadable: its value is None; `get` must return a number"),
    "moves another one": (lambda recipe, value: recipe.update(lr=value, mix=-value), 0.9,
                          "set() of lr moved mix: -0.9 is outside [0.0, 1.0]"),
}  # fmt: skip


@pytest.mark.parametrize("how", UNHEARD)
def test_a_setter_that_does_something_else_is_refused_and_everything_is_set_back(run: Path, how: str) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": 0.1, "mix": 0.5}
    setter, asked, reason = UNHEARD[how]

    def put(value: float) -> None:
        recipe.update(lr=value) if value == 0.1 else setter(recipe, value)

    w.float("mix", get=lambda: recipe["mix"], set=lambda v: recipe.update(mix=v), low=0.0, high=1.0)
    w.float("lr", get=lambda: recipe["lr"], set=put, low=0.0, high=1.0)
    control(run, 1, {"lr": asked} | ({} if how == "moves another one" else {"mix": 0.6}))
    w.step(1, {"loss": 1.0})
    assert recipe == {"lr": 0.1, "mix": 0.5}
    assert [r["reason"] for r in records(run, "refused")] == [reason]
    assert records(run, "applied") == []
    folded(run)


def test_a_command_that_was_done_is_acknowledged_though_the_values_beside_it_are_not_taken(run: Path) -> None:
    done: list[str] = []
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: 0.1, set=lambda value: None, low=0.0, high=1.0)
    w.command("rollback", done.append)
    control(run, 1, {"lr": 0.9}, command=command("rollback", "best"))
    w.step(1, {"loss": 1.0})
    assert done == ["best"]
    assert [(r["changes"], r["command"]["name"]) for r in records(run, "applied")] == [({}, "rollback")]
    assert [r["message"] for r in records(run, "log")] == [
        "rollback was done, and the values stay as they were: set(0.9) left lr at 0.1"
    ]


def test_a_setter_that_measures_overwrites_nothing_and_loses_no_revision(run: Path) -> None:
    w, recipe = Workload("test", objective="loss"), {"lr": 0.1}

    def put(value: float) -> None:
        recipe["lr"] = value
        if value == 0.3:
            control(run, 3, {"lr": 0.4})
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})

    w.float("lr", get=lambda: recipe["lr"], set=put, low=0.0, high=1.0)
    for step in range(1, 6):
        if step in (2, 3):
            control(run, step - 1, {"lr": step / 10})
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    assert records(run, "overwritten") == []
    assert [r["revision"] for r in records(run, "applied")] == [1, 2, 3]
    assert folded(run).drift_count == 0


def test_an_evaluation_of_an_earlier_step_does_not_put_the_run_back(run: Path) -> None:
    with Workload("test", objective="loss") as w:
        w.step(50, {"loss": 1.0})
        w.eval(25, {"loss": 1.0})
    assert [r["step"] for r in records(run, "end")] == [50]
