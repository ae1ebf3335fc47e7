"""A run is read once by whoever reads it: every command folds each record of telemetry one time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.base.wire import plain
from trainmgr.contract.run_file import render_run_file
from trainmgr.log.history import manifest_of
from trainmgr.log.telemetry import Feed

SCRIPT = """
from trainmgr.workload import Workload

with Workload("tiny", objective="val_loss", total_steps=20) as w:
    for step in w.steps():
        w.step(step, {"loss": 1 / step})
        if step % 5 == 0:
            w.eval(step, {"val_loss": 1 / step})
"""
COUNTED = """
import sys
from trainmgr.state.run_state import RunState

fold, folded = RunState.fold, []
RunState.fold = lambda state, record: folded.append(record) or fold(state, record)
from trainmgr.cli import main

try:
    main()
finally:
    print("folded", len(folded), file=sys.__stderr__)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(SCRIPT)
    return path


def folded(folder: Path, *words: str | Path) -> int:
    """How many records a command has folded, in all."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *map(str, words), "--runs-dir", str(folder / "runs")], capture_output=True,
        text=True, timeout=120, check=True, stdin=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    return int(done.stderr.rpartition("folded ")[2])


def records(paths: RunPaths) -> int:
    return sum(1 for _ in Feed(paths.telemetry).records())


def test_a_command_folds_a_run_once(tmp_path: Path, script: Path) -> None:
    first = folded(tmp_path, "run", script, "--manager", "none")
    (paths,) = list_runs(tmp_path / "runs")
    assert first == records(paths)
    for command in ("show", "audit", "replay"):
        assert (command, folded(tmp_path, command, paths.id)) == (command, first)
    without = paths.audit.read_bytes().rstrip(b"\n").rpartition(b"\n")[0] + b"\n"  # its supervisor died before the end
    paths.manifest.write_bytes(render_run_file(plain(manifest_of(paths)), None))
    paths.audit.write_bytes(without)
    assert folded(tmp_path, "attach", paths.id) == first


def test_a_comparison_folds_each_run_once_and_what_is_there_never(tmp_path: Path, script: Path) -> None:
    words = ("compare", script, "--managers", "none,schedule:cosine", "--seeds", "1-2", "--out", tmp_path / "out")
    first = folded(tmp_path, *words)
    runs = list_runs(tmp_path / "runs")
    assert (len(runs), first) == (4, sum(map(records, runs)))
    written = (tmp_path / "out" / "results.json").read_bytes()
    assert folded(tmp_path, *words) == 0
    assert (tmp_path / "out" / "results.json").read_bytes() == written
