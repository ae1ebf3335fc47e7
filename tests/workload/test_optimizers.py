"""A managed value of an optimizer is the one in effect in its update, whatever schedulers and checkpoints do."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories.optimizers import Probe, S, probe
from factories.reporting import command, control, folded, records

from trainmgr.workload import Workload
from trainmgr.workload.optimizers import innermost

pytestmark = pytest.mark.usefixtures("alone")


def test_a_group_that_is_added_later_is_managed_with_the_others(run: Path) -> None:
    optimizer = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    control(run, 1, {"lr": 0.05})
    w.step(1, {"loss": 1.0})
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.02})
    optimizer.step()
    assert optimizer.seen[-1] == pytest.approx([0.05, 0.01])
    control(run, 2, {"lr": 0.025})
    w.step(2, {"loss": 1.0})
    assert records(run, "applied")[-1]["groups"]["lr"] == pytest.approx([0.025, 0.005])


def test_a_first_group_of_zero_stays_there_and_the_next_one_is_shown(run: Path) -> None:
    optimizer = probe(1.0, 1.0)
    for group, decay in zip(optimizer.param_groups, (0.0, 0.05), strict=True):
        group["weight_decay"] = decay
    frozen = probe(0.0, 1e-3)
    w = Workload("test", objective="loss")
    w.optimizer("decay", optimizer, key="weight_decay", low=0.0, high=0.5, scale="linear")
    w.optimizer("lr", frozen, key="lr", low=1e-5, high=0.1)
    control(run, 1, {"decay": 0.5, "lr": 5e-4})
    w.step(1, {"loss": 1.0})
    frozen.step()
    assert records(run, "applied")[0]["changes"] == {"decay": [0.05, 0.5], "lr": [1e-3, 5e-4]}
    assert records(run, "applied")[0]["groups"] == {"decay": [0.0, 0.5], "lr": [0.0, 5e-4]}
    assert frozen.seen == [[0.0, 5e-4]]


def test_where_all_groups_are_at_zero_all_get_the_value(run: Path) -> None:
    optimizer = probe(1.0, 1.0)
    w = Workload("test", objective="loss")
    w.optimizer("decay", optimizer, key="weight_decay", low=0.0, high=0.5, scale="linear")
    for revision, value in ((1, 0.1), (2, 0.0), (3, 0.2)):
        control(run, revision, {"decay": value})
        w.step(revision, {"loss": 1.0})
    assert [r["groups"]["decay"] for r in records(run, "applied")] == [[0.1, 0.1], [0.0, 0.0], [0.2, 0.2]]


def test_a_rate_that_is_a_tensor_is_filled_and_not_replaced(run: Path) -> None:
    """A step that was captured in a graph reads that tensor, and no other."""
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.AdamW([weight], lr=torch.tensor(1e-3), foreach=False)
    there = optimizer.param_groups[0]["lr"]
    scheduler = S.LambdaLR(optimizer, lambda t: 1 - t / 100)
    seen = []
    optimizer.register_step_post_hook(lambda *_: None)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
    optimizer.register_step_pre_hook(lambda *_: seen.append(float(there)))
    saved = copy.deepcopy(optimizer.state_dict())
    w.command("rollback", lambda to: optimizer.load_state_dict(copy.deepcopy(saved)))
    for step in range(1, 51):
        weight.grad = torch.ones(3)
        optimizer.step()
        scheduler.step()
        if step == 10:
            control(run, 1, {"lr": 4.5e-4})
        if step == 30:
            control(run, 2, {"lr": 4.5e-4}, command=command("rollback", "best"))
        w.step(step, {"loss": 1.0})
    assert optimizer.param_groups[0]["lr"] is there
    assert seen[9] == pytest.approx(1e-3 * 0.91, rel=1e-6)
    assert seen[10] == pytest.approx(0.5 * 1e-3 * 0.90, rel=1e-6)
    assert seen[49] == pytest.approx(0.5 * 1e-3 * 0.51, rel=1e-6)
    assert float(there) == pytest.approx(1e-3 * 0.5, rel=1e-6)  # between two steps it is the script's own


@pytest.mark.parametrize("scheduled", [True, False])
def test_an_update_that_raises_leaves_the_script_its_own_rate(run: Path, scheduled: bool) -> None:
    class Broken(Probe):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step()
            if len(self.seen) == 2:
                raise RuntimeError("out of memory")

    optimizer = Broken([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0, scheduled=scheduled)
    control(run, 1, {"lr": 0.05})
    w.step(1, {"loss": 1.0})
    optimizer.step()
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    w.eval(2, {"loss": 1.0})
    assert records(run, "eval")[0]["params"] == {"lr": 0.05}
    optimizer.step()
    assert optimizer.seen == [[0.05]] * 3
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_an_optimizer_without_hooks_is_written_into_and_watched(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}, {"lr": 1e-4}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1, scheduled=True)
    for step in range(1, 7):
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.9**step  # computed anew
        optimizer.param_groups[1]["lr"] = 1e-4 * 0.9**step
        if step == 3:
            control(run, 1, {"lr": 1e-4})
        w.step(step, {"loss": 1.0})
    (lost,) = records(run, "overwritten")
    assert (lost["name"], lost["set_at"], lost["value"], lost["step"]) == ("lr", 3, 1e-4, 4)
    assert lost["found"] == pytest.approx(1e-3 * 0.9**4)


class Slotted:
    """An optimizer that has no place for attributes of others."""

    __slots__ = ("param_groups",)

    def __init__(self) -> None:
        self.param_groups = [{"lr": 1e-3}]


def test_an_optimizer_with_slots_is_managed_by_one_training_after_another(run: Path) -> None:
    optimizer = Slotted()
    for revision in (1, 2):
        w = Workload("test", objective="loss")
        w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
        w.step(1, {"loss": 1.0})
        control(run, revision, {"lr": 0.01 * revision})
        w.step(2, {"loss": 1.0})
        w.end(2)
        assert optimizer.param_groups[0]["lr"] == 0.01 * revision
    assert [r["revision"] for r in records(run, "applied")] == [1, 2]


def test_groups_that_go_between_declaration_and_start_do_not_stop_training(run: Path) -> None:
    optimizer = SimpleNamespace(param_groups=[{"lr": 1e-3}])
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1e-1)
    optimizer.param_groups = []
    w.step(1, {"loss": 1.0})
    assert [r["step"] for r in records(run, "step")] == [1]


def test_a_wrapped_optimizer_is_found() -> None:
    """accelerate's wrapper has hooks of its own, which nobody calls."""
    inner = probe(0.1)
    outer = SimpleNamespace(optimizer=inner, param_groups=inner.param_groups, step=inner.step)
    assert innermost(outer) is inner
    assert innermost(inner) is inner


