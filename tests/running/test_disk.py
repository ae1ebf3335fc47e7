"""Disks that fail under a training script: full for a while or for ever, unreadable, or without what was there.

Each script is a process of its own; the disk is a small one where the system lets us have it, or its calls fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.disks import HEAD, child, messages, records, whole

pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


FILL = """
def fill():
    with (run / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass

def save(path):
    path.write_text(str(state["loss"]) * 2000)

def load(path):
    state["loss"] = float(path.read_text()[:3])
"""


def saved(run: Path) -> list[tuple[int, str]]:
    return [(record["step"], Path(record["path"]).stem) for record in records(run, "checkpoint")]


KEPT = ["best-value.json", "best.pt", "initial.pt", "last.pt"]


# -- full --------------------------------------------------------------------------------------------------------------


FULL_FOR_A_WHILE = (
    FILL
    + """
with Workload("test", objective="loss", total_steps=400) as w:
    keep = Checkpoints(w, save, load)
    keep.begin()
    for step in w.steps():
        if step == 100:
            fill()
        if step == 300:
            (run / "filler").unlink()
        state["loss"] = {200: 0.1, 300: 0.4}.get(step, 0.9 if step < 200 else 0.7)
        w.step(step, {"loss": state["loss"]})
        if step % 100 == 0:
            keep.eval(step, {"loss": state["loss"]})
            there = {path.stem: path.read_text()[:3] for path in keep.best.parent.glob("*.pt")}
            print(step, *sorted(there.items()))
"""
)


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_of_that_time_and_nothing_else(disk: Path) -> None:
    run = disk / "run"
    done = child(run, FULL_FOR_A_WHILE)
    assert done.stdout.splitlines() == [
        "100 ('initial', '1.0')",
        "200 ('initial', '1.0')",
        "300 ('best', '0.4') ('initial', '1.0') ('last', '0.4')",  # not the best measured, the best that there is
        "400 ('best', '0.4') ('initial', '1.0') ('last', '0.7')",
    ]
    assert whole(run)
    assert [r["step"] for r in records(run, "step")] == list(range(1, 401))
    assert [(r["step"], r["metrics"]["loss"]) for r in records(run, "eval")] == [
        (100, 0.9), (200, 0.1), (300, 0.4), (400, 0.7),
    ]  # fmt: skip
    assert saved(run) == [(0, "initial"), (300, "best"), (300, "last"), (400, "last")]
    said = messages(run)
    assert any("telemetry could not be written: No space left on device from step " in text for text in said)
    assert any(text.endswith("now it can, and nothing is lost") for text in said)
    assert any(text.startswith("best.pt could not be saved at step 100: OSError: [Errno 28] No space") for text in said)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == KEPT


FULL_FOR_EVER = (
    FILL
    + """
fill()
with Workload("test", objective="loss", total_steps=300) as w:
    keep = Checkpoints(w, save, load)
    keep.begin()
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        keep.eval(step, {"loss": 1.0 / step})
        w.log("info", "x")
    try:
        keep.rollback("best")
    except ValueError as error:
        print(error)
    keep.end(step)
print("trained to", step)
"""
)


def test_a_disk_that_stays_full_costs_reports_and_never_the_training(disk: Path) -> None:
    run = disk / "run"
    refused, trained = child(run, FULL_FOR_EVER).stdout.splitlines()
    why = "there is no checkpoint 'best' yet: best.pt could not be saved at step 300: OSError: [Errno 28] No space left"
    assert refused.startswith(why)
    assert trained == "trained to 300"
    assert list((run / "checkpoints").iterdir()) == []


CRASH = (
    FILL
    + """
w = Workload("test", objective="loss", total_steps=20)
keep = Checkpoints(w, save, load)
w.start()
keep.begin()
w.step(1, {"loss": 1.0})
keep.eval(1, {"loss": 1.0})
fill()
(run / "checkpoints/rollback-1234").mkdir()
(run / "telemetry.jsonl").open("ab").write(b'{"v":1,"seq":')
os._exit(1)
"""
)
RESUME = (
    FILL
    + """
w = Workload("test", objective="loss", total_steps=20, resumed_from=run / "checkpoints/last.pt", resumed_step=1)
keep = Checkpoints(w, save, load)
print(keep.best_value, keep.best_step)
with w:
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        keep.eval(step, {"loss": 1.0})
        if step == 10:
            (run / "filler").unlink()
print("trained to", step)
"""
)


def test_a_script_is_started_again_on_a_disk_that_is_still_full(disk: Path) -> None:
    run = disk / "run"
    assert child(run, CRASH, check=False).returncode == 1
    assert child(run, RESUME).stdout == "1.0 1\ntrained to 20\n"
    lines = (run / "telemetry.jsonl").read_text().splitlines()
    (torn,) = [number for number, line in enumerate(lines) if not line.endswith("}")]
    rest = [json.loads(line) for number, line in enumerate(lines) if number != torn]
    assert [record["seq"] for record in rest] == list(range(len(rest)))
    assert [record["step"] for record in rest if record["event"] == "step"] == list(range(1, 21))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == KEPT


NO_ROOM_FOR_STEPS = """
from trainmgr.workload import backlog
backlog.MAX_BACKLOG = 2000
write = os.write

def full(fd, data):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

with Workload("test", objective="loss", total_steps=100) as w:
    declare(w)
    for step in w.steps():
        if step == 10:
            os.write = full
            control(0.2)
        if step == 90:
            os.write = write
        w.step(step, {"loss": 1.0})
"""


def test_answers_to_changes_are_kept_when_there_is_no_room_for_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child(run, NO_ROOM_FOR_STEPS)
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 10)]
    steps = [r["step"] for r in records(run, "step")]
    assert (steps[:10], steps[-11:]) == (list(range(1, 11)), list(range(90, 101)))
    missing = 100 - len(steps)
    assert missing > 0
    assert len(records(run)) + missing == records(run)[-1]["seq"] + 1
    lost = f"from step 10 on; now it can, and {missing} records are lost"
    assert messages(run) == [f"telemetry could not be written: No space left on device {lost}"]


LIMITED = """
import resource
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
with Workload("test", objective="loss", total_steps=100) as w:
    for step in w.steps():
        if step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "telemetry.jsonl").stat().st_size + 100, hard))
        if step == 90:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        w.step(step, {"loss": 1.0})
