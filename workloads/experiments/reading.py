"""How fast run directories are read, and in how much memory: every figure beside one of the same machine and moment.

    python workloads/experiments/reading.py [--records 2000000] [--decisions 2000] [--folders 500]

Makes a run with so many records, one with so many decisions and a folder of so many runs, with real supervised
processes, and reads them. "ratio" is seconds of CPU over those of ``json.loads`` on the same lines, or of
``python -c pass``: on a machine that does other things, too, it stays.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trainmgr.base.paths import RunPaths, list_runs
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState

MANY = """
import json, os, sys, time

count, every, seq = int(sys.argv[1]), 1000, 0
file = open(os.path.join(os.environ["TRAINMGR_RUN_DIR"], "telemetry.jsonl"), "ab", buffering=1 << 20)


def put(event, **more):
    global seq
    record = {"v": 1, "seq": seq, "t": round(1.7e9 + seq / 1000, 3), "event": event, **more}
    file.write(json.dumps(record, separators=(",", ":")).encode() + b"\\n")
    seq += 1


put("start", workload="many", pid=os.getpid(), total_steps=count, objective={"metric": "val_loss", "mode": "min"})
for step in range(1, count + 1):
    loss = 1 / step
    put("step", step=step, metrics={"loss": loss + 1.2345, "clean_loss": loss, "grad_norm": 1.2345 + step % 7})
    if step % every == 0:
        put("eval", step=step, metrics={"val_loss": loss})
put("end", status="completed", step=count)
file.close()
"""

DECIDED = """
import json, os, sys, time
from pathlib import Path
from trainmgr.workload import Workload

Workload.PERIOD = 0.0
count, recipe, done = int(sys.argv[1]), {"lr": 0.01, "decay": 0.01}, 0
run = Path(os.environ["TRAINMGR_RUN_DIR"])
log = (run / "audit.jsonl").open("rb")


def control():
    return (run / "control.json").read_bytes() if (run / "control.json").exists() else None


def settle(number, before):
    global done
    while done < number:
        line = log.readline()
        if not line.endswith(b"\\n"):
            log.seek(-len(line), 1)
            time.sleep(0.002)
        elif (event := json.loads(line)["data"])["kind"] == "verdict":
            done += 1
    limit = time.monotonic() + 1
    while event["result"] != "rejected" and event["changes"] and control() == before and time.monotonic() < limit:
        time.sleep(0.002)