def test_two_parameters_cannot_have_the_same_value_of_the_same_group() -> None:
    optimizer = probe(0.1, 0.2)
    w = Workload("test", objective="loss")
    w.optimizer("first", optimizer, key="lr", low=1e-5, high=1.0, groups=[0])
    w.optimizer("second", optimizer, key="lr", low=1e-5, high=1.0, groups=[1])
    w.optimizer("decay", optimizer, key="weight_decay", low=0.0, high=1.0, scale="linear")
    with pytest.raises(ValueError, match="all: first has 'lr' of one of these groups already"):
        w.optimizer("all", optimizer, key="lr", low=1e-5, high=1.0)


@pytest.mark.parametrize("how", ["recreated", "copied", "the same"])
def test_an_optimizer_that_does_not_train_any_more_is_said(run: Path, how: str) -> None:
    optimizer = training = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 41):
        if step == 10 and how == "recreated":
            training = probe(0.1)
        if step == 10 and how == "copied":
            training = copy.deepcopy(optimizer)
            training.seen = []
        training.step()
        if step == 20:
            control(run, 1, {"lr": 0.01})
        w.step(step, {"loss": 1.0})
        if step % 5 == 0:
            w.eval(step, {"loss": 1.0})
    assert training.seen[-1] == ([0.01] if how == "the same" else [0.1])
    said = [(r["name"], r["set_at"], r["value"], r["found"]) for r in records(run, "overwritten")]
    assert said == ([] if how == "the same" else [("lr", 20, 0.01, 0.1)])
    logs = [r["message"] for r in records(run, "log")]
    assert logs == ([] if how == "the same" else [
        ("lr was set to 0.01 at step 20, and no step of its optimizer has used that: declare the one that trains, and "
         "write nothing else there in its hooks")
    ])  # fmt: skip


