"""The reacher workload: its formulas, and whole runs that give the same numbers bit for bit however they came about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reacher
import scripts
import torch
from reaching.agent import LOG_STD_BOUNDS, Agent
from reaching.evaluation import Cell, Examination, Result
from reaching.scenes import training_scene
from reaching.task import OBSERVATIONS
from scripts import records

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.contract.policy import Policy
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log import history
from trainmgr.managers.none import NoManager
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.testing import Recorder, ScriptedManager, answer

UPDATES, EVERY = 8, 2
RUN = scripts.Script(reacher, UPDATES)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with scripts.one_thread():
        yield


def trainer(*more: str) -> reacher.Trainer:
    with RUN.command_line("--seed", "3", *more):
        made = reacher.Trainer(reacher.arguments())
    made.begin(list(range(made.envs)))
    return made


def weights(made: reacher.Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in made.params])


# -- formulas ---------------------------------------------------------------------------------------------------------


def test_generalized_advantages_by_hand() -> None:
    """Three steps of four arms: one goes on, one ends safely, one times out and is counted on, one is not."""
    rewards, values = np.full((3, 4), 1.0), np.full((3, 4), 2.0)
    following = np.full((3, 4), 3.0)
    ended, terminal = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    ended[1, 1:] = True
    terminal[1, [1, 3]] = True
    found = reacher.advantages(rewards, values, following, terminal, ended)
    on, end, decay = 1 + 0.99 * 3 - 2, 1 - 2, 0.99 * 0.95
    assert found[:, 0] == pytest.approx([on + decay * (on + decay * on), on + decay * on, on])
    assert found[:, 1] == pytest.approx([on + decay * end, end, on])
    assert found[:, 2] == pytest.approx([on + decay * on, on, on])
    assert found[:, 3] == pytest.approx(found[:, 1])


def test_log_probability_and_entropy_are_those_of_a_gaussian() -> None:
    agent = Agent(orthogonal=False)
    with torch.no_grad():
        agent.log_std.copy_(torch.tensor([-0.3, 0.4]))
    seen = torch.randn(5, OBSERVATIONS)
    for off in (0.0, 1.0, -2.0):  # standard deviations from the mean, both joints
        density = -(off**2) - (-0.3 + 0.4) - math.log(2 * math.pi)
        found = agent.log_prob(seen, agent.mean(seen) + off * agent.log_std.exp())
        assert found.tolist() == pytest.approx([density] * 5, abs=1e-5)
    assert agent.entropy().item() == pytest.approx(1 + math.log(2 * math.pi) + 0.1)  # 0.5 log(2 pi e) + log std, each
    assert agent.mean(100 * seen).abs().max() <= 1


def test_the_two_protocols_begin_differently() -> None:
    torch.manual_seed(0)
    agent = Agent(orthogonal=True)
    hidden, last = agent.actor[2].weight, agent.actor[4].weight
    torch.testing.assert_close(hidden @ hidden.T, 2 * torch.eye(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(last @ last.T, 1e-4 * torch.eye(2), atol=1e-6, rtol=0)
    assert agent.log_std.tolist() == pytest.approx([-0.7, -0.7])
    plain = Agent(orthogonal=False)
    assert plain.actor[2].weight.abs().max() <= 128**-0.5
    assert plain.actor[2].bias.abs().max() > 0


def test_the_standard_deviation_is_bounded_but_not_in_the_papers_protocol() -> None:
    for name, largest in (("standard", LOG_STD_BOUNDS[1]), ("paper", math.inf)):
        made = trainer("--protocol", name, "--regime", "reckless", "--actor-lr", "0.5", "--target-kl", "1e9")
        made.update(1)
        assert (made.agent.log_std.max() <= largest).all()
        assert made.agent.log_std.max() > 1 or name == "standard"


def test_an_update_ends_with_the_epoch_whose_kl_is_over_the_target() -> None:
    assert trainer("--epochs", "7", "--target-kl", "1e9").update(1)["epochs_run"] == 7
    assert trainer("--epochs", "7", "--target-kl", "1e-9").update(1)["epochs_run"] == 1


def test_reward_weights_act_on_the_next_rollout() -> None:
    found = {}
    for penalty in (0.0, 50.0):
        made = trainer()
        made.recipe.collision_penalty = penalty
        found[penalty] = made.update(1)
    assert found[0.0]["rollout_collision"] == found[50.0]["rollout_collision"] > 0
    collisions = round(found[0.0]["rollout_collision"] * found[0.0]["episodes"])
    lost = (found[0.0]["weighted_reward"] - found[50.0]["weighted_reward"]) * made.envs * made.horizon
    assert lost == pytest.approx(50 * collisions)


def test_rates_and_their_denominators_add_up() -> None:
    row = trainer().update(1)
    rates = [row[f"rollout_{name}"] for name in ("safe_success", "collision", "timeout")]
    assert sum(rates) == pytest.approx(1)
    assert all(rate * row["episodes"] == pytest.approx(round(rate * row["episodes"])) for rate in rates)


def test_the_score_is_the_worst_success_minus_the_worst_collision() -> None:
    cells = {"easy/deterministic": Cell(20, 19, 1, 0, 300), "hard/sampled": Cell(20, 17, 2, 1, 600)}
    result = Result(cells)
    assert result.score == pytest.approx(0.85 - 0.10)
    assert result.robust
    assert not Result(cells | {"hard/sampled": Cell(20, 17, 4, 0, 600)}).robust
    assert not Result(cells | {"hard/sampled": Cell(20, 16, 0, 4, 600)}).robust
    assert result.mean("sampled") == (0.85, 0.10)
    assert cells["hard/sampled"].row() == {
        "episodes": 20, "safe_success": 0.85, "collision": 0.10, "timeout": 0.05, "episode_length": 30.0,
    }  # fmt: skip


def test_an_evaluation_is_a_function_of_the_weights_and_changes_nothing() -> None:
    one, two = trainer(), trainer()
    examination = Examination(3, 3)
    first = one.examine(examination)
    assert [cell.episodes for cell in first.cells.values()] == [3] * 6
    assert set(first.cells) == {f"{s}/{m}" for s in ("easy", "medium", "hard") for m in ("deterministic", "sampled")}
    assert one.examine(examination) == first == one.examine(Examination(3, 3))
    assert one.update(1) == two.update(1)
    assert torch.equal(weights(one), weights(two))
    assert one.examine(Examination(3, 3, held_out=True)) != first


def test_a_policy_that_diverged_is_examined_and_trained_on_without_an_error(tmp_path: Path) -> None:
    made = trainer()
    with torch.no_grad():
        made.agent.log_std.fill_(math.nan)
    assert made.examine(Examination(3, 1)).cells["easy/sampled"].episodes == 1
    row = made.update(1)
    assert math.isnan(row["kl"])
    assert row["epochs_run"] == 1


# -- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_rollback_restores_weights_and_moments_and_begins_new_episodes(tmp_path: Path) -> None:
    made, path = trainer(), tmp_path / "there.pt"
    made.update(1)
    made.save(path, 1)
    there = weights(made)
    moments = [made.optimizer.state[p]["exp_avg"].clone() for p in made.params]
    made.update(2)
    made.optimizer.param_groups[0]["lr"], made.recipe.clip = 1e-5, 0.05
    begun = made.begun
    assert made.load(path, resume=False) == 1
    assert torch.equal(weights(made), there)
    assert all(torch.equal(made.optimizer.state[p]["exp_avg"], m) for p, m in zip(made.params, moments, strict=True))
    assert (made.optimizer.param_groups[0]["lr"], made.recipe.clip) == (1e-5, 0.05)  # the recipe in force stays
    assert made.optimizer.param_groups[1]["lr"] == 1e-3
    assert made.reaching.steps.tolist() == [0] * made.envs
    assert made.begun == begun + made.envs  # no scene is seen again
    assert made.reaching.scenes == [training_scene(3, begun + i) for i in range(made.envs)]


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    made, path = trainer(), tmp_path / "there.pt"
    made.save(path, 1)
    with pytest.raises(ValueError, match="its protocol is standard, that of this run is paper"):
        trainer("--protocol", "paper").load(path, resume=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is not a checkpoint"):
        made.load(path, resume=True)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unmanaged(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> RunPaths:
    return RUN.alone(tmp_path_factory.mktemp("reacher") / "out")


def test_a_run_alone_leaves_a_whole_record(unmanaged: RunPaths) -> None:
    start, end = records(unmanaged, protocol.Start)[0], records(unmanaged, protocol.End)[0]
    evaluations, steps = records(unmanaged, protocol.Eval), records(unmanaged, protocol.Step)
    assert [e.step for e in evaluations] == list(range(0, UPDATES + 1, EVERY))
    assert [s.step for s in steps] == list(range(1, UPDATES + 1))
    assert all(set(e.split) == set(evaluations[0].split) and len(e.split) == 6 for e in evaluations)
    assert all(row["episodes"] == 2 for e in evaluations for row in e.split.values())
    named = {n for r in (*evaluations, *steps, end) for n in r.metrics}
    assert named <= set(start.metrics)
    assert not any("test" in n for r in (*evaluations, *steps) for n in r.metrics)
    assert {
        f"test_success_{mode}_{which}" for mode in ("deterministic", "sampled") for which in ("last", "best")
    } <= set(end.metrics)
    assert all("from the next" in p.description for p in start.action_space)  # when it takes effect
    assert "regime" not in start.info  # a manager must not read it there


def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(unmanaged: RunPaths, tmp_path: Path) -> None:
    half = RUN.alone(tmp_path / "half", "--updates", "5")
    rest = RUN.alone(tmp_path / "rest", "--resume", str(half.checkpoints / "last.pt"))
    wanted = {r.step: r.metrics for r in records(unmanaged, protocol.Step)}
    found = {r.step: r.metrics for r in records(rest, protocol.Step)}
    assert sorted(found) == list(range(6, UPDATES + 1))
    assert all(found[step] == wanted[step] for step in found)
    (one,), (two,) = records(unmanaged, protocol.End), records(rest, protocol.End)
    assert one.metrics == two.metrics


def test_supervision_changes_nothing_by_being_there(unmanaged: RunPaths, tmp_path: Path) -> None:
    result = replay.compare_training(unmanaged, RUN.supervised(tmp_path, NoManager()))
    assert result.first is None
    assert result.compared > UPDATES


def test_a_managed_run_with_a_rollback_proves_itself_and_trains_again_bit_for_bit(tmp_path: Path) -> None:
    def decide(snapshot: Snapshot) -> dict[str, Any]:
        if "rollback" in snapshot.actions and snapshot.progress.step >= 2 * EVERY:
            return answer("rollback", {"actor_lr": 1e-4, "collision_penalty": 20.0}, to="initial")
        return answer("adjust", {"entropy": 0.02, "epochs": 3})

    paths = RUN.supervised(tmp_path, ScriptedManager([decide] * 10))
    applied = records(paths, protocol.Applied)
    assert any(r.command is not None and r.command.name == "rollback" for r in applied)
    assert replay.rebuild(paths).differences == []
    again = RUN.supervised(tmp_path, NoManager(), replay.schedule_of(paths))
    assert replay.compare_training(paths, again).first is None


def test_commands_and_every_parameter_at_exact_updates(tmp_path: Path) -> None:
    """Through a schedule, so that nothing depends on who is faster."""

    def entry(revision: int, update: int, params: dict[str, float], command: str | None = None,
              to: str | None = None) -> protocol.Override:  # fmt: skip
        return protocol.Override(
            revision=revision, params=params, based_on_step=update, at_step=update, at_boundary="eval",
            decision=f"d{revision}",
            command=protocol.Command(id=f"c{revision}", name=command, to=to) if command else None,
        )  # fmt: skip

    first = {"actor_lr": 1e-4, "critic_lr": 5e-4, "entropy": 0.02, "clip": 0.1, "epochs": 2, "target_kl": 0.05}
    second = {**first, "collision_penalty": 25.0, "success_bonus": 10.0, "progress_scale": 1.0}
    schedule = [
        entry(1, 2, first, "checkpoint"), entry(2, 4, second, "rollback", "best"),
        entry(3, 6, second, "stop", "best"),
    ]  # fmt: skip
    paths = RUN.supervised(tmp_path, NoManager(), schedule)
    applied = records(paths, protocol.Applied)
    assert [(r.revision, r.step, r.boundary) for r in applied] == [(o.revision, o.at_step, "eval") for o in schedule]
    assert {name: new for r in applied for name, (_, new) in r.changes.items()} == second
    assert applied[0].groups == {"actor_lr": [1e-4], "critic_lr": [5e-4]}
    assert applied[2].changes == {}
    saved = [r for r in records(paths, protocol.Checkpoint) if r.step == 4 and r.seq > applied[1].seq]
    assert {r.path for r in saved} == {"checkpoints/last.pt"}  # a crash does not undo the rollback
    assert records(paths, protocol.End)[0].status == "stopped"
    assert records(paths, protocol.Step)[-1].metrics["epochs_run"] <= 2


def test_rules_save_the_cautious_regime(tmp_path: Path) -> None:
    """The fixed recipe hardly moves; the rules find out why and repair it. Only what is robust is asserted."""

    def train(manager: str) -> RunPaths:
        request = launch.Request(
            script=RUN.path, arguments=["--profile", "quick", "--regime", "cautious"], seed=20, manager=manager,
            runs_dir=tmp_path / manager,
        )  # fmt: skip
        return launch.launch(request, lambda *_: Recorder())[0]

    with ThreadPoolExecutor(2) as pool:
        fixed, managed = pool.map(train, ("none", "rules"))
    (left,), (done,) = records(fixed, protocol.End), records(managed, protocol.End)
    assert left.metrics["rollout_safe_success"] <= 0.2
    assert done.metrics["rollout_safe_success"] >= 0.5
    found = [d.diagnosis for d in history.latest(managed).ledger.decisions.values()]
    assert "exploration-collapse" in found
    assert [str(f) for f in proof.prove(managed).findings] == []
    assert replay.rebuild(managed, RulesManager(Policy())).differences == []


@pytest.mark.parametrize("wrong", [["--regime", "bold"], ["--seed", "-1"], ["--profil", "tiny"]])
def test_a_wrong_command_line_is_refused_before_anything_begins(wrong: list[str], tmp_path: Path) -> None:
    with RUN.command_line("--out", str(tmp_path / "out"), *wrong), pytest.raises(SystemExit) as error:
        reacher.main()
    assert error.value.code == 2
    assert not (tmp_path / "out").exists()
