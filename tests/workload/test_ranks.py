"""Several processes that train one run: all get a change at the same step, or none does and somebody says why."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainmgr.contract import protocol
from trainmgr.log.telemetry import Feed
from trainmgr.state.run_state import RunState
from trainmgr.testing import TIME_LIMIT
from trainmgr.workload import Workload, ranks


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch, alone: None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


def control(run: Path, revision: int, lr: float) -> None:
    """Put a control file in place as the supervisor does: in one step."""
    content = {"v": 1, "run": run.name, "revision": revision, "issued": {"t": 0.0, "step": 0}, "params": {"lr": lr},
               "based_on_step": 0, "decision": f"d{revision}"}  # fmt: skip
    (run / "control.new").write_text(json.dumps(content))
    (run / "control.new").replace(run / "control.json")


def records(run: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "telemetry.jsonl").read_bytes().splitlines()]
    return [record for record in found if record["event"] == event]


def folded(run: Path) -> RunState:
    """Read by the other side: one stream of whole records without gaps or repetitions."""
    state, seqs = RunState(), []
    for item in Feed(run / "telemetry.jsonl").records():
        assert not isinstance(item, protocol.Unreadable), item
        seqs.append(item.seq)
        state.fold(item)
    assert seqs == list(range(len(seqs)))
    return state


# ---- processes that torch.multiprocessing starts ---------------------------------------------------------

SPAWNED = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
import torch.multiprocessing as mp
from trainmgr.workload import Workload, ranks

STORE, OUT, HOW = sys.argv[1:]
RUN, STEPS = Path(os.environ["TRAINMGR_RUN_DIR"]), 12


def train(rank, meet):
    Workload.PERIOD = 0.0
    if HOW in ("only rank 0", "half told"):
        ranks.PATIENCE = 0.0
    if HOW == "half told":
        os.environ["WORLD_SIZE"] = "2"

    def group():
        dist.init_process_group("gloo", init_method=f"file://{STORE}", rank=rank, world_size=2)

    recipe, seen = {"lr": 0.1}, []
    if HOW in ("before", "only rank 0"):
        group()
    w = None
    if HOW != "only rank 0" or rank == 0:
        w = Workload("spawned", objective="loss", total_steps=STEPS, sync_every=2)
        w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.0, high=1.0)
        w.start()
    meet.wait()
    if HOW in ("after", "half told"):
        group()
    for step in range(1, STEPS + 1):
        if w is not None and w.primary and step == 3:
            entry = {"v": 1, "run": RUN.name, "revision": 1, "issued": {"t": 0.0, "step": 0}, "params": {"lr": 0.5},
                     "based_on_step": 0, "decision": "d"}
            (RUN / "control.new").write_text(json.dumps(entry))
            (RUN / "control.new").replace(RUN / "control.json")
        if w is not None:
            w.step(step, {"loss": 1.0})
            if step % 4 == 0:
                w.eval(step, {"loss": 1.0})
        seen.append(recipe["lr"])
    meet.wait()
    if w is not None:
        w.end(STEPS)
    Path(f"{OUT}{rank}").write_text(json.dumps([w is not None and w.primary, seen]))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    meet = mp.get_context("spawn").Barrier(2)
    mp.spawn(train, (meet,), nprocs=2)
"""


def spawned(run: Path, folder: Path, how: str) -> tuple[list[tuple[bool, list[float]]], str]:
    """Of two ranks: whether it was the one that writes, and the learning rate after each step; what they said."""
    script = folder / "spawned.py"
    script.write_text(SPAWNED)
    command = [sys.executable, str(script), str(folder / "store"), str(folder / "seen"), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert folded(run).starts == 1
    return [json.loads((folder / f"seen{rank}").read_text()) for rank in range(2)], done.stderr


def test_spawned_ranks_of_an_initialized_group_get_the_same_change_at_the_same_step(run: Path, tmp_path: Path) -> None:
    found, said = spawned(run, tmp_path, "before")
    assert found == [[True, [0.1] * 3 + [0.5] * 9], [False, [0.1] * 3 + [0.5] * 9]]
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 4)]
    assert "telemetry" not in said