with Workload("decided", objective="val_loss", total_steps=10 * count) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-4, high=1.0, scale="log",
            max_ratio=2.0, min_ratio=0.5, group="optimizer")
    w.float("decay", get=lambda: recipe["decay"], set=lambda v: recipe.update(decay=v), low=0.0, high=0.1)
    for step in w.steps():
        w.step(step, {"loss": 1 / step, "grad_norm": 1.0})
        if step % 10 == 0:
            before = control()
            w.eval(step, {"val_loss": 1 / step})
            settle(step // 10, before)
"""

FAST = """
import json, os, sys, time
from pathlib import Path

count, block, seq = int(sys.argv[1]), 1000, 0
run = Path(os.environ["TRAINMGR_RUN_DIR"])
file = (run / "telemetry.jsonl").open("ab", buffering=0)
step = '{"v":1,"seq":%d,"t":1.7e9,"event":"step","step":%d,"metrics":{"loss":1.2345,"grad_norm":0.5}}\\n'


def put(event, **more):
    global seq
    file.write(json.dumps({"v": 1, "seq": seq, "t": time.time(), "event": event, **more}).encode() + b"\\n")
    seq += 1


lr = {"name": "lr", "type": "float", "low": 0.001, "high": 1.0, "value": 0.1, "boundary": "step"}
put("start", workload="fast", pid=os.getpid(), total_steps=count, objective={"metric": "loss", "mode": "min"},
    action_space=[lr], commands=["stop"])
at, status = 0, "completed"
while at < count:
    file.write("".join(step % (seq + i, at + i + 1) for i in range(block)).encode())
    seq, at = seq + block, at + block
    put("eval", step=at, metrics={"loss": 1 / at})
    if (run / "control.json").exists():
        control = json.loads((run / "control.json").read_bytes())
        if control["command"] and control["command"]["name"] == "stop":
            (run / "stopped").write_text(f"{time.time()} {seq}")
            put("applied", revision=control["revision"], step=at, boundary="step", changes={},
                command=control["command"])
            status = "stopped"
            break
put("end", status=status, step=at)
"""

POLICY = """
[limits]
cooldown_evals = 0
[actions]
stop = false
[probation]
enabled = false
"""


def measured(*command: str | Path) -> tuple[float, float, float]:
    """Seconds, seconds of CPU, and peak memory (MB) of a process; what it prints is thrown away."""
    begin = time.perf_counter()
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        said = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}: {said.decode(errors='replace')}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def trainmgr(*arguments: str | Path) -> tuple[float, float, float]:
    return measured(sys.executable, "-m", "trainmgr", *arguments)


def made(folder: Path, script: str, count: int, *arguments: str | Path) -> RunPaths:
    """A supervised run of a script."""
    folder.mkdir(exist_ok=True)
    path = folder / "script.py"
    path.write_text(script)
    trainmgr("run", path, "--quiet", "--seed", "1", "--runs-dir", folder / "runs", *arguments, "--", str(count))
    return list_runs(folder / "runs")[-1]


def row(what: str, seconds: float, cpu: float, memory: float | None, base: float, note: str = "") -> None:
    shown = "" if memory is None else f"{memory:,.0f}"
    print(f"{what:<44}{seconds:>9.2f}{cpu:>9.2f}{shown:>7}{cpu / base:>8.1f}  {note}", flush=True)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and seconds of CPU, of a call in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


def decoded(path: Path) -> int:
    """What everything is compared with: each line of a file as JSON."""
    with path.open("rb") as file:
        return sum(1 for line in file if json.loads(line))


def folded(path: Path) -> None:
    state, feed = RunState(), Feed(path)
    for record in feed.records():
        state.fold(record)
    feed.digest()


def records(folder: Path, count: int) -> None:
    begin = time.perf_counter()
    paths = made(folder, MANY, count, "--manager", "none")
    run = time.perf_counter() - begin
    lines = count + count // 1000 + 2
    took = timed(lambda: decoded(paths.telemetry))
    base = took[1]
    row(f"json.loads of {lines:,} lines", *took, None, base, f"{lines / base:,.0f} lines/s of CPU")
    took = timed(lambda: folded(paths.telemetry))
    row("folded", *took, None, base, f"{lines / took[1]:,.0f} records/s of CPU")
    print(f"{'run --manager none, the script included':<44}{run:>9.2f}{'':>24}  {lines / run:,.0f} records/s")
    for command in ("show", "audit", "replay"):
        row(command, *(used := trainmgr(command, paths.root)), base, f"{lines / used[1]:,.0f} records/s of CPU")


def decisions(folder: Path, count: int) -> None:
    folder.mkdir()
    policy = folder / "policy.toml"
    policy.write_text(POLICY)
    paths = made(folder, DECIDED, count, "--manager", "random", "--policy", policy)
    took = timed(lambda: decoded(paths.audit))
    row("json.loads of the log", *took, None, took[1])
    for command in ("audit", "replay", "show"):
        row(f"{command} of {count:,} decisions", *trainmgr(command, paths.root), took[1])


def fast(folder: Path, count: int) -> None:
    """A script that writes as fast as it can, and is told to stop when half of its records are there."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(FAST)
    command = [sys.executable, "-m", "trainmgr", "run", str(script), "--quiet", "--manager", "none", "--runs-dir",
               str(folder / "runs"), "--", str(2 * count)]  # fmt: skip
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not (found := list_runs(folder / "runs")) or not found[0].telemetry.exists():
            time.sleep(0.01)
        (paths,) = found
        while paths.telemetry.stat().st_size < 90 * count:
            time.sleep(0.01)
        child.send_signal(signal.SIGTERM)
        told = time.time()
        child.wait()
    stopped, written = map(float, (paths.root / "stopped").read_text().split())
    took = time.perf_counter() - begin
    print(f"SIGTERM at about {count:,} records of a script that writes as fast as it can: it has its stop "
          f"{stopped - told:.2f} s later; {written:,.0f} records are supervised to their end in {took:.1f} s "
          f"({written / took:,.0f} records/s)")  # fmt: skip


def folders(folder: Path, count: int) -> None:
    first = made(folder, MANY, 10, "--manager", "none")
    for number in range(count - 1):
        shutil.copytree(first.root, first.root.with_name(f"{first.id[:-4]}{number:04x}"))
    nothing = min(measured(sys.executable, "-c", "pass") for _ in range(5))
    base = nothing[1]
    row("python -c pass", *nothing, base)
    for title, *arguments in (
        (f"runs ({count} folders)", "runs", "--runs-dir", folder / "runs"),
        (f"runs --json ({count} folders)", "runs", "--json", "--runs-dir", folder / "runs"),
        ("--version", "--version"),
    ):
        row(str(title), *min(trainmgr(*arguments) for _ in range(3)), base)
    for words in ("trainmgr ", "trainmgr show ", "trainmgr run x.py --manager "):
        row(f"Tab after {words!r}", *min(tab(words, folder) for _ in range(3)), base)


def tab(words: str, folder: Path) -> tuple[float, float, float]:
    """What the shell runs at a Tab."""
    os.environ.update(
        _TRAINMGR_COMPLETE="complete_bash", COMP_WORDS=words.replace(" ", "\n"), COMP_CWORD=str(words.count(" ")),
        TRAINMGR_RUNS_DIR=str(folder / "runs"),
    )  # fmt: skip
    try:
        return measured(Path(sys.executable).with_name("trainmgr"))
    finally:
        del os.environ["_TRAINMGR_COMPLETE"], os.environ["TRAINMGR_RUNS_DIR"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--decisions", type=int, default=2_000)
    parser.add_argument("--folders", type=int, default=500)
    parser.add_argument("--keep", type=Path, help="make the runs in this folder and leave them there")
    chosen = parser.parse_args(arguments)
    print(f"{'':<44}{'seconds':>9}{'CPU':>9}{'MB':>7}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as name:
        folder = chosen.keep or Path(name)
        folder.mkdir(exist_ok=True)
        parts = (
            (records, chosen.records),
            (fast, chosen.records),
            (decisions, chosen.decisions),
            (folders, chosen.folders),
        )
        for make, count in parts:
            if count:
                make(folder / make.__name__, count)


if __name__ == "__main__":
    main()
