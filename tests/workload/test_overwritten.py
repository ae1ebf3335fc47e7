"""Values of optimizer groups, and values that a script overwrites by itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories.reporting import control, folded, records

from trainmgr.contract import protocol
from trainmgr.state.run_state import RunState
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


def test_an_optimizer_keeps_the_ratios_of_its_groups_and_reports_all_of_them(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}, {"lr": 1e-4}, {"lr": 0.0}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
    control(run, 1, {"lr": 5e-3})
    w.step(1, {"loss": 1.0})
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5e-3, 5e-4, 0.0])
    (applied,) = records(run, "applied")
    assert applied["changes"] == {"lr": [1e-3, 5e-3]}
    assert applied["groups"]["lr"] == pytest.approx([5e-3, 5e-4, 0.0])


def test_groups_that_are_not_named_are_left_alone(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"wd": 0.1}, {"wd": 0.3}])
    w = Workload("test", objective="loss")
    w.optimizer("wd", optimizer, key="wd", low=0.0, high=1.0, scale="linear", groups=[1])
    control(run, 1, {"wd": 0.6})
    w.step(1, {"loss": 1.0})
    assert [g["wd"] for g in optimizer.param_groups] == [0.1, 0.6]


def test_a_warm_up_from_zero_keeps_the_ratios_that_come_after_it(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.0}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1, scheduled=True)
    w.step(1, {"loss": 1.0})
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 1e-3, 1e-4  # the scheduler
    control(run, 1, {"lr": 5e-3})
    w.step(2, {"loss": 1.0})
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([5e-3, 5e-4])


def test_a_value_that_the_script_overwrites_is_reported_once_with_what_it_is(run: Path) -> None:
    recipe = {"lr": 0.1}
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.001, high=1.0)
    for step in range(1, 6):
        if step == 2:
            control(run, 1, {"lr": 0.05})
        if step == 4:
            recipe["lr"] = 0.09
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    (lost,) = records(run, "overwritten")
    assert {n: lost[n] for n in ("name", "revision", "set_at", "value", "step", "found")} == {
        "name": "lr", "revision": 1, "set_at": 2, "value": 0.05, "step": 4, "found": 0.09,
    }  # fmt: skip
    state = folded(run)
    assert state.overwritten == {"lr": 1}
    assert [(d.step, d.expected, d.found, d.set_at) for d in state.drifts] == [(4, 0.05, 0.09, 2)]
    assert state.interventions[0].lost == {"lr": (4, 0.09)}
    assert state.recipe == {"lr": 0.09}


@pytest.mark.parametrize("computed", [True, False])
def test_of_a_value_that_moves_by_itself_a_change_that_is_gone_is_told_from_one_that_moves_on(
    run: Path, computed: bool
) -> None:
    recipe = {"lr": 0.1}
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-5, high=1.0, scheduled=True)
    for step in range(1, 41):
        recipe["lr"] = 0.1 * 0.95**step if computed else 0.95 * recipe["lr"]
        if step in (10, 20, 30):
            control(run, step, {"lr": {10: 0.05, 20: 0.08, 30: 0.03}[step]})
        w.step(step, {"loss": 1.0})
        if step % 4 == 0:
            w.eval(step, {"loss": 1.0})
    assert [r["set_at"] for r in records(run, "overwritten")] == ([10, 20, 30] if computed else [])
    assert folded(run).overwritten == ({"lr": 3} if computed else {})


def test_a_number_that_the_supervisor_finds_overwritten_by_itself(run: Path) -> None:
    """A workload in another language reports what it reads back, and nothing else."""
    state = RunState()
    for line in (
        {"event": "start", "workload": "w", "pid": 1, "objective": {"metric": "loss", "mode": "min"}, "action_space": [
            {"name": "lr", "type": "float", "low": 0.001, "high": 1.0, "value": 0.1}]},
        {"event": "applied", "revision": 1, "step": 2, "boundary": "step", "changes": {"lr": [0.1, 0.05]}},
        {"event": "eval", "step": 3, "metrics": {"loss": 1.0}, "params": {"lr": 0.1}},
        {"event": "eval", "step": 4, "metrics": {"loss": 1.0}, "params": {"lr": 0.1}},
    ):  # fmt: skip
        record = protocol.parse_telemetry(json.dumps({"v": 1, "seq": state.next_seq, "t": 0.0, **line}).encode())
        assert not isinstance(record, protocol.Unreadable), record
        state.fold(record)
    assert state.overwritten == {"lr": 1}
    assert state.interventions[0].lost == {"lr": (3, 0.1)}
    assert [(d.step, d.set_at) for d in state.drifts] == [(3, 2)]