@pytest.mark.parametrize("how", ["never", "after"])
def test_spawned_ranks_that_nothing_tells_of_all_train_one_writes_and_no_change_is_made(
    run: Path, tmp_path: Path, how: str
) -> None:
    found, said = spawned(run, tmp_path, how)
    assert sorted(primary for primary, _ in found) == [False, True]
    assert [seen for _, seen in found] == [[0.1] * 12] * 2
    (refused,) = records(run, "refused")
    assert refused["reason"].startswith("Several processes train this run")
    assert ("initialized after the Workload was started" in refused["reason"]) is (how == "after")
    assert "init_process_group before the Workload starts" in refused["reason"]
    (warned,) = records(run, "log")
    assert warned["message"] == f"changes are refused: {refused['reason']}"
    assert said.count("reports nothing and gets no changes; its training goes on") == 1


def test_a_workload_on_rank_0_alone_waits_for_nobody_and_is_refused_its_changes(run: Path, tmp_path: Path) -> None:
    found, _ = spawned(run, tmp_path, "only rank 0")
    assert found == [[True, [0.1] * 12], [False, [0.1] * 12]]
    (refused,) = records(run, "refused")
    assert "not all of them came with a Workload" in refused["reason"]
    assert [r["message"] for r in records(run, "log")] == [f"changes are refused: {refused['reason']}"]


def test_ranks_that_the_environment_tells_wrong_make_no_change(run: Path, tmp_path: Path) -> None:
    """WORLD_SIZE without RANK: both take themselves for rank 0 until the group says otherwise."""
    found, said = spawned(run, tmp_path, "half told")
    assert sorted(primary for primary, _ in found) == [False, True]
    assert [seen for _, seen in found] == [[0.1] * 12] * 2
    assert [r["revision"] for r in records(run, "refused")] == [1]
    assert said.count("reports nothing") == 1


# ---- any other processes ---------------------------------------------------------------------------------

SECOND = """
import sys
from trainmgr.workload import Checkpoints, Workload
w = Workload("second", objective="loss", total_steps=2)
with w:
    keep = Checkpoints(w, lambda path: path.write_text("second"), lambda path: None)
    keep.begin()
    for step in w.steps():
        w.step(step, {"loss": 2.0})
    keep.eval(2, {"loss": 2.0})
    print("there", flush=True)
    sys.stdin.read()
"""


def managed(recipe: dict[str, float]) -> Workload:
    w = Workload("first", objective="loss", total_steps=100)
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.0, high=1.0)
    return w


