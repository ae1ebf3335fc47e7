"""Fakes that ship with the product: a manager that follows a script, a listener that keeps everything, tiny children,
a language model's endpoint.

For tests of trainmgr itself and of managers and workloads that others write. Children are real processes, the
endpoint is a real server.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import Value, plain
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Actions, Limits, Policy, Probation
from trainmgr.contract.proposal import keep
from trainmgr.contract.run_file import Closing, Manifest, RunMode
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.log.telemetry import Item
from trainmgr.managers.base import Manager
from trainmgr.running import launch
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.testing.behaviours import (
    Behaviour,
    Cut,
    Drip,
    Empty,
    EmptyReply,
    Exchange,
    Huge,
    Propose,
    Raw,
    Received,
    Redirect,
    Reset,
    Say,
    Silence,
    Status,
)
from trainmgr.testing.endpoint import TIME_LIMIT, ScriptedEndpoint

__all__ = [  # what is written here, and the endpoint's words
    "EXACT",
    "LINE",
    "PREAMBLE",
    "PYTHON",
    "TIME_LIMIT",
    "Behaviour",
    "Cut",
    "Drip",
    "Empty",
    "EmptyReply",
    "Exchange",
    "FakeClock",
    "Huge",
    "Propose",
    "Raw",
    "Received",
    "Recorder",
    "Redirect",
    "Reset",
    "Say",
    "ScriptedEndpoint",
    "ScriptedManager",
    "Silence",
    "Status",
    "answer",
    "supervise",
    "wait_for",
    "write_child",
    "write_shell",
]

PREAMBLE = """
import json, os, sys, time
from pathlib import Path
import trainmgr.workload
from trainmgr.workload import Workload, default_seed, resume_path

trainmgr.workload.PERIOD = 0.0  # look at the control file after every step: exact steps, not exact times
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
    if count <= 0:
        return True
    ruled = [e["decision"] for e in events if e["kind"] == "verdict"]
    done = [e for e in events if e["kind"] == "verdict"
            or (e["kind"] == "error" and e["decision"] and e["decision"] not in ruled)]
    if len(done) < count:
        return False
    last = done[-1]
    if last["kind"] == "error" or manifest["mode"] == "shadow" or not (last["changes"] or last["command"]):
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

EXACT = Policy(
    limits=Limits(lead_steps=1), probation=Probation(enabled=False), actions=Actions(stop_settled_evals=0)
)  # fmt: skip
"""Each change takes effect exactly one step after the evaluation that it was decided on. Nothing is taken back, and a
stop is always offered: a script is followed to the letter."""


class FakeClock:
    """Seconds since 1970 that pass only when told."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ScriptedManager:
    """Gives the listed answers in order, then keeps.

    An answer is given raw, whatever it is; an exception is raised, a function is called with the snapshot. The call
    number ``block_at`` (from 0) sets ``asked`` and waits for ``release`` before it answers.
    """

    def __init__(
        self,
        answers: Sequence[Any] = (),
        *,
        name: str = "scripted",
        block_at: int | None = None,
        deterministic: bool = True,
    ) -> None:
        self.name = name
        self.deterministic = deterministic
        self.snapshots: list[Snapshot] = []
        self.asked = threading.Event()
        self.release = threading.Event()
        self._answers = list(answers)
        self._block_at = block_at

    def decide(self, snapshot: Snapshot) -> Any:
        number = len(self.snapshots)
        self.snapshots.append(snapshot)
        if number == self._block_at:
            self.asked.set()
            self.release.wait(TIME_LIMIT)
        if number >= len(self._answers):
            return plain(keep("healthy", "the script has ended"))
        answer = self._answers[number]
        if isinstance(answer, BaseException):
            raise answer
        return answer(snapshot) if callable(answer) else answer


class Recorder:
    """A listener that keeps what it hears. ``on_record`` and ``on_event`` are called in the supervisor's thread."""

    def __init__(
        self,
        *,
        on_record: Callable[[Item, RunState], None] | None = None,
        on_event: Callable[[events.Payload], None] | None = None,
        approve: bool | None = None,
    ) -> None:
        self.records: list[Item] = []
        self.events: list[events.Payload] = []
        self.paths: RunPaths | None = None
        self._on_record, self._on_event, self._approve = on_record, on_event, approve

    def record(self, record: Item, state: RunState) -> None:
        self.records.append(record)
        if self._on_record is not None:
            self._on_record(record, state)

    def event(self, event: events.Payload, state: RunState, ledger: Ledger) -> None:  # noqa: ARG002
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)

    def tick(self, state: RunState, ledger: Ledger) -> None:
        pass

    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:  # noqa: ARG002
        answer(self._approve)

    def of(self, kind: type[Any]) -> list[Any]:
        """The events and records of one type, in order."""
        return [item for item in (*self.events, *self.records) if isinstance(item, kind)]


def answer(action: str = "keep", changes: Mapping[str, Value] | None = None, **more: Any) -> dict[str, Any]:
    """A proposal as a manager gives it."""
    return {"diagnosis": "unclear", "evidence": "scripted", "action": action, "changes": dict(changes or {}), **more}


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


def supervise(
    folder: Path,
    script: Path,
    manager: Manager | None = None,
    *,
    listener: Recorder | None = None,
    policy: Policy | None = None,
    mode: RunMode = "auto",
    blocking: bool = False,
    seed: int | None = 1,
    schedule: list[protocol.Override] | None = None,
    arguments: Sequence[str] = (),
) -> tuple[RunPaths, Closing, Recorder]:
    """One real run in ``folder``/runs, to its end. Without a manager nobody decides; without a policy it is EXACT."""
    recorder = listener if listener is not None else Recorder()
    request = launch.Request(
        script=script, arguments=list(arguments), manager="none", mode=mode, policy=policy or EXACT, seed=seed,
        runs_dir=folder / "runs", directory=folder, schedule=schedule, blocking=blocking,
    )  # fmt: skip

    def listen(paths: RunPaths, _: Manifest) -> Recorder:
        recorder.paths = paths
        return recorder

    paths, closing = launch.launch(request, listen, manager=manager)
    return paths, closing, recorder


def wait_for(condition: Callable[[], bool], what: str = "it") -> None:
    """Wait until ``condition()`` holds; raises TimeoutError after TIME_LIMIT."""
    limit = time.monotonic() + TIME_LIMIT
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what} did not come about in {TIME_LIMIT:.0f} s")
        time.sleep(0.005)


PYTHON = sys.executable
