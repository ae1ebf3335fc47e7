"""The physics-informed workload: its problem and formulas, and whole runs that repeat bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pinn
import pytest
import scripts
import torch
from scripts import records
from torch import Tensor

from trainmgr.base.paths import RunPaths
from trainmgr.checking import check
from trainmgr.contract import protocol
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.managers.none import NoManager
from trainmgr.readers import replay
from trainmgr.testing import ScriptedManager, answer

STEPS, EVERY = 60, 10
PROBLEM = pinn.Problem(6 * math.pi)
RUN = scripts.Script(pinn, STEPS)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with scripts.one_thread():
        yield


def trainer(*more: str) -> pinn.Trainer:
    with RUN.command_line("--seed", "3", *more):
        return pinn.Trainer(pinn.arguments())


def flat(made: pinn.Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.params])


# -- the problem ------------------------------------------------------------------------------------------------------


def derivatives(function: Any, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """u, u_t and u_tt - u_xx by differentiating twice."""
    points = points.clone().requires_grad_()
    u = function(points)
    (first,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    (of_x,) = torch.autograd.grad(first[:, 0].sum(), points, create_graph=True)
    (of_t,) = torch.autograd.grad(first[:, 1].sum(), points, create_graph=True)
    return u, first[:, 1], of_t[:, 1] - of_x[:, 0]


class Solved(pinn.Network):
    """In place of a network, the exact solution."""

    def value(self, points: Tensor) -> Tensor:
        return PROBLEM.solution(points)

    def jet(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return derivatives(PROBLEM.solution, points)


def test_the_solution_solves_the_equation_and_keeps_its_boundary_and_initial_values() -> None:
    batch = pinn.Batch(*(points.double() for points in pinn.draw(200, 40, 1)))
    u, _, wave = derivatives(PROBLEM.solution, batch.inside)
    torch.testing.assert_close(wave + u**3, PROBLEM.source(batch.inside), atol=1e-10, rtol=0)
    _, t = batch.boundary.unbind(1)
    wanted = torch.cat((torch.zeros(20), torch.cos(PROBLEM.frequency * t[20:]) + t[20:] ** 3))  # x = 0, x = 1
    torch.testing.assert_close(PROBLEM.solution(batch.boundary), wanted.double())
    u, velocity, _ = derivatives(PROBLEM.solution, batch.initial)
    torch.testing.assert_close(u, batch.initial[:, 0])
    assert velocity.abs().max() < 1e-12
    assert max(loss.item() for loss in Solved(1, 1, 0).losses(PROBLEM, batch)) < 1e-20


def test_each_loss_sees_its_own_mistake() -> None:
    class Off(Solved):
        def value(self, points: Tensor) -> Tensor:
            return super().value(points) + 0.1

        def jet(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            u, velocity, wave = super().jet(points)
            return u, velocity + 0.2, wave + 0.3

    batch = pinn.Batch(*(points.double() for points in pinn.draw(50, 20, 1)))
    found = [loss.item() for loss in Off(1, 1, 0).losses(PROBLEM, batch)]
    assert found == pytest.approx([0.09, 0.01, 0.04])


def test_points_are_a_function_of_the_key_and_lie_where_they_should() -> None:
    batch = pinn.draw(32, 16, 3, 1)
    assert all(torch.equal(a, b) for a, b in zip(batch, pinn.draw(32, 16, 3, 1), strict=True))
    assert not torch.equal(batch.inside, pinn.draw(32, 16, 3, 2).inside)
    assert [len(points) for points in batch] == [32, 16, 16]
    assert batch.boundary[:, 0].tolist() == [0.0] * 8 + [1.0] * 8
    assert batch.initial[:, 1].tolist() == [0.0] * 16
    assert all(points.min() >= 0 and points.max() <= 1 for points in batch)


def test_no_test_point_is_a_validation_point() -> None:
    valid, test = ({tuple(point) for point in pinn.grid(n).tolist()} for n in (pinn.VALID, pinn.TEST))
    assert (len(valid), len(test)) == (pinn.VALID**2, pinn.TEST**2)
    assert not valid & test


# -- derivatives ------------------------------------------------------------------------------------------------------


def in_double(layers: int, width: int) -> pinn.Network:
    network = pinn.Network(layers, width, seed=5)
    random = torch.Generator().manual_seed(6)
    network.params = [  # no bias is zero
        (p.detach().double() + 0.1 * torch.randn(p.shape, generator=random).double()).requires_grad_()
        for p in network.params
    ]
    return network


def test_the_jet_has_the_derivatives_of_autograd_and_so_have_its_gradients() -> None:
    network, points = in_double(3, 7), pinn.draw(20, 2, 1).inside.double()
    found, wanted = network.jet(points), derivatives(network.value, points)
    torch.testing.assert_close(found, wanted)
    for one, two in zip(found, wanted, strict=True):
        gradients = [
            torch.autograd.grad((values.sin()).sum(), network.params, retain_graph=True, materialize_grads=True)
            for values in (one, two)
        ]
        torch.testing.assert_close(*gradients)


def test_the_backward_pass_by_hand_is_right() -> None:
    random = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=random).double().requires_grad_() for shape in ((4, 5, 3), (3, 2), (2,))]
    assert torch.autograd.gradcheck(pinn.Jet.apply, inputs)


def test_gradients_of_the_losses_add_up_to_that_of_their_sum() -> None:
    network, batch = in_double(2, 6), pinn.Batch(*(points.double() for points in pinn.draw(20, 8, 1)))
    weights = torch.tensor([0.5, 20.0, 3.0]).double()
    losses = network.losses(PROBLEM, batch)
    whole = torch.autograd.grad(weights @ torch.stack(losses), network.params)
    found = weights @ network.gradients(network.losses(PROBLEM, batch))
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in whole]))


def test_a_step_is_one_of_adam_on_the_weighted_sum() -> None:
    one, two = (trainer("--weight-boundary", "100", "--weight-initial", "10") for _ in range(2))
    row = one.step(1)
    losses = two.network.losses(two.problem, pinn.draw(two.inside, two.rim, 3, 1))
    loss = losses[0] + 100 * losses[1] + 10 * losses[2]
    loss.backward()
    two.optimizer.step()
    torch.testing.assert_close(flat(one), flat(two), atol=1e-6, rtol=0)
    assert row["loss"] == pytest.approx(loss.item())
    assert [row[f"loss_{name}"] for name in pinn.LOSSES] == pytest.approx([value.item() for value in losses])


# -- weights ----------------------------------------------------------------------------------------------------------


def test_uncertainty_weighting_by_hand() -> None:
    s = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([3.0, 0.5, 7.0], dtype=torch.float64)
    (wanted,) = torch.autograd.grad((torch.exp(-s) * losses / 2 + s / 2).sum(), s)
    weights = torch.exp(-s.detach()) / 2
    found = pinn.uncertainty_gradient(weights, losses)
    torch.testing.assert_close(found, wanted)
    assert found.tolist() == pytest.approx([0.5 - 1.5, 0.5 - 0.25 / math.e, 0.5 - 3.5 * math.e**2])
    at_rest = pinn.uncertainty_gradient(1 / (2 * losses), losses)  # each weight is one over twice its loss
    assert at_rest.abs().max() < 1e-12


def test_gradnorm_by_hand() -> None:
    """Norms 8, 1, 3 under weights 1, 1, 1: their mean is 4. Losses fell to 1/2, 1/4 and 1/4: their mean is 1/3."""
    losses, first = torch.tensor([2.0, 0.5, 1.0]).double(), torch.tensor([4.0, 2.0, 4.0]).double()
    norms, weights = torch.tensor([8.0, 1.0, 3.0]).double(), torch.ones(3).double()
    targets = [4 * 1.5**2, 4 * 0.75**2, 4 * 0.75**2]  # 9, 2.25, 2.25
    assert targets == [9.0, 2.25, 2.25]
    assert pinn.gradnorm_gradient(weights, losses, first, norms, 2.0).tolist() == [-8.0, -1.0, 3.0]
    assert pinn.gradnorm_gradient(weights, losses, first, norms, 0.0).tolist() == [8.0, -1.0, -3.0]  # targets 4, 4, 4
    free = weights.clone().requires_grad_()
    loss = (free * norms - torch.tensor(targets)).abs().sum()
    torch.testing.assert_close(
        pinn.gradnorm_gradient(weights, losses, first, norms, 2.0), *torch.autograd.grad(loss, free)
    )


def test_weights_learn_towards_their_rest_and_stay_within_bounds() -> None:
    losses, norms = torch.tensor([100.0, 0.02, 1e-9]), torch.tensor([50.0, 5.0, 1.0])
    learned = pinn.Weights([1.0, 1.0, 1.0], "uncertainty", 0.1, 1.5)
    for _ in range(3000):
        learned.update(losses, norms)
    assert learned.values.tolist() == pytest.approx([1 / 200, 1 / 0.04, pinn.HIGH], rel=0.05)
    balanced = pinn.Weights([1.0, 1.0, 1.0], "gradnorm", 0.002, 1.5)
    for _ in range(3000):
        balanced.update(losses, norms)  # no loss falls: all norms should be equal
    assert balanced.values.sum().item() == pytest.approx(3)
    assert (balanced.values * norms).tolist() == pytest.approx([150 / 61] * 3, rel=0.1)  # 1/50 : 1/5 : 1
    by_hand = pinn.Weights([1.0, 2.0, 3.0], "fixed", 0.1, 1.5)
    by_hand.update(losses, norms)
    assert by_hand.values.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("scheme", ["uncertainty", "gradnorm"])
def test_a_weight_that_is_set_is_read_back_and_learned_on_from_there(scheme: str) -> None:
    weights = pinn.Weights([1.0, 1.0, 1.0], scheme, 0.01, 1.5)
    losses, norms = torch.tensor([100.0, 0.02, 1.0]), torch.tensor([50.0, 5.0, 1.0])
    weights.update(losses, norms)
    weights.set("boundary", 0.3)
    assert weights.get("boundary") == 0.3
    weights.update(losses, norms)
    assert 0.28 < weights.get("boundary") < 0.42
    before = weights.values.clone()
    weights.update(torch.tensor([math.nan, 0.02, 1.0]), norms)  # a weight that is not finite could never be changed
    assert torch.equal(weights.values, before)


# -- measurement and checkpoints --------------------------------------------------------------------------------------


def test_the_imbalance_is_that_of_weighted_gradients() -> None:
    made = trainer("--weight-boundary", "50")
    found = made.balance()
    plain = [found[f"grad_norm_{name}"] for name in pinn.LOSSES]
    weighted = [found[f"weighted_grad_norm_{name}"] for name in pinn.LOSSES]
    assert weighted == pytest.approx([plain[0], 50 * plain[1], plain[2]])
    assert found["grad_imbalance"] == pytest.approx(max(weighted) / min(weighted))
    losses = made.network.losses(made.problem, made.measured)
    boundary = torch.cat([g.flatten() for g in torch.autograd.grad(losses[1], made.network.params)])
    assert plain[1] == pytest.approx(boundary.norm().item())


def test_an_evaluation_is_a_function_of_the_network_and_changes_nothing() -> None:
    one, two = trainer(), trainer()
    points = pinn.grid(10)
    assert (one.balance(), one.error(points)) == (one.balance(), one.error(points))
    assert one.step(1) == two.step(1)
    assert torch.equal(flat(one), flat(two))


def test_the_error_is_relative_to_the_solution() -> None:
    made, points = trainer(), pinn.grid(10)
    with torch.no_grad():
        for p in made.network.params:
            p.zero_()
    assert made.error(points) == 1.0
    made.network = Solved(1, 1, 0)
    assert made.error(points) < 1e-6


@pytest.mark.parametrize("scheme", ["fixed", "uncertainty", "gradnorm"])
def test_a_rollback_restores_network_and_moments_and_keeps_the_recipe(scheme: str, tmp_path: Path) -> None:
    made, path = trainer("--weighting", scheme), tmp_path / "there.pt"
    made.step(1)
    made.save(path, 1)
    there, moments = flat(made), [made.optimizer.state[p]["exp_avg"].clone() for p in made.network.params]
    made.step(2)
    made.optimizer.param_groups[0]["lr"], made.best_error = 1e-4, 0.5
    made.weights.set("boundary", 20.0)
    weights = made.weights.values.clone()
    assert made.load(path, resume=False) == 1
    assert torch.equal(flat(made), there)
    found = [made.optimizer.state[p]["exp_avg"] for p in made.network.params]
    assert all(torch.equal(a, b) for a, b in zip(found, moments, strict=True))
    assert (made.optimizer.param_groups[0]["lr"], made.best_error) == (1e-4, 0.5)
    assert torch.equal(made.weights.values, weights)


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    made, path = trainer(), tmp_path / "there.pt"
    made.save(path, 1)
    with pytest.raises(ValueError, match="its weighting is fixed, that of this run is gradnorm"):
        trainer("--weighting", "gradnorm").load(path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a checkpoint"):
        made.load(path, resume=True)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unmanaged(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> RunPaths:
    return RUN.alone(tmp_path_factory.mktemp("pinn") / "out")


def test_a_run_alone_leaves_a_whole_record(unmanaged: RunPaths) -> None:
    start, end = records(unmanaged, protocol.Start)[0], records(unmanaged, protocol.End)[0]
    evaluations, steps = records(unmanaged, protocol.Eval), records(unmanaged, protocol.Step)
    assert [e.step for e in evaluations] == list(range(0, STEPS + 1, EVERY))
    assert [s.step for s in steps] == list(range(1, STEPS + 1))
    assert {n for r in (*evaluations, *steps, end) for n in r.metrics} == set(start.metrics)
    assert not any("test" in n for r in (*evaluations, *steps) for n in r.metrics)
    assert {"test_error_last", "test_error_best"} <= set(end.metrics)
    assert {p.name: p.group for p in start.action_space} == {
        "lr": "optimizer", "weight_residual": "loss weight", "weight_boundary": "loss weight",
        "weight_initial": "loss weight",
    }  # fmt: skip
    assert all(p.scale == "log" and not p.scheduled for p in start.action_space)
    weighted = {n: m.depends for n, m in start.metrics.items() if m.role == "loss gradient"}
    assert weighted == {f"weighted_grad_norm_{name}": [f"weight_{name}"] for name in pinn.LOSSES}


def test_two_runs_are_identical(unmanaged: RunPaths, tmp_path: Path) -> None:
    assert replay.compare_training(unmanaged, RUN.alone(tmp_path / "again")).first is None


def test_supervision_changes_nothing_by_being_there(unmanaged: RunPaths, tmp_path: Path) -> None:
    result = replay.compare_training(unmanaged, RUN.supervised(tmp_path, NoManager()))
    assert result.first is None
    assert result.compared > STEPS


@pytest.mark.parametrize("scheme", ["fixed", "uncertainty", "gradnorm"])
def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(scheme: str, tmp_path: Path) -> None:
    how = ["--weighting", scheme]
    whole, half = RUN.alone(tmp_path / "whole", *how), RUN.alone(tmp_path / "half", *how, "--steps", "25")
    rest = RUN.alone(tmp_path / "rest", *how, "--resume", str(half.checkpoints / "last.pt"))
    for kind in (protocol.Step, protocol.Eval):
        wanted = {r.step: r.metrics for r in records(whole, kind) if r.step > 25}
        assert {r.step: r.metrics for r in records(rest, kind)} == wanted
    (one,), (two,) = records(whole, protocol.End), records(rest, protocol.End)
    assert one.metrics["test_error_last"] == two.metrics["test_error_last"]


def test_weights_that_move_by_themselves_are_declared_so(tmp_path: Path) -> None:
    paths = RUN.supervised(tmp_path, NoManager(), None, "--weighting", "gradnorm")
    (start,) = records(paths, protocol.Start)
    assert {p.name: p.scheduled for p in start.action_space} == {
        "lr": False, "weight_residual": True, "weight_boundary": True, "weight_initial": True,
    }  # fmt: skip
    first, *_, last = (e.params["weight_residual"] for e in records(paths, protocol.Eval))
    assert first == 1.0
    assert last < 1.0


def test_a_managed_run_with_a_rollback_proves_itself_and_trains_again_bit_for_bit(tmp_path: Path) -> None:
    def decide(snapshot: Snapshot) -> dict[str, Any]:
        if "rollback" in snapshot.actions and snapshot.progress.step >= 2 * EVERY:
            return answer("rollback", {"lr": 5e-4, "weight_boundary": 100.0}, to="best")
        return answer("adjust", {"weight_boundary": 10.0, "weight_residual": 0.1})

    paths = RUN.supervised(tmp_path, ScriptedManager([decide] * 10))
    applied = records(paths, protocol.Applied)
    assert any(r.command is not None and r.command.name == "rollback" for r in applied)
    assert replay.rebuild(paths).differences == []
    again = RUN.supervised(tmp_path, NoManager(), replay.schedule_of(paths))
    result = replay.compare_training(paths, again)
    assert result.first is None
    assert result.compared > STEPS


def test_commands_and_every_parameter_at_exact_steps(tmp_path: Path) -> None:
    """Through a schedule, so that nothing depends on who is faster."""

    def entry(revision: int, step: int, boundary: str, params: dict[str, float], command: str | None = None,
              to: str | None = None) -> protocol.Override:  # fmt: skip
        return protocol.Override(
            revision=revision, params=params, based_on_step=step, at_step=step, at_boundary=boundary,
            decision=f"d{revision}",
            command=protocol.Command(id=f"c{revision}", name=command, to=to) if command else None,
        )  # fmt: skip

    first = {"lr": 5e-4, "weight_residual": 0.1}
    second = {**first, "weight_boundary": 10.0, "weight_initial": 5.0}
    schedule = [
        entry(1, 12, "step", first), entry(2, 20, "eval", first, "checkpoint"),
        entry(3, 25, "step", second, "rollback", "best"), entry(4, 41, "step", second, "rollback", "initial"),
        entry(5, 50, "eval", second, "stop", "best"),
    ]  # fmt: skip
    paths = RUN.supervised(tmp_path, NoManager(), schedule)
    applied = records(paths, protocol.Applied)
    assert [(r.revision, r.step, r.boundary) for r in applied] == [
        (o.revision, o.at_step, o.at_boundary) for o in schedule
    ]
    assert {name: new for r in applied for name, (_, new) in r.changes.items()} == second
    assert applied[2].changes == {"weight_boundary": (1.0, 10.0), "weight_initial": (1.0, 5.0)}
    assert applied[3].changes == {}
    saved = [r for r in records(paths, protocol.Checkpoint) if r.step == 25]
    assert [r.path for r in saved] == ["checkpoints/last.pt"]  # a crash does not undo the rollback
    (end,) = records(paths, protocol.End)
    assert (end.status, end.step) == ("stopped", 50)
    assert end.metrics["val_error"] == end.metrics["best_val_error"]


def test_it_keeps_to_the_protocol() -> None:
    found = check.Probe(RUN.path, [*scripts.TINY, "--steps", "5000"], 60.0).run()
    assert [breach.what for breach in found.breaches] == []
    tried = {line.partition(":")[0] for line in found.passed if "takes effect" in line}
    assert tried == {"lr", *pinn.WEIGHTS}
