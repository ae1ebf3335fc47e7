"""Whole runs of a workload's tiny profile, with seed 3: alone in this process, and supervised as a child."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.contract.policy import Policy, Probation, Staleness
from trainmgr.log.telemetry import Feed
from trainmgr.managers.base import Manager
from trainmgr.readers import proof
from trainmgr.running import launch
from trainmgr.testing import Recorder, write_child

TINY = ["--profile", "tiny"]

WAITING = """
import runpy

report, evals = Workload.eval, 0


def reported(self, *given, **more):
    global evals
    report(self, *given, **more)
    evals += 1
    until(lambda: settled(evals))


Workload.eval = reported
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the script that is its first argument, and lets it wait for each decision."""


class Script:
    """A workload by its module; ``steps`` is how long its tiny run is."""

    def __init__(self, module: ModuleType, steps: int) -> None:
        assert module.__file__ is not None
        self.module, self.path, self.steps = module, Path(module.__file__), steps

    @contextlib.contextmanager
    def command_line(self, *arguments: str) -> Iterator[None]:
        before, sys.argv = sys.argv, [str(self.path), *TINY, *arguments]
        try:
            yield
        finally:
            sys.argv = before

    def alone(self, out: Path, *more: str) -> RunPaths:
        """A run in this process, which spares it the imports."""
        with self.command_line("--seed", "3", "--out", str(out), *more):
            self.module.main()
        return RunPaths(out)

    def supervised(
        self, folder: Path, manager: Manager | None, schedule: list[protocol.Override] | None = None, *more: str
    ) -> RunPaths:
        """A child that a supervisor looks after, even if slow machines answer late; what it leaves can be proven."""
        request = launch.Request(
            script=write_child(folder, WAITING), arguments=[str(self.path), *TINY, *more], seed=3,
            runs_dir=folder / "runs", schedule=schedule,
            policy=Policy(staleness=Staleness(max_age_steps=self.steps), probation=Probation(enabled=False)),
        )  # fmt: skip
        paths, closing = launch.launch(request, lambda *_: Recorder(), manager=manager)
        assert closing.exit_code == 0, paths.stderr.read_text()
        assert [str(f) for f in proof.prove(paths).findings] == []
        return paths


def records(paths: RunPaths, kind: type[Any]) -> list[Any]:
    """What the workload reported, of one kind."""
    return [record for record in Feed(paths.telemetry).records() if isinstance(record, kind)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As a run has it that is to be repeated bit for bit, and nothing of a run around us."""
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    for name in ("TRAINMGR_RUN_DIR", "TRAINMGR_SEED", "TRAINMGR_RESUME"):
        patch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    patch.undo()