"""


def test_a_file_at_its_limit_is_a_full_disk(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child(run, LIMITED)
    assert whole(run)
    assert [r["step"] for r in records(run, "step")] == list(range(1, 101))
    assert [text[:49] for text in messages(run)] == ["telemetry could not be written: File too large fr"]


DYING = """
import os
from pathlib import Path
from trainmgr.workload import Workload
run = Path(os.environ["TRAINMGR_RUN_DIR"])
with Workload("own", objective="loss", total_steps=500) as w:
    for step in w.steps():
        if step == 100:
            with (run / "filler").open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(512))
                except OSError:
                    pass
        w.step(step, {"loss": 1.0})
        print("epoch", step, "x" * 200)
"""


def test_a_script_that_dies_of_what_it_prints_on_a_full_disk_is_said_to(disk: Path) -> None:
    (disk.parent / "own.py").write_text(DYING)
    done = subprocess.run(
        [sys.executable, "-m", "trainmgr", "run", "own.py", "--manager", "none", "--runs-dir", str(disk)],
        cwd=disk.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "The workload ended with exit code 1 (failed)." in done.stdout
    assert "No space left on device: the disk with " in done.stdout
    assert "Traceback" not in done.stderr


TORCH = """
import torch
weights = torch.zeros(1 << 16)  # twice the disk
with Workload("test", objective="loss", total_steps=1) as w:
    keep = Checkpoints(w, lambda path: torch.save(weights, path), print)
    keep.begin()
    w.step(1, {"loss": 1.0})
"""


def test_no_space_is_named_where_torch_does_not(disk: Path) -> None:
    run = disk / "run"
    child(run, FILL + TORCH)
    (said,) = messages(run)
    assert said.startswith("initial.pt could not be saved at step 0: OSError: [Errno 28] No space left on device (")


RANKS = """
import torch.distributed as dist
rank, full = int(os.environ["RANK"]), False
dist.init_process_group("gloo", init_method=f"file://{run}/store", rank=rank, world_size=2)

def save(path):
    if full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path.write_text(str(state["loss"]))

def load(path):
    state["loss"] = float(path.read_text())

def ask(revision, lr, **more):
    if rank == 0:
        entry = {"v": 1, "run": run.name, "revision": revision, "issued": {"t": 0.0, "step": 0}, "params": {"lr": lr},
                 "based_on_step": 0, "decision": "d", **more}
        (run / "control.new").write_text(json.dumps(entry))
        (run / "control.new").replace(run / "control.json")

