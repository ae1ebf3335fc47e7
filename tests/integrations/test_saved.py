"""A checkpoint brings back what was learned, and neither recipe nor time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from trainmgr.integrations.saved import Saved, bare


def trained(optimizer: Any, model: nn.Module, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, 1))


def moments(optimizer: Any) -> list[Any]:
    return [copy.deepcopy(state) for state in optimizer.state.values()]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "AdamW, fused, a tensor as rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-2), fused=True),
    "AdamW, all tensors": lambda p: torch.optim.AdamW(
        p, lr=torch.tensor(1e-2), betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False
    ),
    "Adam, amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_buffers_and_moments_come_back_and_nothing_else(name: str, tmp_path: Path) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = LambdaLR(optimizer, lambda t: 1 / (1 + t))
    saved = Saved(model, optimizer, {})
    trained(optimizer, model)
    saved.save(tmp_path / "one.pt")
    weights, then = copy.deepcopy(model.state_dict()), moments(optimizer)
    places = [value.data_ptr() for state in optimizer.state.values() for value in state.values()]
    trained(optimizer, model)
    scheduler.step()
    group = optimizer.param_groups[0]
    group["weight_decay"] = 0.07
    recipe = {key: value for key, value in group.items() if key != "params"}
    values, random = copy.deepcopy(recipe), torch.get_rng_state()
    assert not same(weights, model.state_dict())
    assert not same(then, moments(optimizer))
    saved.load(tmp_path / "one.pt")
    assert same(weights, model.state_dict())
    assert same(then, moments(optimizer))
    group = optimizer.param_groups[0]
    assert all(group[key] is value for key, value in recipe.items())
    assert same(values, {key: value for key, value in group.items() if key != "params"})
    assert torch.equal(random, torch.get_rng_state())
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == (1, [pytest.approx(0.005)])
    assert places == [value.data_ptr() for state in optimizer.state.values() for value in state.values()]
    trained(optimizer, model)


def test_from_before_the_first_step_an_optimizer_begins_anew(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    saved = Saved(model, optimizer, {})
    saved.save(tmp_path / "initial.pt")
    trained(optimizer, model)
    saved.load(tmp_path / "initial.pt")
    assert not optimizer.state
    trained(optimizer, model, 1)
    assert all(float(state["step"]) == 1 for state in optimizer.state.values())


def test_a_captured_step_goes_on_with_its_tensors_where_there_were_none_yet(tmp_path: Path) -> None:
    """No graph can be captured here; that of a GPU reads the same addresses at each replay."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    saved = Saved(model, optimizer, {})
    saved.save(tmp_path / "initial.pt")
    trained(optimizer, model)
    optimizer.param_groups[0]["capturable"] = True
    there = [value for state in optimizer.state.values() for value in state.values()]
    saved.load(tmp_path / "initial.pt")
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(map(lambda one, other: one is other, there, after))
    assert not any(value.any() for value in after)


def test_a_captured_step_that_begins_elsewhere_is_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.NAdam(model.parameters())
    saved = Saved(model, optimizer, {})
    saved.save(tmp_path / "initial.pt")
    trained(optimizer, model)
    optimizer.param_groups[0]["capturable"] = True
    with pytest.raises(ValueError, match="what mu_product began with"):
        saved.load(tmp_path / "initial.pt")


def test_state_of_another_type_than_the_weights_is_not_rounded(tmp_path: Path) -> None:
    model = nn.Linear(4, 1).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    weight = model.weight
    optimizer.state[weight]["momentum_buffer"] = torch.full((1, 4), 1.0001)
    saved = Saved(model, optimizer, {})
    saved.save(tmp_path / "one.pt")
    optimizer.state[weight]["momentum_buffer"].fill_(2.0)
    saved.load(tmp_path / "one.pt")
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [[pytest.approx(1.0001, rel=1e-6)] * 4]


def test_a_group_that_has_come_since_stays_and_begins_anew(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=1e-2)
    saved = Saved(model, optimizer, {})
    trained(optimizer, model)
    saved.save(tmp_path / "one.pt")
    then = moments(optimizer)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
    trained(optimizer, model)
    saved.load(tmp_path / "one.pt")
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]
    assert same(then, moments(optimizer))
    assert list(optimizer.state) == list(model[1].parameters())
    trained(optimizer, model)


def test_other_groups_are_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    Saved(model, torch.optim.SGD(model.parameters()), {}).save(tmp_path / "one.pt")
    fewer = Saved(model, torch.optim.SGD(model[0].parameters()), {})
    with pytest.raises(ValueError, match=r"groups of \[4\] tensors, the one that trains has \[2\]"):
        fewer.load(tmp_path / "one.pt")


