"""A training with plain torch, declared by one line: alone, with overrides, and as a child that is supervised."""

from __future__ import annotations

import copy
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories.reporting import command, control, folded, records
from torch import nn
from torch.optim import lr_scheduler

from trainmgr.contract import protocol
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log.telemetry import Feed
from trainmgr.readers import proof, replay
from trainmgr.testing import PYTHON, TIME_LIMIT, ScriptedManager, answer, supervise, write_child
from trainmgr.workload import Workload

pytestmark = pytest.mark.usefixtures("alone")

STEPS = 160
CHANGED, BACK = 20, 60  # steps at which something is changed, and rolled back
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5 * (1 + math.cos(math.pi * t / (2 * STEPS)))),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [1e-2, 2e-2], total_steps=2 * STEPS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 25, 2, 1e-3),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fused": {"fused": True},
    "a tensor as rate": {"foreach": False, "tensors": True},
    "fused, a tensor as rate": {"fused": True, "tensors": True},
}


class Training:
    """A regression with dropout and two groups of parameters; ``managed``: with our lines in it."""

    def __init__(self, options: dict[str, Any] | None = None, scheduler: str = "LambdaLR", **more: Any) -> None:
        torch.manual_seed(0)
        options = dict(options or {})
        tensors = options.pop("tensors", False)
        self.model: nn.Module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        layers = [self.model[0], self.model[3]]  # type: ignore[index]
        groups = [
            {"params": layer.parameters(), "lr": torch.tensor(rate) if tensors else rate}
            for layer, rate in zip(layers, (1e-2, 2e-2), strict=True)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-2, **options)
        self.scheduler = SCHEDULERS[scheduler](self.optimizer)
        self.run: Callable[[torch.Tensor], torch.Tensor] = self.model
        self.scaler: Any = None
        self.keep: Any = None
        self.more = more
        self.seen: list[list[float]] = []
        self.at: dict[int, Callable[[], None]] = {}

    def manage(self, model: nn.Module | None = None) -> Training:
        self.w = Workload("test", objective="loss", total_steps=STEPS)
        self.keep = self.w.torch(self.optimizer, model or self.model, scheduler=self.scheduler, **self.more)
        self.keep.begin()
        return self

    def train(self, steps: int = STEPS) -> Training:
        self.optimizer.register_step_pre_hook(
            lambda o, *_: self.seen.append([float(group["lr"]) for group in o.param_groups])
        )
        for step in range(1, steps + 1):
            self.optimizer.zero_grad()
            x = torch.randn(16, 4)
            loss = (self.run(x) - x.sum(1, keepdim=True)).pow(2).mean()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            self.at.get(step, lambda: None)()
            if self.keep is not None:
                self.keep.step(step, {"loss": loss})
                if step % 20 == 0:
                    self.keep.eval(step, {"loss": 1 / step})
        return self

    def state(self) -> list[torch.Tensor]:
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self.model.state_dict().values(), *moments, torch.get_rng_state()]


