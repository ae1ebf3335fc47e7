"""Runs that others may have written: read, named, and obeyed only where the user says so."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from trainmgr.base.paths import RunPaths, find_run, stranger
from trainmgr.testing import PYTHON, ScriptedManager, answer, supervise, write_child

ROOT = os.geteuid() == 0
STRANGER = 12345  # a user that there is not
BODY = """
(Path(sys.argv[1]) / "executed").touch()
with Workload("w", objective="loss", total_steps=2) as w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
"""


@pytest.fixture
def mine(tmp_path: Path) -> RunPaths:
    """A finished run whose script says so when it is executed."""
    script = write_child(tmp_path, BODY)
    paths, _, _ = supervise(tmp_path, script, ScriptedManager([answer()]), arguments=[str(tmp_path)])
    (tmp_path / "executed").unlink()
    return paths


def trainmgr(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, "-m", "trainmgr", *arguments, "--runs-dir", str(folder / "runs")], check=False,
                          capture_output=True, text=True, cwd=folder)  # fmt: skip


def everybody(paths: RunPaths) -> None:
    paths.root.chmod(0o777)


def everybodys_log(paths: RunPaths) -> None:
    paths.audit.chmod(0o666)


def another(paths: RunPaths) -> None:
    os.chown(paths.root, STRANGER, -1)


def anothers_log(paths: RunPaths) -> None:
    os.chown(paths.audit, STRANGER, -1)


needs_root = pytest.mark.skipif(not ROOT, reason="only root can give a file to another user")
CASES = [
    pytest.param(everybody, "everyone can write to the folder"),
    pytest.param(everybodys_log, "everyone can write to audit.jsonl"),
    pytest.param(another, f"the folder belongs to the user {STRANGER}", marks=needs_root),
    pytest.param(anothers_log, f"audit.jsonl belongs to the user {STRANGER}", marks=needs_root),
]


@pytest.mark.parametrize(("plant", "why"), CASES)
def test_what_others_may_have_written_is_read_and_not_obeyed(
    plant: Callable[[RunPaths], None], why: str, mine: RunPaths, tmp_path: Path
) -> None:
    assert stranger(mine) is None
    plant(mine)
    assert stranger(mine) == why
    for arguments in (["replay", "latest", "--train"], ["attach", mine.id], ["replay", str(mine.root), "-m", "llm"]):
        refused = trainmgr(tmp_path, *arguments)
        assert (refused.returncode, why in refused.stderr, "--trust" in refused.stderr) == (2, True, True)
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "executed").exists()
    for command in ("audit", "show", "replay"):
        shown = trainmgr(tmp_path, command, "latest")
        assert (shown.returncode, why in shown.stderr, why in shown.stdout) == (0, True, False)
    trusted = trainmgr(tmp_path, "replay", "latest", "--train", "--trust")
    assert (trusted.returncode, (tmp_path / "executed").exists()) == (0, True)
    assert "has ended" in trainmgr(tmp_path, "attach", mine.id, "--trust").stderr


@needs_root
def test_a_link_of_another_user_is_named_as_such(mine: RunPaths, tmp_path: Path) -> None:
    planted = tmp_path / "runs" / "20991231-000000-planted-0000"
    shutil.move(mine.root, tmp_path / mine.id)
    planted.symlink_to(tmp_path / mine.id)
    assert stranger(find_run(tmp_path / "runs", "latest")) is None
    os.chown(planted, STRANGER, -1, follow_symlinks=False)
    for reference in ("latest", str(planted)):
        refused = trainmgr(tmp_path, "replay", reference, "--train")
        assert (refused.returncode, f"belongs to the user {STRANGER}" in refused.stderr) == (2, True)
        assert "the link" in refused.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_a_comparison_does_not_count_the_runs_of_others(shared: bool, tmp_path: Path) -> None:
    write_child(tmp_path, BODY.replace("Path(sys.argv[1])", "Path.cwd()"))
    arguments = ["compare", "child.py", "--managers", "none", "--seeds", "1-2", "--json"]
    assert trainmgr(tmp_path, *arguments).returncode == 0
    runs = [RunPaths(root) for root in (tmp_path / "runs").iterdir()]
    for paths in runs:
        if shared:
            paths.manifest.chmod(0o666)
    assert trainmgr(tmp_path, *arguments).returncode == 0
    assert len([*(tmp_path / "runs").iterdir()]) == (4 if shared else 2)