def test_a_state_that_torch_does_not_keep_in_tensors_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    saved, x = Saved(model, optimizer, {}), torch.randn(8, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (model(x) - 1).pow(2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    saved.save(tmp_path / "one.pt")
    then = moments(optimizer)
    optimizer.step(closure)
    assert not same(then, moments(optimizer))
    saved.load(tmp_path / "one.pt")
    assert same(then, moments(optimizer))
    optimizer.step(closure)


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model, other = nn.Linear(4, 1), nn.Sequential(nn.Linear(4, 1))
    Saved(model, torch.optim.SGD(model.parameters()), {}).save(tmp_path / "one.pt")
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict"):
        Saved(other, torch.optim.SGD(other.parameters()), {}).load(tmp_path / "one.pt")


@pytest.mark.parametrize(("content", "found"), [({"model": {}}, "holds model, and not optimizer"), ([1], "a list")])
def test_a_file_of_another_script_is_named(content: Any, found: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "one.pt")
    model = nn.Linear(4, 1)
    with pytest.raises(ValueError, match=found):
        Saved(model, torch.optim.SGD(model.parameters()), {}).load(tmp_path / "one.pt")


def test_what_stands_in_a_group_is_saved_as_far_as_it_is_plain(tmp_path: Path) -> None:
    """`weights_only` reads neither numbers of numpy nor functions."""
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(np.float64(1e-3)))
    optimizer.param_groups[0].update(
        lr=np.float64(1e-3), rate=torch.tensor(0.5), call=len, names=["a", "b"], odd=(len, 1), none=None
    )
    saved = Saved(model, optimizer, {})
    saved.save(tmp_path / "one.pt")
    group = torch.load(tmp_path / "one.pt", weights_only=True)["optimizer"]["param_groups"][0]
    assert (group["lr"], group["rate"], group["names"], group["betas"]) == (1e-3, 0.5, ["a", "b"], (0.9, 0.999))
    assert group["none"] is None
    assert not {"call", "odd"} & group.keys()
    saved.load(tmp_path / "one.pt")
    assert optimizer.param_groups[0]["call"] is len


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> Any:
            return {"where": tmp_path}

        def set_extra_state(self, state: Any) -> None:
            raise AssertionError

    model = Odd(4, 1)
    saved = Saved(model, torch.optim.SGD(model.parameters()), {})
    with pytest.raises(ValueError, match=r"neither tensor nor plain value \(pathlib.*Path\)"):
        saved.save(tmp_path / "one.pt")


def test_what_else_is_named_is_saved_too(tmp_path: Path) -> None:
    model = net()
    averaged = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    saved = Saved(model, optimizer, {"ema": averaged})
    saved.save(tmp_path / "one.pt")
    then = copy.deepcopy(averaged.state_dict())
    trained(optimizer, model)
    averaged.update_parameters(model)
    assert not same(then, averaged.state_dict())
    saved.load(tmp_path / "one.pt")
    assert same(then, averaged.state_dict())


@pytest.mark.parametrize(
    ("others", "error"), [({"model": nn.Linear(1, 1)}, "'model' is saved already"), ({"x": 3}, "'x' is a int, without")]
)
def test_what_cannot_be_saved_beside_is_refused(others: dict[str, Any], error: str) -> None:
    model = nn.Linear(4, 1)
    with pytest.raises((TypeError, ValueError), match=error):
        Saved(model, torch.optim.SGD(model.parameters()), others)


def test_what_is_trained_beside_the_model_is_missed_at_once() -> None:
    model, head = nn.Linear(4, 2), nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()])
    with pytest.raises(ValueError, match=r"trains 2 tensors that are not the model's \(shapes \(1, 2\), \(1,\)\)"):
        Saved(model, optimizer, {})
    Saved(nn.ModuleList([model, head]), optimizer, {})
    Saved(model, optimizer, {"head": head})


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrappers_are_taken_off_in_whatever_order(group: None) -> None:
    model = nn.Linear(4, 1)
    parallel, compiled = nn.parallel.DistributedDataParallel(model), torch.compile(model, backend="eager")
    wrapped = [model, parallel, compiled, nn.DataParallel(model), torch.compile(parallel, backend="eager")]
    wrapped.append(nn.parallel.DistributedDataParallel(compiled))
    assert all(bare(one) is model for one in wrapped)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    assert bare(averaged) is averaged


def test_a_compiled_model_loads_what_an_uncompiled_one_saved(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Saved(model, optimizer, {}).save(tmp_path / "one.pt")
    then = copy.deepcopy(model.state_dict())
    compiled = torch.compile(model, backend="eager")
    trained(optimizer, compiled)
    Saved(compiled, optimizer, {}).load(tmp_path / "one.pt")
    assert same(then, model.state_dict())


def test_a_sharded_model_is_refused_with_what_to_do() -> None:
    class FSDPModule:
        pass

    class Sharded(FSDPModule, nn.Linear):
        pass

    model = nn.Sequential(Sharded(4, 1))
    with pytest.raises(TypeError, match=r"sharded \(FSDP\).*torch\.distributed\.checkpoint"):
        Saved(model, torch.optim.SGD(model.parameters()), {})