def test_a_second_process_on_a_run_writes_nothing_and_once_it_is_seen_nothing_is_changed(run: Path) -> None:
    recipe = {"lr": 0.1}
    with managed(recipe) as w:
        w.step(1, {"loss": 1.0})
        with subprocess.Popen([sys.executable, "-c", SECOND], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as second:  # fmt: skip
            assert second.stdout is not None
            assert second.stdout.readline() == "there\n"
            control(run, 1, 0.2)
            w.step(2, {"loss": 1.0})
            w.eval(2, {"loss": 1.0})
            w.eval(3, {"loss": 1.0})
            _, said = second.communicate(timeout=TIME_LIMIT)
            assert second.returncode == 0
        control(run, 2, 0.3)  # the other one trained without the first
        w.step(4, {"loss": 1.0})
    assert recipe == {"lr": 0.1}
    assert [r["revision"] for r in records(run, "refused")] == [1, 2]
    assert "another one has a Workload of its own" in records(run, "refused")[1]["reason"]
    assert len(records(run, "log")) == 1
    assert said.count("\n") == 1
    assert f"process {second.pid} reports nothing" in said
    assert not list((run / "checkpoints").iterdir())
    assert [r["step"] for r in records(run, "step")] == [1, 2, 4]
    folded(run)


ORPHAN = """
import os, signal
from trainmgr.workload import Workload
w = Workload("crashed", objective="loss", total_steps=2)
w.step(1, {"loss": 1.0})
w.flush()
if os.fork() == 0:  # as the worker of a data loader, which inherits every file
    print(os.getpid(), flush=True)
    signal.pause()
signal.pause()
"""


def test_after_a_crash_the_next_life_writes_though_workers_of_the_last_one_are_left(run: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as crashed:
        assert crashed.stdout is not None
        worker = int(crashed.stdout.readline())
        try:
            crashed.kill()
            crashed.wait(TIME_LIMIT)
            with managed({"lr": 0.1}) as w:
                assert w.primary
                w.step(2, {"loss": 1.0})
        finally:
            os.kill(worker, signal.SIGKILL)
    assert folded(run).starts == 2


FORKED = """
import multiprocessing, os
from trainmgr.workload import Workload
w = Workload("forked", objective="loss", total_steps=20)
w.start()


def train(meet):
    meet.wait()
    for step in w.steps():
        w.step(step, {"loss": 1.0})
    w.eval(20, {"loss": 1.0})
    meet.wait()


context = multiprocessing.get_context("fork")
meet = context.Barrier(COUNT)
children = [context.Process(target=train, args=(meet,)) for _ in range(COUNT)]
for child in children:
    child.start()
for child in children:
    child.join()
os._exit(max(child.exitcode for child in children))
"""


@pytest.mark.parametrize("count", [1, 3])
def test_of_the_forks_of_a_workload_that_was_started_one_writes(run: Path, count: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED.replace("COUNT", str(count))],
        capture_output=True, text=True, timeout=TIME_LIMIT, check=True,
    )  # fmt: skip
    state = folded(run)
    assert (state.starts, len(records(run, "step")), state.evals) == (1, 20, 1)
    assert done.stderr.count("reports nothing") == count - 1


HELPER = """
import multiprocessing, os, sys
from trainmgr.workload import Workload
with Workload("helped", objective="loss", total_steps=30) as w:
    w._period = 1e9  # there is always something gathered
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            WHAT
        if step % 10 == 5:
            w.eval(step, {"loss": 1.0})
"""
HELPERS = {
    "ends like a script": "child = os.fork()\n            if child == 0: sys.exit(0)\n            os.waitpid(child, 0)",
    "fails": "child = os.fork()\n            if child == 0: raise ValueError\n            os.waitpid(child, 0)",
    "reports": """context = multiprocessing.get_context("fork")
            child = context.Process(target=lambda: (w.eval(step, {"loss": 0.0}), w.step(step, {"loss": 0.0})))
            child.start()
            child.join()""",
}


@pytest.mark.parametrize("what", HELPERS)
def test_a_fork_of_a_process_that_reports_is_a_helper_and_writes_nothing(run: Path, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", HELPER.replace("WHAT", HELPERS[what])],
                          capture_output=True, text=True, timeout=TIME_LIMIT, check=True)  # fmt: skip
    assert [r["step"] for r in records(run, "step")] == list(range(1, 31))
    assert [(r["step"], r["metrics"]["loss"]) for r in records(run, "eval")] == [(5, 1.0), (15, 1.0), (25, 1.0)]
    assert [r["status"] for r in records(run, "end")] == ["completed"]
    assert records(run, "log") == []
    assert done.stderr.count("is a fork of the one that reports this run") == (3 if what == "reports" else 0)
    folded(run)


@pytest.mark.parametrize("problem", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_locks_everybody_writes_and_changes_are_made(
    run: Path, monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    def lockf(*_: object) -> None:
        raise OSError(problem, os.strerror(problem))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    recipe = {"lr": 0.1}
    with managed(recipe) as w:
        control(run, 1, 0.2)
        w.step(1, {"loss": 1.0})
        w.eval(1, {"loss": 1.0})
    assert recipe == {"lr": 0.2}
    assert records(run, "log") == []


@pytest.mark.parametrize(
    ("environment", "found"),
    [({}, (0, 1)), ({"RANK": "3", "WORLD_SIZE": "4"}, (3, 4)), ({"RANK": "", "WORLD_SIZE": ""}, (0, 1))],
)
def test_the_rank_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: tuple[int, int]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks.here() == found


def test_a_workload_that_ended_leaves_the_run_to_the_next_one_of_its_process(run: Path) -> None:
    for step in (1, 2):
        with managed({"lr": 0.1}) as w:
            assert w.primary
            w.step(step, {"loss": 1.0})
    assert folded(run).starts == 2
