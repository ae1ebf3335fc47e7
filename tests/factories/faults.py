"""Runs whose disk, threads or clocks fail."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from recorded import of

from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.contract import events
from trainmgr.contract.policy import Policy, Probation
from trainmgr.testing import (
    LINE,
    PYTHON,
    TIME_LIMIT,
)

LOOSE = Policy(probation=Probation(enabled=False))
STAYS = LINE.replace("until(lambda: settled(evals))", "evals != 4 or until(lambda: (RUN / 'go').exists())")
"""The same training, which waits at its fourth evaluation for a file "go", and for nobody else."""
OUTAGE = """
import errno, io, os, sys
real_open, real_io = os.open, io.open

def fault(path):
    pass

def opened(path, *more, **named):
    fault(os.fspath(path) if not isinstance(path, int) else "")
    return real_open(path, *more, **named)

def io_opened(path, *more, **named):
    fault(os.fspath(path) if not isinstance(path, int) else "")
    return real_io(path, *more, **named)

os.open, io.open = opened, io_opened
{fault}
from trainmgr.cli import main
sys.argv[0] = "trainmgr"
main()
"""


def messages(paths: RunPaths, where: str) -> list[str]:
    return [failure.message for failure in of(paths, events.Failure) if failure.where == where]


def one(folder: Path) -> RunPaths:
    (paths,) = list_runs(folder / "runs")
    return paths


def command(folder: Path, script: Path, fault: str = "", manager: str = "schedule:cosine") -> list[str]:
    return [PYTHON, "-c", OUTAGE.replace("{fault}", fault), "run", str(script), "--manager", manager, "--runs-dir",
            str(folder / "runs"), "--seed", "1"]  # fmt: skip


def real(folder: Path, script: Path, fault: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """``trainmgr run`` as a process of its own, with ``fault`` in it and not in its child, which finds in a file
    "said" beside itself what it has said."""
    with (folder / "said").open("w") as said:
        done = subprocess.run(
            command(folder, script, fault, **more), cwd=folder, stdout=subprocess.DEVNULL, stderr=said,
            timeout=TIME_LIMIT, check=False,
        )  # fmt: skip
    return subprocess.CompletedProcess(done.args, done.returncode, stderr=(folder / "said").read_text())
