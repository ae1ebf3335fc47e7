"""What is found in a training with torch, and within which bounds it is declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories.reporting import control, records
from torch import nn
from torch.optim import lr_scheduler

from trainmgr.integrations import recipe
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")


class Trained:
    """A model of two layers, its optimizer, and what was declared of it."""

    def __init__(
        self, kind: Any = torch.optim.AdamW, *, drop: float = 0.1, apart: bool = False, **options: Any
    ) -> None:
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(drop), nn.Linear(4, 1))
        layers: Any = [{"params": self.model[0].parameters()}, {"params": self.model[2].parameters()}]
        self.optimizer = kind(layers if apart else self.model.parameters(), **{"lr": 1e-3, **options})
        self.scheduler: Any = None
        self.w = Workload("test", objective="loss", total_steps=400)

    def declared(self, **more: Any) -> dict[str, dict[str, Any]]:
        self.keep = self.w.torch(self.optimizer, self.model, scheduler=self.scheduler, **more)
        return {name: parameter.spec for name, parameter in self.w._parameters.items()}

    def values(self) -> dict[str, Any]:
        return {name: parameter.get() for name, parameter in self.w._parameters.items()}

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.ones(2, 4)).sum().backward()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()


def test_of_adamw_with_dropout() -> None:
    found = Trained().declared()
    keys = ("low", "high", "scale", "max_ratio", "min_ratio", "max_delta", "group")
    assert {name: tuple(spec[key] for key in keys) for name, spec in found.items()} == {
        "lr": (1e-5, 1e-2, "log", 2.0, 0.1, None, "optimizer"),
        "weight_decay": (0.0, 0.1, "linear", None, None, 0.05, "regularization"),
        "beta1": (0.5, 0.99, "linear", None, None, 0.098, "optimizer"),
        "beta2": (0.9, 0.9999, "linear", None, None, 0.05, "optimizer"),
        "dropout": (0.0, 0.5, "linear", None, None, 0.2, "regularization"),
    }
    assert found["dropout"]["description"] == "share of features zeroed in training"
    assert found["lr"]["description"] == "learning rate of AdamW"


@pytest.mark.parametrize(
    ("kind", "options", "names"),
    [
        (torch.optim.SGD, {}, ["lr", "weight_decay"]),
        (torch.optim.SGD, {"momentum": 0.9}, ["lr", "weight_decay", "momentum"]),
        (torch.optim.Adam, {"betas": (0.0, 0.99)}, ["lr", "weight_decay", "beta2"]),
        (torch.optim.RMSprop, {}, ["lr", "weight_decay"]),
        (torch.optim.Adadelta, {}, ["lr", "weight_decay"]),
        (torch.optim.Adafactor, {}, ["lr", "weight_decay"]),
        (torch.optim.Rprop, {}, ["lr"]),
        (torch.optim.LBFGS, {}, ["lr"]),
    ],
)
def test_only_what_there_is_and_what_is_used(kind: Any, options: dict[str, Any], names: list[str]) -> None:
    assert list(Trained(kind, **options).declared(bounds={"dropout": None})) == names


def test_bounds_lie_around_what_a_script_begins_with() -> None:
    found = Trained(drop=0.7, weight_decay=0.05, betas=(0.3, 0.99999)).declared()
    assert {name: (spec["low"], spec["high"]) for name, spec in found.items()} == {
        "lr": (1e-5, 1e-2),
        "weight_decay": (0.0, 0.5),
        "beta1": (0.3, 0.99),
        "beta2": (0.9, 0.99999),
        "dropout": (0.0, 0.7),
    }


SCHEDULERS: dict[str, Any] = {
    "a warm-up from 0": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, t / 10)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=400),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, base_lr=1e-4, max_lr=1e-3),
    "none": lambda o: None,
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_start_of_a_rate_is_the_peak_that_it_comes_to(name: str) -> None:
    training = Trained()
    training.scheduler = SCHEDULERS[name](training.optimizer)
    lr = training.declared()["lr"]
    assert (lr["low"], lr["high"]) == (1e-5, 1e-2)


END = {"OneCycleLR": 0.95, "CyclicLR": 0.88}  # of a momentum, at step 400: 2 * 0.1 * 400 / 4000 on the way to 0.8


@pytest.mark.parametrize("name", END)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_a_momentum_that_is_cycled_follows_its_cycle(name: str, kind: Any, run: Path) -> None:
    """Both run twice: the change is the same factor on what the scheduler has, as far as the bound."""
    seen: list[list[float]] = []
    for changed in (False, True):
        training = Trained(kind, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
        training.scheduler = SCHEDULERS[name](training.optimizer)
        key = "momentum" if kind is torch.optim.SGD else "beta1"
        if changed:
            training.declared()
            training.keep.begin()  # our hooks are there from now on
        seen.append([])
        training.optimizer.register_step_pre_hook(
            lambda o, *_: seen[-1].append((o.param_groups[0].get("betas") or [o.param_groups[0]["momentum"]])[0])
        )
        for step in range(1, 121):
            training.step()
            if step == 10 and changed:
                control(run, 1, {key: 0.9 * training.values()[key]})
            if changed:
                training.keep.step(step, {"loss": 1.0})
                training.keep.eval(step, {"loss": 1.0})
    assert len(set(seen[0])) > 100
    assert seen[1][:10] == seen[0][:10]
    assert seen[1][10:] == pytest.approx([0.9 * value for value in seen[0][10:]])
    assert records(run, "overwritten") == []
    assert records(run, "eval")[-1]["moving"][key]["end"] == pytest.approx(0.9 * END[name], rel=1e-3)


def test_no_group_comes_to_an_average_that_never_changes(run: Path) -> None:
    training = Trained(apart=True)
    for group, betas in zip(training.optimizer.param_groups, ((0.8, 0.9), (0.95, 0.999)), strict=True):
        group["betas"] = betas
    found = training.declared()
    assert found["beta1"]["high"] == pytest.approx(0.9999 * 0.8 / 0.95)
    assert found["beta1"]["description"].endswith("; the first of 2 groups above 0, the others in ratio")
    control(run, 1, {name: found[name]["high"] for name in ("beta1", "beta2")})
    seen = []
    training.keep.step(1, {})
    training.optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["betas"] for g in o.param_groups]))
    training.step()
    assert max(beta for group in seen[-1] for beta in group) == pytest.approx(0.9999)
    assert [g["betas"] for g in training.optimizer.param_groups] == [(0.8, 0.9), (0.95, 0.999)]


def test_groups_without_a_value_are_left_out() -> None:
    training = Trained(apart=True, weight_decay=0.1)
    training.optimizer.param_groups[1]["betas"] = None
    del training.optimizer.param_groups[0]["weight_decay"]
    training.declared()
    groups = {name: p.managed._indices for name, p in training.w._parameters.items() if p.managed}
    assert groups == {"lr": None, "weight_decay": [1], "beta1": [0], "beta2": [0]}


def test_a_decay_of_zero_beside_others_stays_there(run: Path) -> None:
    training = Trained(torch.optim.SGD, apart=True, weight_decay=0.1)
    training.optimizer.param_groups[1].update(weight_decay=0.0, lr=1e-2)
    training.declared()
    control(run, 1, {"weight_decay": 0.4, "lr": 5e-4})
    training.keep.step(1, {})
    groups = records(run, "applied")[0]["groups"]
    assert groups == {"weight_decay": [0.4, 0.0], "lr": [5e-4, pytest.approx(5e-3)]}


def test_bounds_are_replaced_and_parameters_left_out() -> None:
    found = Trained().declared(bounds={"lr": (1e-6, 1.0), "dropout": (0.1, 0.2), "beta1": None, "beta2": None})
    assert list(found) == ["lr", "weight_decay", "dropout"]
    assert [found["lr"][key] for key in ("low", "high", "max_ratio")] == [1e-6, 1.0, 2.0]
    assert [found["dropout"][key] for key in ("low", "high", "max_delta")] == [0.1, 0.2, 0.04]


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ({"droput": None}, "bounds are given for 'droput'; found were lr, weight_decay, beta1, beta2, dropout"),
        ({"lr": 0.1}, r"bounds of lr are 0.1; give \(low, high\), or None to leave it out"),
        ({"lr": (0.0, 0.1)}, "a log scale needs low > 0"),
        ({"dropout": (0.5, 0.1)}, "not finite and increasing"),
    ],
)
def test_bounds_that_make_no_sense_are_named(bounds: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Trained().declared(bounds=bounds)


def test_a_rate_of_zero_needs_bounds() -> None:
    with pytest.raises(ValueError, match="the learning rate is 0 in every group"):
        Trained(lr=0.0).declared()
    assert Trained(lr=0.0).declared(bounds={"lr": (1e-5, 1e-2)})["lr"]["high"] == 1e-2


def test_the_clip_is_what_the_script_reads(run: Path) -> None:
    training = Trained()
    found = training.declared(clip=2)
    assert [found["clip"][key] for key in ("low", "high", "scale", "max_ratio", "group")] == [
        0.2, 20.0, "log", 2.0, "clipping",
    ]  # fmt: skip
    assert training.keep.clip == 2.0
    control(run, 1, {"clip": 1.0})
    training.keep.step(1, {})
    assert training.keep.clip == 1.0


def test_weights_are_written_where_the_script_reads_them(run: Path) -> None:
    weights = {"kl": 0.1, "extra": 0.0}
    training = Trained()
    found = training.declared(weights=weights)
    assert [found["weight_kl"][key] for key in ("low", "high", "scale", "max_ratio", "group")] == [
        1e-3, 10.0, "log", 10.0, "loss weight",
    ]  # fmt: skip
    assert [found["weight_extra"][key] for key in ("low", "high", "scale")] == [0.0, 1.0, "linear"]
    control(run, 1, {"weight_kl": 0.5, "weight_extra": 0.2})
    training.keep.step(1, {})
    assert weights == {"kl": 0.5, "extra": 0.2}
    assert training.keep.weights is weights


@pytest.mark.parametrize("options", [{"clip": 0.0}, {"clip": -1.0}, {"clip": float("nan")}, {"clip": float("inf")}])
def test_a_clip_that_is_none_is_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="give the largest norm of the gradients, above 0"):
        Trained().declared(**options)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="the weight of kl is"):
        Trained().declared(weights={"kl": weight})


def test_where_no_clip_was_named_none_is_read() -> None:
    training = Trained()
    training.declared()
    with pytest.raises(ValueError, match="no norm was named"):
        _ = training.keep.clip


def test_the_documentation_lists_what_is_declared() -> None:
    text = recipe.__doc__ or ""
    found = Trained().declared(clip=1.0, weights={"x": 1.0})
    names = {"weight_NAME" if name == "weight_x" else name for name in found} | {"momentum"}
    assert all(f"\n{name}" in text for name in names)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (lambda t: (t.model, t.optimizer), "optimizer is a Sequential; give one of torch.optim, then the model"),
        (lambda t: ([t.optimizer], t.model), "optimizer is a list; give one of torch.optim"),
        (lambda t: (t.optimizer, [t.model]), "model is a list; give the torch.nn.Module"),
    ],
)
def test_what_is_not_of_torch_is_refused(given: Any, error: str) -> None:
    training = Trained()
    with pytest.raises(TypeError, match=error):
        training.w.torch(*given(training))


def test_it_is_called_once() -> None:
    training = Trained()
    training.declared()
    with pytest.raises(ValueError, match=r"w\.torch is called once"):
        training.declared()
