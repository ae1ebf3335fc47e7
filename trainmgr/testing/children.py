"""Training scripts for tests: each a real process, which waits for what is to happen and never for a time."""

from __future__ import annotations

import sys
from pathlib import Path

PYTHON = sys.executable

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
from trainmgr.workload import Workload, default_seed, resume_path

Workload.PERIOD = 0.0  # look at the control file after every step: exact steps, not exact times
RUN = Path(os.environ.get("TRAINMGR_RUN_DIR", "."))


def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        if time.monotonic() > limit:
            sys.exit("child: what it waited for did not come")
        time.sleep(0.002)


def log():
    lines = (RUN / "audit.jsonl").read_bytes().splitlines(keepends=True)
    return [json.loads(line)["data"] for line in lines if line.endswith(b"\\n")]


def at_the_end():
    '''How many evaluations were made at the last step that is planned: nobody is asked there.'''
    lines = (RUN / "telemetry.jsonl").read_bytes().splitlines(keepends=True)
    named = (line for line in lines if line.endswith(b"}\\n") and (b'"start"' in line or b'"eval"' in line))
    records = [json.loads(line) for line in named if line.startswith(b"{")]
    planned = [record.get("total_steps") for record in records if record["event"] == "start"]
    return sum(record["event"] == "eval" and record["step"] == planned[-1] for record in records) if planned else 0


def settled(count):
    '''Whether a manager that is asked has been dealt with count times, its override written.'''
    if not (RUN / "audit.jsonl").exists():
        return True
    events = log()
    manifest = events[0]["manifest"]
    if manifest["manager"] == "none":
        return True
    watch = manifest["policy"]["probation"]
    known = manifest["manager"].partition(":")[0] in ("rules", "schedule", "replay")
    if watch["enabled"] or (watch["enabled"] is None and not known):
        count -= max(0, watch["first_evals"] - 1)  # at which nobody is asked
    count -= at_the_end()
    if count <= 0:
        return True
    ruled = [e["decision"] for e in events if e["kind"] == "verdict"]
    done = [e for e in events if e["kind"] == "verdict"
            or (e["kind"] == "error" and e["decision"] and e["decision"] not in ruled)]
    if len(done) < count:
        return False
    last = done[-1]
    acts = last["kind"] == "verdict" and (last["changes"] or last["command"] or last.get("plans"))
    if not acts or manifest["mode"] == "shadow":
        return True
    if manifest["mode"] == "approve":
        said = [e["answer"] for e in events if e["kind"] == "approval" and e["decision"] == last["decision"]]
        if not said or said[0] != "yes":
            return bool(said)
    try:
        return json.loads((RUN / "control.json").read_bytes())["decision"] == last["decision"]
    except OSError:
        return False
"""

LINE = """
import random

STEPS, EVERY = 24, 2
weights, best, lowest, recipe = [0.0, 0.0], [0.0, 0.0], float("inf"), {"lr": 0.4, "decay": 0.0}


def sample(rng):
    x = rng.uniform(-1.5, 1.5)
    return x, 3.0 * x - 1.0 + rng.gauss(0.0, 0.3)


def rollback(to):
    weights[:] = best if to == "best" else [0.0, 0.0]


valid = [sample(random.Random(i)) for i in range(50)]
with Workload("line", objective="val_loss", total_steps=STEPS, metrics={"loss": "squared error"}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0,
            scale="log", max_ratio=2.0, min_ratio=0.1, group="optimizer")
    w.float("decay", get=lambda: recipe["decay"], set=lambda v: recipe.update(decay=v), low=0.0, high=0.1,
            group="regularization")
    w.command("rollback", rollback)
    w.command("stop", lambda to: rollback(to) if to else None)
    evals = 0
    for step in w.steps():
        x, y = sample(random.Random(f"{w.seed} {step}"))
        error = weights[0] * x + weights[1] - y
        shrink = 1 - recipe["decay"]
        weights[:] = [shrink * weights[0] - recipe["lr"] * error * x, shrink * weights[1] - recipe["lr"] * error]
        w.step(step, {"loss": error**2})
        if step % EVERY == 0:
            loss = sum((weights[0] * x + weights[1] - y) ** 2 for x, y in valid) / len(valid)
            if loss < lowest:
                lowest, best = loss, list(weights)
                w.checkpoint(step, "checkpoints/none", {"val_loss": loss}, best=True)
            w.eval(step, {"val_loss": loss})
            evals += 1
            until(lambda: settled(evals))
"""
"""The body of a small deterministic workload: a line fitted by gradient descent, which waits for each decision."""


def write_child(folder: Path, body: str = LINE, name: str = "child.py") -> Path:
    """A training script: PREAMBLE (``RUN``, ``until``, ``settled``) and ``body``."""
    path = folder / name
    path.write_text(PREAMBLE + body)
    return path


def write_shell(folder: Path, body: str, name: str = "child.sh") -> Path:
    """An executable /bin/sh script."""
    path = folder / name
    path.write_text("#!/bin/sh\n" + body)
    path.chmod(0o700)
    return path
