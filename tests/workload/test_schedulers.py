"""A scheduler moves a managed value on from what was asked for, as far as it would have moved the script's own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.optimizers import Probe, S, probe, rates
from factories.reporting import command, control, folded, records
from hypothesis import given
from hypothesis import strategies as st
from transformers import optimization as transformers_schedulers

from trainmgr.workload import Workload
from trainmgr.workload.optimizers import Managed, ended

pytestmark = pytest.mark.usefixtures("alone")


STEPS = 120

H = transformers_schedulers


def chained(o: Any) -> Any:
    return S.ChainedScheduler([S.ConstantLR(o, 0.5, 30), S.ExponentialLR(o, 0.99)])


def sequential(o: Any) -> Any:
    return S.SequentialLR(o, [S.LinearLR(o, 0.01, 1.0, 20), S.CosineAnnealingLR(o, STEPS - 20)], [20])


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda t: 0.5 * (1 + math.cos(math.pi * t / (2 * STEPS)))),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda t: 0.99),
    "StepLR": lambda o: S.StepLR(o, 30, 0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [40, 80]),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 60),
    "LinearLR": lambda o: S.LinearLR(o, 1.0, 0.1, STEPS),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.99),
    "SequentialLR": sequential,
    "PolynomialLR": lambda o: S.PolynomialLR(o, 2 * STEPS),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 2 * STEPS),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=5),
    "CyclicLR": lambda o: S.CyclicLR(o, 1e-4, 1e-3, 20),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 25, 2),
    "OneCycleLR": lambda o: S.OneCycleLR(o, 1e-3, total_steps=2 * STEPS),
    "constant": H.get_constant_schedule,
    "constant with warm-up": lambda o: H.get_constant_schedule_with_warmup(o, 10),
    "linear": lambda o: H.get_linear_schedule_with_warmup(o, 10, 2 * STEPS),
    "cosine": lambda o: H.get_cosine_schedule_with_warmup(o, 10, 2 * STEPS),
    "cosine with hard restarts": lambda o: H.get_cosine_with_hard_restarts_schedule_with_warmup(o, 10, 2 * STEPS, 4),
    "cosine with min_lr": lambda o: H.get_cosine_with_min_lr_schedule_with_warmup(o, 10, 2 * STEPS, min_lr=1e-5),
    "cosine, warm-up rate": lambda o: H.get_cosine_with_min_lr_schedule_with_warmup_lr_rate(
        o, 10, 2 * STEPS, min_lr=1e-5, warmup_lr_rate=0.1
    ),
    "polynomial": lambda o: H.get_polynomial_decay_schedule_with_warmup(o, 10, 2 * STEPS),
    "inverse square root": lambda o: H.get_inverse_sqrt_schedule(o, 10),
    "warm-up, stable, decay": lambda o: H.get_wsd_schedule(o, 10, 40, num_stable_steps=40),
    "plateau": H.get_reduce_on_plateau_schedule,
    "greedy": H.get_greedy_schedule,
}
MEASURED = ("ReduceLROnPlateau", "plateau", "greedy")  # step on a metric


def test_every_scheduler_of_torch_and_transformers_is_tried() -> None:
    known = {n for n, kind in vars(S).items() if isinstance(kind, type) and issubclass(kind, S.LRScheduler)}
    assert known - {"LRScheduler", "_LRScheduler"} <= set(SCHEDULERS)
    made = [n for n in dir(H) if n.startswith("get_") and "schedule" in n and n != "get_scheduler"]
    # Adafactor's only shows the rate that Adafactor computes inside its own update.
    assert len(made) - 1 == sum(name[0].islower() for name in SCHEDULERS)


def advance(scheduler: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some have deprecated arguments of their own
        scheduler.step(1.0) if name in MEASURED else scheduler.step()


def train(name: str, run: Path | None, steps: int = STEPS) -> list[list[float]]:
    """The rates in effect in each update; with a run directory, managed: 0.3 times what is there from step 15 on."""
    optimizer = probe(1e-3, 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = SCHEDULERS[name](optimizer)
    if run is None:
        for _ in range(steps):
            optimizer.step()
            advance(scheduler, name)
        return optimizer.seen
    saved: dict[str, Any] = {}
    w = Workload("test", objective="loss", total_steps=steps)
    w.optimizer("lr", optimizer, key="lr", low=1e-9, high=1.0, scheduler=scheduler)
    w.command("rollback", lambda to: optimizer.load_state_dict(copy.deepcopy(saved)))
    for step in w.steps():
        optimizer.step()
        advance(scheduler, name)
        if step == 12:
            saved = copy.deepcopy(optimizer.state_dict())
        if step == 15:
            control(run, 1, {"lr": 0.3 * optimizer.param_groups[0]["lr"]})
        if step == 60:
            control(run, 2, {"lr": records(run, "applied")[0]["changes"]["lr"][1]}, command=command("rollback", "best"))
        w.step(step, {"loss": 1.0})
        if step % 20 == 0:
            w.eval(step, {"loss": 1.0})
    return optimizer.seen


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_change_is_in_effect_for_a_hundred_steps_of_every_scheduler(name: str, run: Path) -> None:
    alone, managed = train(name, None), train(name, run)
    assert managed[:15] == alone[:15]
    for step in range(15, STEPS):  # 105 updates with the change; in the middle an optimizer of step 12 is restored
        assert managed[step] == pytest.approx([0.3 * rate for rate in alone[step]], rel=1e-9), step + 1
    state = folded(run)
    assert state.drifts == []
    assert state.overwritten == {}
    assert state.interventions[0].changes["lr"][1] == pytest.approx(0.3 * alone[15][0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_where_a_schedule_ends_is_known_from_its_middle_on(name: str, run: Path) -> None:
    managed = train(name, run, 100)
    last = records(run, "eval")[-2:]  # at 80 and 100 of 100
    assert last[1]["moving"]["lr"]["value"] == pytest.approx(last[1]["params"]["lr"] / 0.3)
    if name in MEASURED:
        assert last[0]["moving"]["lr"]["end"] is None
    else:
        assert last[0]["moving"]["lr"]["end"] == pytest.approx(last[1]["params"]["lr"])
    assert len(managed) == 100


def test_a_schedule_that_ticks_each_epoch_is_known_too() -> None:
    optimizer = probe(1e-3)
    scheduler = S.StepLR(optimizer, 2, 0.5)
    managed = Managed(optimizer, "lr", 1e-9, 1.0, None, scheduler)
    found = []
    for step in range(1, 101):
        optimizer.step()
        if step % 10 == 0:
            found.append(managed.planned(step, 100))
            scheduler.step()
    assert found[0] is None  # it has not moved yet
    assert found[5] == pytest.approx(1e-3 * 0.5**4)  # counted to 9 at the last step
    assert [group["lr"] for group in ended(S.LinearLR(probe(1.0), 1.0, 0.0, 10), 10) or ()] == [0.0]


def test_a_resumed_run_goes_on_with_its_share_of_the_schedule(run: Path) -> None:
    """Not with the number that was asked for long ago: the schedule has moved on since."""

    def life(last: int, state: Any = None) -> tuple[Probe, Any]:
        optimizer = probe(1e-3, 1e-2)
        scheduler = S.LambdaLR(optimizer, lambda t: 1 - t / 200)
        if state:
            optimizer.load_state_dict(state[0])
            scheduler.load_state_dict(state[1])
        w = Workload("test", objective="loss", total_steps=200, resumed_step=100 if state else 0,
                     resumed_from="checkpoints/last.pt" if state else None)  # fmt: skip
        w.optimizer("lr", optimizer, key="lr", low=1e-9, high=1.0, scheduler=scheduler)
        for step in w.steps():
            optimizer.step()
            scheduler.step()
            if step == 20:
                control(run, 1, {"lr": 4.5e-4})  # half of what the schedule has there
            w.step(step, {"loss": 1.0})
            if step == last:  # it crashes
                break
        w.flush()
        return optimizer, (copy.deepcopy(optimizer.state_dict()), copy.deepcopy(scheduler.state_dict()))

    _, state = life(100)
    optimizer, _ = life(110, state)
    assert optimizer.seen[0] == pytest.approx([2.5e-4, 2.5e-3])  # half of 5e-4, and of 5e-3
    assert state[0]["param_groups"][0]["lr"] == pytest.approx(5e-4)  # a checkpoint has the script's own


def test_a_warm_up_from_zero_is_no_breach_and_a_change_waits_until_there_is_a_rate(run: Path) -> None:
    optimizer = probe(1e-3)
    scheduler = S.LambdaLR(optimizer, lambda t: min(1.0, t / 10))
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=0.1)  # that a scheduler moves it is found
    control(run, 1, {"lr": 1e-4})
    w.eval(0, {"loss": 1.0})
    assert "0 at this step by the script's own schedule" in records(run, "refused")[0]["reason"]
    assert records(run, "start")[0]["action_space"][0]["scheduled"] is True
    for step in range(1, 21):
        optimizer.step()
        scheduler.step()
        if step == 5:
            control(run, 2, {"lr": 1e-4})
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
    assert optimizer.seen[5] == pytest.approx([1e-4])
    assert optimizer.seen[-1] == pytest.approx([2e-4])
    assert records(run, "log") == []
    assert folded(run).drifts == []


def test_what_comes_of_a_change_stays_within_its_bounds_when_the_schedule_moves_on(run: Path) -> None:
    optimizer = probe(1e-3, 1e-2)
    scheduler = S.LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 50))
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-4, high=2e-3)
    for step in range(1, 101):
        optimizer.step()
        scheduler.step()
        if step == 5:
            control(run, 1, {"lr": 2e-3})  # a factor of 17 in the warm-up
        if step == 70:
            control(run, 2, {"lr": 1e-4})
        w.step(step, {"loss": 1.0})
    assert max(rate for rate, _ in optimizer.seen) == 2e-3
    assert all(second == pytest.approx(10 * first) for first, second in optimizer.seen)
    assert optimizer.seen[-1] == pytest.approx([1e-4, 1e-3])


@pytest.mark.parametrize("computed", [True, False])
@pytest.mark.parametrize("tensors", [True, False])
def test_a_schedule_by_hand_that_nobody_told_of_is_found_at_its_first_step(
    run: Path,
    computed: bool,
    tensors: bool,
) -> None:
    """Computed from a base, or multiplied with what is there."""
    optimizer = probe(1e-2, 1e-1, tensors=tensors)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1.0)
    for step in range(1, 31):
        if step > 10:
            for group, base in zip(optimizer.param_groups, (1e-2, 1e-1), strict=True):
                rate = base * 0.97 ** (step - 10) if computed else group["lr"] * 0.97
                group["lr"] = torch.tensor(float(rate)) if tensors else float(rate)
        optimizer.step()
        if step == 5:
            control(run, 1, {"lr": 2e-3})
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0})
    assert optimizer.seen[9] == pytest.approx([2e-3, 2e-2])
    assert optimizer.seen[29] == pytest.approx([2e-3 * 0.97**20, 2e-2 * 0.97**20], rel=1e-5)


def test_a_rollback_leaves_a_rate_that_is_shown_as_it_is(run: Path) -> None:
    optimizer = probe(1e-2, 1e-1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1.0)
    saved = copy.deepcopy(optimizer.state_dict())
    w.command("rollback", lambda to: optimizer.load_state_dict(copy.deepcopy(saved)))
    for revision, value in ((1, 2e-3), (2, 2e-3), (3, 5e-3)):
        control(run, revision, {"lr": value}, command=command("rollback", "best") if revision > 1 else None)
        w.step(revision, {"loss": 1.0})
        optimizer.step()
    assert optimizer.seen == [pytest.approx([value, 10 * value]) for value in (2e-3, 2e-3, 5e-3)]
    assert [r["changes"] for r in records(run, "applied")] == [
        {"lr": [1e-2, 2e-3]}, {}, {"lr": [2e-3, 5e-3]}
    ]  # fmt: skip


def test_a_resumed_run_whose_rate_nobody_moves_has_what_was_asked_for(run: Path) -> None:
    for life in (1, 2, 3):
        optimizer = probe(1e-2, 1e-1)
        w = Workload("test", objective="loss", total_steps=100, resumed_step=5 * (life - 1),
                     resumed_from="checkpoints/last.pt" if life > 1 else None)  # fmt: skip
        w.optimizer("lr", optimizer, key="lr", low=1e-6, high=1.0)
        for step in w.steps():
            if step == 2:
                control(run, 1, {"lr": 2e-3})
            w.step(step, {"loss": 1.0})
            optimizer.step()
            if step == 5 * life:  # it crashes
                break
        w.flush()
        assert optimizer.seen[-1] == pytest.approx([2e-3, 2e-2])
        w._writer.close()


@given(base=rates, wanted=rates, later=st.lists(st.floats(0.0, 1.0), max_size=8), ratio=st.floats(0.1, 10.0))
def test_a_value_leaves_its_bounds_only_as_far_as_the_scripts_own_does(
    base: float, wanted: float, later: list[float], ratio: float
) -> None:
    low, high = 1e-4, 1e-1
    optimizer = probe(base, base * ratio)
    managed = Managed(optimizer, "lr", low, high, None, moves=True)
    managed.set(min(max(wanted, low), high))
    assert managed.get() == min(max(wanted, low), high) or not low <= base <= high
    for own in later:
        for group, share in zip(optimizer.param_groups, (1.0, ratio), strict=True):
            group["lr"] = own * share
        optimizer.step()
        found = optimizer.seen[-1]
        assert min(low, own) * (1 - 1e-9) <= found[0] <= max(high, own) * (1 + 1e-9)
        assert found[1] == pytest.approx(found[0] * ratio)
        assert managed.get() == pytest.approx(found[0])
        assert optimizer.param_groups[0]["lr"] == own


def test_a_rate_that_the_script_sets_by_hand_is_known_to_move(run: Path) -> None:
    """Nothing had told of it; nobody calls it a change without an override, or a change that did not last."""
    optimizer = probe(0.1)
    w = Workload("test", objective="loss")
    w.optimizer("lr", optimizer, key="lr", low=1e-5, high=1.0)
    for step in range(1, 41):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.95**step
        optimizer.step()
        if step == 20:
            control(run, 1, {"lr": 0.01})
        w.step(step, {"loss": 1.0})
        if step % 5 == 0:
            w.eval(step, {"loss": 1.0})
    share = 0.01 / (0.1 * 0.95**20)
    assert optimizer.seen[-1] == pytest.approx([share * 0.1 * 0.95**40])
    state = folded(run)
    assert state.overwritten == {}
    assert [drift.step for drift in state.drifts] == []
    assert state.space.parameters["lr"].scheduled is True
    assert records(run, "eval")[-1]["moving"]["lr"]["value"] == pytest.approx(0.1 * 0.95**40)
    assert [r["message"] for r in records(run, "log")] == [
        "the script moves lr by itself: declare it with scheduler=... or scheduled=True"
    ]


def test_a_rollback_leaves_a_schedule_on_its_course_that_multiplies(run: Path) -> None:
    """Where only the weight decay is declared: the learning rate of an old checkpoint is another course."""
    optimizer, alone = probe(0.1), probe(0.1)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.1
    saved = copy.deepcopy(optimizer.state_dict())
    schedulers = [S.CosineAnnealingLR(one, 100) for one in (optimizer, alone)]
    w = Workload("test", objective="loss")
    w.optimizer("decay", optimizer, key="weight_decay", low=0.0, high=1.0, scale="linear")
    w.command("rollback", lambda to: optimizer.load_state_dict(copy.deepcopy(saved)))
    for step in range(1, 81):
        for one, scheduler in zip((optimizer, alone), schedulers, strict=True):
            one.step()
            scheduler.step()
        if step == 40:
            control(run, 1, command=command("rollback", "best"))
        w.step(step, {"loss": 1.0})
    assert len(records(run, "applied")) == 1
    assert optimizer.seen == alone.seen