def test_an_optimizer_that_has_not_begun_is_waited_for(run: Path) -> None:
    """Reinforcement learning fills a buffer first."""
    optimizer = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 41):
        if step == 5:
            control(run, 1, {"lr": 0.01})
        if step > 30:
            optimizer.step()
        w.step(step, {"loss": 1.0})
        if step % 5 == 0:
            w.eval(step, {"loss": 1.0})
    assert records(run, "overwritten") == []
    assert optimizer.seen[-1] == [0.01]


def test_the_groups_of_a_training_that_is_over_hold_what_was_in_effect(run: Path) -> None:
    optimizer = probe(0.1, 0.2)
    scheduler = S.LambdaLR(optimizer, lambda t: 1 - t / 20)
    w = Workload("test", objective="loss", total_steps=10)
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0, scheduler=scheduler)
    for step in w.steps():
        optimizer.step()
        scheduler.step()
        if step == 4:
            control(run, 1, {"lr": 0.04})
        w.step(step, {"loss": 1.0})
        if step > 5:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - step / 20))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.05])
    w.eval(10, {"loss": 1.0})
    assert records(run, "eval")[0]["params"]["lr"] == pytest.approx(0.025)
    w.end(10)
    optimizer.step()
    assert optimizer.seen[-1] == pytest.approx([0.025, 0.05])
    assert records(run, "log") == []


def test_a_second_training_with_the_same_optimizer_is_not_scaled_by_the_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Path,
) -> None:
    """Whether the first one was ended or not."""
    for over in (True, False):
        optimizer, seen = probe(0.1), []
        for part in ("first", "second"):
            folder = tmp_path / f"{part}-{over}"
            folder.mkdir()
            monkeypatch.setenv("TRAINMGR_RUN_DIR", str(folder))
            w = Workload("test", objective="loss", total_steps=20)
            w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
            for step in range(1, 21):
                if step == 5:
                    control(folder, 1, {"lr": 0.05})
                w.step(step, {"loss": 1.0})
                optimizer.step()
            seen.append(optimizer.seen[-1][0])
            if over:
                w.end(20)
        assert seen == pytest.approx([0.05, 0.05])
        assert optimizer.param_groups[0]["lr"] == 0.1


class Wrapper(torch.optim.Optimizer):
    """SAM and Lookahead: an optimizer around another one, whose step is the one that updates."""

    def __init__(self, inner: Probe, name: str) -> None:
        super().__init__(inner.param_groups, {"lr": 1.0})
        self.param_groups = inner.param_groups
        setattr(self, name, inner)
        self._inner = inner

    def first_step(self) -> None:
        pass

    def second_step(self) -> None:
        self._inner.step()


@pytest.mark.parametrize("name", ["optimizer", "base_optimizer", "_base_optimizer"])
def test_a_change_reaches_the_optimizer_inside_of_another_one(run: Path, name: str) -> None:
    inner = probe(0.1)
    outer = Wrapper(inner, name)
    scheduler = S.LambdaLR(outer, lambda t: 1 - t / 100)
    w = Workload("test", objective="loss")
    w.optimizer("lr", outer, key="lr", low=1e-5, high=1.0, scheduler=scheduler)
    for step in range(1, 51):
        outer.first_step()
        outer.second_step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the scheduler waits for a call of outer.step
            scheduler.step()
        if step == 20:
            control(run, 1, {"lr": 0.04})
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0})
    assert inner.seen[-1] == pytest.approx([0.1 * 0.51 * 0.5])
    assert records(run, "overwritten") == []


