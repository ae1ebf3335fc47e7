"""A training script in a process of its own on a disk that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("alone")


HEAD = """
import errno, json, os, sys
from pathlib import Path
from trainmgr.workload import Checkpoints, Workload

Workload.PERIOD = 0.0  # look at the control file after every step
run = Path(os.environ["TRAINMGR_RUN_DIR"])
state = {"lr": 0.1, "loss": 1.0}

def declare(w):
    w.float("lr", get=lambda: state["lr"], set=lambda value: state.update(lr=value), low=0.01, high=1.0)

def control(lr, revision=1):
    new = run / "control.new"
    new.write_text(json.dumps({"v": 1, "run": run.name, "revision": revision, "issued": {"t": 0.0, "step": 0},
                               "params": {"lr": lr}, "based_on_step": 0, "decision": f"d{revision}"}))
    new.replace(run / "control.json")
"""


def child(run: Path, code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a supervisor does: its standard error is a file in the run directory."""
    run.mkdir(exist_ok=True)
    named = {"TRAINMGR_RUN_DIR": str(run), "PYTHONUNBUFFERED": "1", **environment}
    with (run / "stderr.log").open("a") as error:
        return subprocess.run(
            [sys.executable, "-c", HEAD + code], env={**os.environ, **named}, stdout=subprocess.PIPE, stderr=error,
            text=True, timeout=60, check=check,
        )  # fmt: skip


def records(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines()]
    return [line for line in lines if event in (None, line["event"])]


def messages(run: Path) -> list[str]:
    return [record["message"] for record in records(run, "log")]


def whole(run: Path) -> bool:
    """Whether nothing is missing and nothing came twice."""
    return [record["seq"] for record in records(run)] == list(range(len(records(run))))