seen = []
w = Workload("ranks", objective="loss", total_steps=24, sync_every=4)
declare(w)
keep = Checkpoints(w, save, load, every=4)
with w:
    keep.begin()
    for step in w.steps():
        full = rank == 0 and 6 <= step < 18  # only the first rank writes
        if step == 6:
            ask(1, 0.1, command={"id": "c", "name": "rollback", "to": "initial"})
        if step == 9:
            ask(2, 0.1, command={"id": "d", "name": "checkpoint", "to": None})
        if step == 13:
            ask(3, 0.3, at_boundary="checkpoint")
        w.step(step, {"loss": 1.0})
        if step % 2 == 0:
            keep.eval(step, {"loss": 1.0})  # the first is the best
        keep.report(step)
        seen.append((step, state["lr"]))
    keep.end(step)
(run / f"seen{rank}").write_text(json.dumps(seen))
dist.destroy_process_group()
"""


def test_ranks_pass_the_same_boundaries_when_the_one_that_writes_cannot_save(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    named = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "TRAINMGR_RUN_DIR": str(run), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HEAD + RANKS], env={**os.environ, **named, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            _, error = process.communicate(timeout=60)
            assert process.returncode == 0, error.decode()
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    seen = [json.loads((run / f"seen{rank}").read_text()) for rank in range(2)]
    assert seen[0] == seen[1]
    assert {lr for _, lr in seen[0]} == {0.1, 0.3}
    answers = [(r["revision"], r["event"]) for r in records(run) if r["event"] in ("applied", "refused")]
    assert answers == [(1, "applied"), (2, "refused"), (3, "applied")]


# -- not there, not ours -----------------------------------------------------------------------------------------------


MISPLACED = """
w = Workload("test", objective="loss", total_steps=9)
keep = Checkpoints(w, lambda path: path.write_text("1.0"), print)
with w:
    keep.begin()
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        keep.eval(step, {"loss": 1.0})
    try:
        keep.rollback("best")
    except ValueError as error:
        print(error)
    keep.end(step)
print("trained to", step)
"""
PLACES = {
    "nowhere": ("/proc/none", "[Errno 2] No such file or directory: "),
    "a file": ("file", "[Errno 17] File exists: "),
    "under a file": ("file/run", "[Errno 20] Not a directory: "),
    "with a folder for telemetry": ("folder", "[Errno 21] Is a directory: "),
    "read only": ("disk", "[Errno 30] Read-only file system: "),
}


@pytest.mark.parametrize("where", PLACES)
def test_a_run_directory_that_cannot_be_used_is_said_and_training_goes_on(
    tmp_path: Path, request: pytest.FixtureRequest, where: str
) -> None:
    name, why = PLACES[where]
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "telemetry.jsonl").mkdir(parents=True)
    if where == "read only":
        disk = request.getfixturevalue("disk")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    named = {"TRAINMGR_RUN_DIR": str(tmp_path / name)}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + MISPLACED], env={**os.environ, **named}, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    *refused, trained = done.stdout.splitlines()
    assert trained == "trained to 9"
    assert f"telemetry cannot be opened in TRAINMGR_RUN_DIR ({why}" in done.stderr
    assert "Traceback" not in done.stderr
    if where == "with a folder for telemetry":  # checkpoints are as good as ever
        assert sorted(path.name for path in (tmp_path / "folder/checkpoints").iterdir()) == KEPT
    else:
        assert refused[0].startswith("there is no checkpoint 'best' yet: best.pt could not be saved at step 9: ")
        assert done.stderr.count("could not be saved") == 1


def test_a_folder_of_checkpoints_that_is_removed_is_made_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = child(run, REMOVED)
    assert done.stdout == "there is no checkpoint 'best' yet\n0.5\n"
    assert saved(run) == [(0, "initial"), (1, "best"), (1, "last"), (2, "last"), (3, "best"), (3, "last"), (3, "last")]


REMOVED = (
    FILL
    + """
import shutil
with Workload("test", objective="loss", total_steps=3) as w:
    keep = Checkpoints(w, save, load)
    keep.begin()
    for step in w.steps():
        if step == 2:
            shutil.rmtree(run / "checkpoints")
            try:
                keep.rollback("best")
            except ValueError as error:
                print(error)
        state["loss"] = {1: 0.8, 2: 0.9, 3: 0.5}[step]
        keep.eval(step, {"loss": state["loss"]})
    state["loss"] = 0.7
    keep.rollback("best")
    print(state["loss"])
    keep.report(step)
"""
)