@pytest.mark.parametrize("options", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_change_lasts_under_every_scheduler_and_a_rollback_takes_neither_it_nor_the_schedule(
    scheduler: str, options: str, run: Path
) -> None:
    alone = Training(OPTIMIZERS[options], scheduler).train()
    managed = Training(OPTIMIZERS[options], scheduler).manage()
    lr = managed.keep._w._parameters["lr"]
    managed.at[CHANGED] = lambda: control(run, 1, {"lr": 0.5 * lr.get(), "weight_decay": 0.05, "dropout": 0.4})
    managed.at[BACK] = lambda: control(run, 2, first(run), command=command("rollback", "initial"))
    managed.train()
    assert managed.seen[:CHANGED] == alone.seen[:CHANGED]
    for step in range(CHANGED, STEPS):
        assert managed.seen[step] == pytest.approx([0.5 * rate for rate in alone.seen[step]], rel=1e-5), step + 1
    assert [group["lr"] for group in managed.optimizer.param_groups] == [
        group["lr"] for group in alone.optimizer.param_groups
    ]
    assert managed.scheduler.state_dict()["last_epoch"] == alone.scheduler.state_dict()["last_epoch"] == STEPS
    assert all(float(state["step"]) == STEPS - BACK for state in managed.optimizer.state.values())
    assert managed.model[2].p == 0.4  # type: ignore[index]
    assert records(run, "eval")[-1]["params"]["weight_decay"] == pytest.approx(0.05)
    state = folded(run)
    assert (state.drifts, state.overwritten) == ([], {})
    assert [r["event"] for r in records(run) if r["event"] in ("refused", "log")] == []


def first(run: Path) -> dict[str, Any]:
    """What was asked for first, which stays in force."""
    return {name: new for name, (_, new) in records(run, "applied")[0]["changes"].items()}


@pytest.mark.parametrize("options", OPTIMIZERS)
def test_watched_and_left_alone_it_trains_to_the_same_bit(options: str, run: Path) -> None:
    alone = Training(OPTIMIZERS[options]).train(60)
    then = [tensor.clone() for tensor in alone.state()]
    managed = Training(OPTIMIZERS[options]).manage().train(60)
    assert all(map(torch.equal, then, managed.state()))
    assert len(then) == 4 + 4 * 3 + 1
    assert alone.seen == managed.seen


def test_a_rollback_brings_back_weights_and_moments_and_no_random_state(run: Path) -> None:
    training = Training().manage()
    training.at[20] = lambda: control(run, 1, command=command("checkpoint", "here"))
    training.train(20)
    then = [value.clone() for value in training.state()]
    training.at.clear()
    training.train(20)
    before = [value.clone() for value in training.state()]
    assert not any(map(torch.equal, then, before))
    control(run, 2, command=command("rollback", "checkpoints/here.pt"))
    training.keep.step(41, {})
    assert records(run, "applied")[-1]["command"]["name"] == "rollback"
    assert all(map(torch.equal, then[:-1], training.state()[:-1]))
    assert torch.equal(before[-1], training.state()[-1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_managed(backend: str, run: Path) -> None:
    training = Training()
    compiled: Any = torch.compile(training.model, backend=backend)
    training.run = compiled
    training.manage(compiled)
    training.at[CHANGED] = lambda: control(run, 1, {"lr": 2e-3, "dropout": 0.4})
    training.at[25] = lambda: control(run, 2, first(run), command=command("rollback", "initial"))
    training.train(40)
    assert [r["changes"].keys() for r in records(run, "applied")] == [{"lr", "dropout"}, set()]
    assert records(run, "refused") == []
    assert not any(key.startswith("_orig_mod") for key in torch.load(training.keep.last)["model"])
    dropped = training.model[2](torch.ones(4000))  # type: ignore[index,operator]
    assert 0.3 < (dropped == 0).float().mean().item() < 0.5


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # of torch, as it compiles
def test_a_compiled_step_uses_what_is_changed(run: Path) -> None:
    """With the rate as a tensor, as torch wants it; the first update is as long as the rate."""
    weight = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.AdamW(weight.parameters(), lr=torch.tensor(1e-2), weight_decay=0.0, foreach=False)
    step = torch.compile(optimizer.step, backend="eager")
    w = Workload("test", objective="loss", total_steps=10)
    keep, lengths = w.torch(optimizer, weight), []
    for number in range(1, 6):
        weight.weight.grad = torch.ones(1, 1)
        before = weight.weight.item()
        step()
        lengths.append(before - weight.weight.item())
        if number == 2:
            control(run, 1, {"lr": 5e-3})
        keep.step(number, {})
    assert lengths == pytest.approx([1e-2] * 2 + [5e-3] * 3, rel=1e-3)


class Scaled(Training):
    """With a scaler of gradients, one of which is infinite at some steps."""

    def __init__(self, infinite: range, *, named: bool) -> None:
        self.grown = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)
        super().__init__(**({"scaler": self.grown} if named else {}))
        self.infinite = infinite

    def train(self, steps: int = STEPS) -> Scaled:
        for step in range(1, steps + 1):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = self.run(torch.randn(16, 4)).pow(2).mean()
            self.grown.scale(loss).backward()
            if step in self.infinite:
                self.model[0].weight.grad.fill_(math.inf)  # type: ignore[index,union-attr,operator]
            self.grown.step(self.optimizer)
            self.grown.update()
            self.scheduler.step()
            self.at.get(step, lambda: None)()
            self.keep.step(step, {"loss": loss})
            self.keep.eval(step, {"loss": 1 / step if step < 10 else 2.0})
        return self


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_the_scale_of_gradients_comes_back_with_the_weights_where_it_is_named(
    run: Path, *, named: bool, fused: bool
) -> None:
    training = Scaled(range(10, 20), named=named)
    training.optimizer.param_groups[0]["fused"] = training.optimizer.param_groups[1]["fused"] = fused
    training.manage()
    training.at[5] = lambda: control(run, 1, {"lr": 5e-3})
    training.at[20] = lambda: control(run, 2, {"lr": 5e-3}, command=command("rollback", "best"))
    training.train(20)
    assert training.grown.get_scale() == (1024.0 if named else 1.0)
    assert [r["changes"].keys() for r in records(run, "applied")] == [{"lr"}, set()]
    assert records(run, "overwritten") == []
    assert {float(state["step"]) for state in training.optimizer.state.values()} == {9.0}
    assert torch.load(training.keep.best).keys() == {"model", "optimizer", *(["scaler"] if named else [])}


def test_where_loading_fails_all_stays_as_it_was(run: Path) -> None:
    training = Training().manage()
    training.train(20)
    torch.save({"model": {}, "optimizer": {}}, training.keep.best)
    before = copy.deepcopy(training.state())
    control(run, 1, command=command("rollback", "best"))
    training.keep.step(21, {})
    assert "Missing key(s)" in records(run, "refused")[0]["reason"]
    assert all(map(torch.equal, before, training.state()))


def test_parameters_of_the_script_are_declared_beside(run: Path) -> None:
    training = Training()
    w = Workload("test", objective="loss", total_steps=STEPS)
    noise = {"noise": 0.0}
    keep = w.torch(training.optimizer, training.model)
    w.float("noise", get=lambda: noise["noise"], set=lambda v: noise.update(noise=v), low=0.0, high=1.0)
    with w, keep:
        control(run, 1, {"noise": 0.5})
        keep.step(1, {})
    assert noise == {"noise": 0.5}
    assert [(r["step"], Path(r["path"]).name) for r in records(run, "checkpoint")] == [
        (0, "initial.pt"),
        (1, "last.pt"),
    ]
    assert records(run)[-1]["event"] == "end"


CHILD = """
import torch
from torch import nn

STEPS, EVERY = 24, 2
torch.manual_seed(default_seed())
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS)
weights = {"small": 0.1}
valid = torch.randn(32, 4)
w = Workload("torch", objective="val_loss", total_steps=STEPS, metrics={"loss": "squared error"})
evals = 0
with w, w.torch(optimizer, model, scheduler=scheduler, clip=1.0, weights=weights) as keep:
    for step in w.steps():
        x = torch.randn(16, 4)
        model.train()
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean() + weights["small"] * model[0].weight.abs().sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), keep.clip)
        optimizer.step()
        scheduler.step()
        keep.step(step, {"loss": loss})
        if step % EVERY == 0:
            model.eval()
            with torch.no_grad():
                keep.eval(step, {"val_loss": (model(valid) - valid.sum(1, keepdim=True)).pow(2).mean()})
            evals += 1
            until(lambda: settled(evals))
"""


def test_a_supervised_child_is_changed_and_taken_back_and_trains_again_bit_for_bit(tmp_path: Path) -> None:
    def decide(snapshot: Snapshot) -> dict[str, Any]:
        now = {row.name: float(row.value) for row in snapshot.recipe}
        if len(manager.snapshots) == 2:
            changes = {"dropout": 0.25, "beta1": 0.9 * now["beta1"], "clip": 0.5, "weight_small": 0.2}
            return answer("adjust", {"lr": 0.5 * now["lr"], **changes})
        if len(manager.snapshots) == 6:
            return answer("rollback", {"weight_decay": 0.04}, to="initial")
        return answer()

    manager = ScriptedManager([decide] * 12)
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, CHILD), manager)
    assert closing.exit_code == 0, paths.stderr.read_text()
    assert closing.interventions == 2
    applied = [r for r in Feed(paths.telemetry).records() if isinstance(r, protocol.Applied)]
    assert applied[0].changes.keys() == {"lr", "dropout", "beta1", "clip", "weight_small"}
    assert applied[1].changes.keys() == {"weight_decay"}
    assert applied[1].command is not None
    assert proof.prove(paths).holds
    again, _, _ = supervise(tmp_path, write_child(tmp_path, CHILD), schedule=replay.schedule_of(paths))
    result = replay.compare_training(paths, again)
    assert result.first is None
    assert result.compared > 24 + 12


