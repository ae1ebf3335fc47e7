"""The TinyStories workload whole: alone, supervised, resumed and replayed it gives the same numbers bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tinystories
from scripts import TINY, Script

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log.telemetry import Feed
from trainmgr.managers.none import NoManager
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.state.run_state import RunState
from trainmgr.testing import Recorder, ScriptedManager, answer

STEPS, EVERY = 60, 10
RUN = Script(tinystories, STEPS)


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No network, no cache but ours, one thread."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRAINMGR_OFFLINE", "1")
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("OMP_NUM_THREADS", "1")
    for name in ("TRAINMGR_TINYSTORIES", "TRAINMGR_RUN_DIR", "TRAINMGR_SEED", "TRAINMGR_RESUME"):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


def alone(out: Path, *more: str) -> RunPaths:
    done = subprocess.run(
        [sys.executable, str(RUN.path), *TINY, "--seed", "3", "--out", str(out), *more],
        env=os.environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return RunPaths(out)


@pytest.fixture(scope="module")
def unmanaged(tmp_path_factory: pytest.TempPathFactory, offline: None) -> RunPaths:
    return alone(tmp_path_factory.mktemp("tinystories") / "out")


def test_a_run_alone_leaves_a_whole_record(unmanaged: RunPaths) -> None:
    state, records = RunState(), list(Feed(unmanaged.telemetry).records())
    for record in records:
        assert not isinstance(record, protocol.Unreadable)
        state.fold(record)
    assert (state.gaps, state.step, state.evals, state.drift_count) == (0, STEPS, STEPS // EVERY + 1, 0)
    assert state.start is not None
    assert state.end is not None
    assert state.start.info["genuine"] is False
    assert {"test_loss_last", "test_loss_best"} <= set(state.end.metrics)
    assert not any(
        "test" in name for r in records if isinstance(r, protocol.Eval | protocol.Step) for name in r.metrics
    )
    assert all({"loss", "clean_loss", "grad_norm"} <= set(r.metrics) for r in records if isinstance(r, protocol.Step))
    assert (unmanaged.checkpoints / "best.pt").is_file()


def test_two_runs_are_identical(unmanaged: RunPaths, tmp_path: Path) -> None:
    assert replay.compare_training(unmanaged, alone(tmp_path / "again")).first is None


def test_supervision_changes_nothing_by_being_there(unmanaged: RunPaths, tmp_path: Path) -> None:
    paths = RUN.supervised(tmp_path, NoManager())
    result = replay.compare_training(unmanaged, paths)
    assert result.first is None
    assert result.compared > STEPS


def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(unmanaged: RunPaths, tmp_path: Path) -> None:
    half = alone(tmp_path / "half", "--steps", "30")
    rest = alone(tmp_path / "rest", "--resume", str(half.checkpoints / "last.pt"))
    wanted = {r.step: r.metrics for r in Feed(unmanaged.telemetry).records() if isinstance(r, protocol.Step)}
    found = {r.step: r.metrics for r in Feed(rest.telemetry).records() if isinstance(r, protocol.Step)}
    assert sorted(found) == list(range(31, STEPS + 1))
    assert all(found[step] == wanted[step] for step in found)
    ends = [list(Feed(paths.telemetry).records())[-1] for paths in (unmanaged, rest)]
    assert all(isinstance(end, protocol.End) for end in ends)
    assert ends[0].metrics == ends[1].metrics  # type: ignore[union-attr]


def test_a_managed_run_with_a_rollback_proves_itself_and_trains_again_bit_for_bit(tmp_path: Path) -> None:
    def decide(snapshot: Snapshot) -> dict[str, Any]:
        lr = next(float(row.value) for row in snapshot.recipe if row.name == "lr")
        if "rollback" in snapshot.actions:
            return answer("rollback", {"lr": 0.5 * lr}, to="best")
        return answer("adjust", {"ema": 0.9, "dropout": 0.1})

    paths = RUN.supervised(tmp_path, ScriptedManager([decide] * 10))
    applied = [r for r in Feed(paths.telemetry).records() if isinstance(r, protocol.Applied)]
    assert any(r.command is not None and r.command.name == "rollback" for r in applied)
    assert all(r.groups["lr"][0] == r.groups["lr"][1] == r.changes["lr"][1] for r in applied if "lr" in r.changes)
    assert replay.rebuild(paths).differences == []
    again = RUN.supervised(tmp_path, NoManager(), schedule=replay.schedule_of(paths))
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

    first = {"lr": 1e-3, "dropout": 0.2}
    second = {**first, "weight_decay": 1.0, "ema": 0.95}
    third = {**second, "label_smoothing": 0.1, "token_mask": 0.3, "grad_clip": 0.5, "beta1": 0.8, "beta2": 0.99}
    schedule = [
        entry(1, 12, "step", first), entry(2, 20, "eval", first, "checkpoint"),
        entry(3, 25, "step", second, "rollback", "best"), entry(4, 33, "step", third),
        entry(5, 41, "step", third, "rollback", "initial"), entry(6, 44, "step", {**third, "ema": 0.0}),
        entry(7, 50, "eval", {**third, "ema": 0.0}, "stop", "best"),
    ]  # fmt: skip
    request = launch.Request(script=RUN.path, arguments=TINY, manager="none", seed=3, runs_dir=tmp_path / "runs",
                             schedule=schedule)  # fmt: skip
    paths, closing = launch.launch(request, lambda *_: Recorder())
    assert (closing.status, closing.steps, closing.exit_code) == ("stopped", 50, 0), paths.stderr.read_text()
    assert [str(f) for f in proof.prove(paths).findings] == []
    applied = [r for r in Feed(paths.telemetry).records() if isinstance(r, protocol.Applied)]
    assert [(r.revision, r.step, r.boundary) for r in applied] == [
        (o.revision, o.at_step, o.at_boundary) for o in schedule
    ]
    assert applied[2].changes == {"weight_decay": (0.0, 1.0), "ema": (0.0, 0.95)}  # what was in force survives
    assert applied[4].changes == {}
    assert applied[2].groups == {"weight_decay": [1.0]}