def test_a_hook_of_the_script_that_comes_after_ours_is_seen(run: Path) -> None:
    optimizer = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 41):
        if step == 10:
            optimizer.register_step_pre_hook(lambda *_: optimizer.param_groups[0].update(lr=0.09))
        optimizer.step()
        if step == 20:
            control(run, 1, {"lr": 0.02})
        w.step(step, {"loss": 1.0})
        if step % 5 == 0:
            w.eval(step, {"loss": 1.0})
    assert optimizer.seen[-1] == [0.09]
    assert [r["name"] for r in records(run, "overwritten")] == ["lr"]


def test_a_group_that_is_frozen_or_gone_leaves_the_others_managed(run: Path) -> None:
    optimizer = probe(0.2, 0.1, 0.3)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 31):
        if step == 5:
            optimizer.param_groups[0]["lr"] = 0.0
        if step == 10:
            control(run, 1, {"lr": 0.05})
        if step == 20:
            del optimizer.param_groups[1:]
        w.step(step, {"loss": 1.0})
        optimizer.step()
        if step == 15:
            assert optimizer.seen[-1] == pytest.approx([0.0, 0.05, 0.15])
            w.eval(step, {"loss": 1.0})
            assert records(run, "eval")[0]["params"]["lr"] == pytest.approx(0.05)
    assert optimizer.seen[-1] == [0.0]


def test_a_value_that_is_overwritten_after_the_last_evaluation_is_said_at_the_end(run: Path) -> None:
    recipe = {"lr": 0.1}
    w = Workload("test", objective="loss")
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.001, high=1.0)
    for step in range(1, 11):
        if step == 2:
            control(run, 1, {"lr": 0.05})
        if step == 6:
            recipe["lr"] = 0.1
        w.step(step, {"loss": 1.0})
    w.end(10)
    assert [(r["step"], r["found"]) for r in records(run, "overwritten")] == [(10, 0.1)]


def test_changes_in_an_optimizer_that_does_not_train_any_more_are_refused_until_it_does(run: Path) -> None:
    """However often they come: one at each evaluation does not put the answer off."""
    optimizer = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 61):
        if step < 10 or step > 40:
            optimizer.step()
        if step % 5 == 1:
            control(run, step, {"lr": 0.01 + step / 1e4})
        w.step(step, {"loss": 1.0})
        if step % 5 == 0:
            w.eval(step, {"loss": 1.0})
    assert [r["set_at"] for r in records(run, "overwritten")] == [16]
    assert {r["reason"] for r in records(run, "refused")} == {
        "ValueError: no step of its optimizer has used the change before: the script trains with another one"
    }
    assert [r["step"] for r in records(run, "refused")] == [21, 26, 31, 36]
    assert optimizer.seen[-1] == [0.01 + 56 / 1e4]
    assert [drift.set_at for drift in folded(run).drifts] == [16]


def test_each_of_two_betas_is_managed_by_its_place(run: Path) -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    w = Workload("test", objective="loss")
    w.optimizer("beta1", optimizer, key="betas", index=0, low=0.5, high=0.95, scale="linear")
    w.optimizer("beta2", optimizer, key="betas", index=1, low=0.9, high=0.999, scale="linear")
    seen = []
    saved = copy.deepcopy(optimizer.state_dict())
    w.command("rollback", lambda to: optimizer.load_state_dict(copy.deepcopy(saved)))
    control(run, 1, {"beta1": 0.8})
    w.step(1, {"loss": 1.0})
    control(run, 2, {"beta1": 0.8, "beta2": 0.999}, command=command("rollback", "best"))
    w.step(2, {"loss": 1.0})
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["betas"]))
    optimizer.step()
    assert seen == [(pytest.approx(0.8), pytest.approx(0.999))]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.99)
    assert records(run, "applied")[1]["changes"] == {"beta2": [0.99, pytest.approx(0.999)]}


def test_the_same_place_of_one_value_has_one_owner() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    w = Workload("test", objective="loss")
    w.optimizer("beta1", optimizer, key="betas", index=0, low=0.5, high=0.95, scale="linear")
    with pytest.raises(ValueError, match="beta1 has 'betas' of one of these groups already"):
        w.optimizer("again", optimizer, key="betas", index=0, low=0.5, high=0.95, scale="linear")
    with pytest.raises(IndexError):
        w.optimizer("beta3", optimizer, key="betas", index=2, low=0.5, high=0.95, groups=[0], scale="linear")
