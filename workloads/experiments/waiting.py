"""Whether training waits for a language model that takes its time: step durations while a call is in flight and not.

    python workloads/experiments/waiting.py [--seconds 30]

A child without torch computes the same sum in every step (about 5 ms) and reports how long the step before took, from
its begin to the next one's. It is supervised by the `llm` manager, whose endpoint, a real HTTP server on loopback,
answers after --seconds. The arms:

    unmanaged   the same child alone
    managed     as always, with a policy that still wants an answer of that age
    blocking    training stands still while a decision is pending (`--blocking`), for contrast
    stale       with the default staleness: the answer comes too late, is dropped, and is on record
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from trainmgr.base.paths import RunPaths
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Cadence, Llm, Policy, Staleness
from trainmgr.log import audit
from trainmgr.log.telemetry import Feed
from trainmgr.managers.llm import LlmManager
from trainmgr.running import launch
from trainmgr.testing import Propose, Recorder, ScriptedEndpoint, answer

EVERY, STEP = 50, 0.005  # steps between evaluations; seconds that a step is to take
EVIDENCE = "val_loss 1.234 rose by 0.05 over 4 evaluations while the loss fell"

CHILD = """
import json, sys, time
from trainmgr.workload import Workload

steps, work = int(sys.argv[1]), int(sys.argv[2])
recipe = {"lr": 0.4}
with Workload("waiting", objective="val_loss", total_steps=steps, metrics={"step_ms": "of the step before"}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0, max_ratio=2.0)
    begin = last = time.perf_counter()
    before = 0.0
    for step in w.steps():
        loss = sum(i * recipe["lr"] for i in range(work)) * 0 + 1 / step
        w.step(step, {"loss": loss, "step_ms": before})
        if step % EVERY == 0:
            w.eval(step, {"val_loss": loss})
        now = time.perf_counter()
        before, last = (now - last) * 1e3, now
    print(json.dumps({"seconds": time.perf_counter() - begin}))
""".replace("EVERY", str(EVERY))


@dataclass
class Arm:
    """What was measured of one run."""

    steps: int
    seconds: float
    paths: RunPaths | None = None
    flying: list[float] = field(default_factory=list)
    """Milliseconds of the steps that overlap a call."""
    idle: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def pace(self) -> float:
        return self.steps / self.seconds


def iterations() -> int:
    """How much work takes STEP on this machine: the least of several tries, since others may be at work too."""
    count, lr = 20_000, 0.4
    took = []
    for _ in range(40):
        begin = time.perf_counter()
        sum(i * lr for i in range(count))
        took.append(time.perf_counter() - begin)
    return int(count * STEP / min(took))


def unmanaged(script: Path, steps: int, work: int) -> Arm:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRAINMGR_")}
    command = [sys.executable, str(script), str(steps), str(work)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment, cwd=script.parent)
    return Arm(steps, json.loads(done.stdout)["seconds"])


def managed(script: Path, steps: int, work: int, seconds: float, *, blocking: bool = False, stale: bool = False) -> Arm:
    said = answer("adjust", {"lr": 0.2}, evidence=EVIDENCE)
    keep = answer("keep", evidence="nothing to do")
    with ScriptedEndpoint([Propose(said, delay=seconds), Propose(keep, delay=seconds)]) as endpoint:
        policy = Policy(
            cadence=Cadence(every_evals=max(1, round(seconds / STEP / EVERY))),
            staleness=Staleness() if stale else Staleness(max_age_steps=steps, max_age_seconds=100 * seconds + 600),
            llm=Llm(base_url=endpoint.url, timeout=2 * seconds + 60),
        )
        request = launch.Request(
            script=script, arguments=[str(steps), str(work)], policy=policy, seed=1, runs_dir=script.parent / "runs",
            directory=script.parent, blocking=blocking, name="waiting",
        )  # fmt: skip
        manager = LlmManager(policy, "scripted", environment={})
        paths, closing = launch.launch(request, lambda *_: Recorder(), manager=manager)
    if closing.status != "completed":
        raise SystemExit(f"the run ended: {closing.status}, {closing.exit}\n{paths.stderr.read_text()}")
    arm = Arm(steps, json.loads(paths.stdout.read_text())["seconds"], paths)
    measure(arm)
    return arm


def measure(arm: Arm) -> None:
    """Sort the steps by whether a call was in flight, and find out what became of the first answer."""
    assert arm.paths is not None
    log = list(audit.read(arm.paths.audit))
    asked = [event.t for event in log if isinstance(event.data, events.Request)]
    answered = [event.t for event in log if isinstance(event.data, events.Reply)]
    calls = list(zip(asked, [*answered, float("inf")][: len(asked)], strict=True))
    ended = 0.0
    for record in Feed(arm.paths.telemetry).records():
        if not isinstance(record, protocol.Step):
            continue
        took = record.metrics["step_ms"]
        flying = any(ended > begin and ended - took / 1e3 < end for begin, end in calls)
        if record.step > 2:  # the first steps open files
            (arm.flying if flying else arm.idle).append(took)
        ended = record.t
    first = next(event.data for event in log if isinstance(event.data, events.SnapshotTaken))
    for event in log:
        match event.data:
            case events.Verdict(decision=first.decision, result="rejected", checks=checks):
                why = "; ".join(check.reason for check in checks if not check.ok)
                arm.notes.append(f"asked at step {first.snapshot['progress']['step']:,}, dropped: {why}")
            case events.Acknowledged(decision=first.decision, result=result, step=step):
                at = f"{first.snapshot['progress']['step']:,}, {result} at step {step:,}"
                arm.notes.append(f"asked at step {at}" + (f" ({event.data.reason})" if event.data.reason else ""))
            case events.Reply(decision=first.decision, text=text):
                whole = EVIDENCE in text and json.loads(text)["changes"] == {"lr": 0.2}
                arm.notes.append(f"the log holds {'all' if whole else 'NOT all'} {len(text)} characters of the answer")


def middle(times: list[float]) -> str:
    return f"{statistics.median(times):.2f}" if times else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="that the endpoint takes for an answer")
    seconds = parser.parse_args().seconds
    work, steps = iterations(), max(20 * EVERY, round(2.5 * seconds / STEP))
    load = os.getloadavg()[0]
    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f} at the start, Python {platform.python_version()}"
    )
    print(f"{steps:,} steps of {work:,} additions; an answer takes {seconds:g} s")
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "child.py"
        script.write_text(CHILD)
        arms = {
            "unmanaged": unmanaged(script, steps // 2, work),
            "managed": managed(script, steps, work, seconds),
            "blocking": managed(script, steps, work, seconds, blocking=True),
            "stale": managed(script, steps, work, seconds, stale=True),
        }
        print(
            f"{'':<10}{'steps/s':>9}{'of unmanaged':>14}{'ms idle':>9}{'in flight':>11}{'ratio':>10}{'longest ms':>12}"
        )
        for label, arm in arms.items():
            ratio = "-"
            if arm.flying and arm.idle:
                ratio = f"{statistics.median(arm.flying) / statistics.median(arm.idle):.3g}"
            print(
                f"{label:<10}{arm.pace:>9.1f}{arm.pace / arms['unmanaged'].pace:>14.3f}{middle(arm.idle):>9}"
                f"{middle(arm.flying):>11}{ratio:>10}{max([*arm.flying, *arm.idle], default=0.0):>12.0f}"
            )
        for label, arm in arms.items():
            for note in arm.notes:
                print(f"{label}: {note}")


if __name__ == "__main__":
    main()