PARALLEL = """
import sys

import torch
import torch.distributed as dist
from factories.reporting import command, control

rank, run, asked = int(os.environ["RANK"]), RUN, {"lr": 5e-3, "dropout": 0.3}
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
parallel = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(rank)  # each has data of its own
w = Workload("parallel", objective="loss", total_steps=40, sync_every=5)
with w, w.torch(optimizer, parallel) as keep:
    for step in w.steps():
        if step in (2, 22) and w.primary:
            control(run, step, asked, command=command("rollback", "best") if step == 22 else None)
        optimizer.zero_grad()
        x = torch.randn(8, 4)
        (parallel(x) - x.sum(1, keepdim=True)).pow(2).mean().backward()
        optimizer.step()
        keep.step(step, {})
        if step % 10 == 0:
            keep.eval(step, {"loss": step})
print(sum(p.double().sum().item() for p in model.parameters()), model[1].p, optimizer.state[model[0].weight]["step"])
sys.stdout.flush()
dist.barrier()
os._exit(0)  # threads of gloo may abort a process that ends by itself, once the other is gone
"""


def test_all_processes_of_a_parallel_training_go_back_together(tmp_path: Path) -> None:
    script, run = write_child(tmp_path, PARALLEL), tmp_path / "run"
    run.mkdir()
    environment = {
        **os.environ, "WORLD_SIZE": "2", "TRAINMGR_RUN_DIR": str(run), "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    children = [
        subprocess.Popen([PYTHON, str(script), str(tmp_path / "store")], env={**environment, "RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    said = [child.communicate(timeout=TIME_LIMIT) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert said[0][0].split()[1:] == ["0.3", "tensor(25.)"]  # steps 1 to 10, and after the rollback at 25 another 15
    assert [r["changes"].keys() for r in records(run, "applied")] == [{"lr", "dropout"}, set()]
