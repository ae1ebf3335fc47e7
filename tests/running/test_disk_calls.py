"""Whatever call on telemetry or the control file fails, training goes on with all its records and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories.disks import child, messages, records, whole

pytestmark = pytest.mark.usefixtures("alone")


# -- telemetry ---------------------------------------------------------------------------------------------------------


TELEMETRY = {
    "cut short": "os.truncate(telemetry, 10)",
    "emptied": "os.truncate(telemetry, 0)",
    "rotated": "telemetry.rename(run / 'telemetry.jsonl.1')",
    "replaced": "telemetry.unlink(); telemetry.touch()",
    "removed": "telemetry.unlink()",
    "removed with its folder": "shutil.rmtree(run)",
    "closed": "os.closerange(3, 99)",
}


@pytest.mark.parametrize("how", TELEMETRY)
def test_what_happens_to_the_telemetry_does_not_happen_to_the_training(tmp_path: Path, how: str) -> None:
    run = tmp_path / "run"
    code = """
import shutil
telemetry = run / "telemetry.jsonl"
with Workload("test", objective="loss", total_steps=9) as w:
    declare(w)
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        w.eval(step, {"loss": 1.0})
        if step == 5:
            %s
print("trained to", step)
"""
    done = child(run, code % TELEMETRY[how])
    assert done.stdout == "trained to 9\n"
    if run.exists():
        assert (run / "stderr.log").read_text() == ""
    if how == "rotated":
        (run / "telemetry.jsonl.1").rename(run / "telemetry.jsonl")
    if how in ("rotated", "closed"):
        assert whole(run)
        assert [r["step"] for r in records(run, "eval")] == list(range(1, 10))
    if how == "emptied":
        assert [r["step"] for r in records(run, "eval")] == [6, 7, 8, 9]


def test_telemetry_that_something_has_closed_is_opened_when_it_can_be(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child(run, CLOSED)
    assert whole(run)
    assert [r["step"] for r in records(run, "step")] == list(range(1, 21))
    assert len(messages(run)) == 1
    assert messages(run)[0].startswith("telemetry could not be written: Input/output error from step 6 on")


CLOSED = """
call, refusing = os.open, True

def refused(path, *given, **more):
    if refusing and str(path).endswith("telemetry.jsonl"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return call(path, *given, **more)

with Workload("test", objective="loss", total_steps=20) as w:
    for step in w.steps():
        if step == 6:
            os.closerange(3, 99)
            os.open = refused
        refusing = step < 15
        w.step(step, {"loss": 1.0})
"""


# -- each call ---------------------------------------------------------------------------------------------------------


EACH = """
import builtins, io, itertools, shutil, tempfile
calls = [(module, name, getattr(module, name)) for module, names in (
    (os, "open write fstat stat lstat unlink replace fsync mkdir rmdir scandir listdir lseek".split()),
    (builtins, ["open"]), (io, ["open"])) for name in names]
number, last, count = 0, 0, 0  # the calls that fail, and how many there were

def life(total, **more):
    def save(path):
        path.write_text(str(state["loss"]))
    def load(path):
        state["loss"] = float(path.read_text())
    w = Workload("test", objective="loss", total_steps=total, **more)
    declare(w)
    keep = Checkpoints(w, save, load)
    with w:
        keep.begin()
        for step in w.steps():
            state["loss"] = (0.9, 0.8, 0.9, 0.7)[step % 4]
            w.step(step, {"loss": state["loss"]})
            keep.eval(step, {"loss": state["loss"]})
            keep.report(step)
        keep.end(step)

def failing(call):
    def made(path, *given, **more):
        global count
        if last and (isinstance(path, int) or str(run) in str(path)):
            count += 1
            if number <= count <= last:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(path, *given, **more)
    return made

def attempt(first, many):
    global run, number, last, count
    number, last, count, state["lr"] = first, 0, 0, 0.1
    run = Path(os.environ["TRAINMGR_RUN_DIR"]) / str(first)
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    os.environ["TRAINMGR_RUN_DIR"], parent = str(run), os.environ["TRAINMGR_RUN_DIR"]
    life(2)
    control(0.2)
    for module, name, call in calls:
        setattr(module, name, failing(call))
    last = first if not many else sys.maxsize
    error = ""
    try:
        life(6, resumed_from=run / "checkpoints/last.pt", resumed_step=2)
    except OSError as problem:
        error = repr(problem)
    last = 0
    for module, name, call in calls:
        setattr(module, name, call)
    os.environ["TRAINMGR_RUN_DIR"] = parent
    found = [json.loads(line) for line in (run / "telemetry.jsonl").read_text().splitlines() if line.endswith("}")]
    print(json.dumps({
        "error": error, "lr": state["lr"], "answers": sum(r["event"] in ("applied", "refused") for r in found),
        "whole": [r["seq"] for r in found] == list(range(len(found))),
        "steps": sum(r["event"] == "step" for r in found),
        "left": sorted({path.stem for path in (run / "checkpoints").iterdir()}),
    }))
    return count >= first

many = os.environ["ALL"] == "1"
for first in itertools.count(1, 17 if many else 1):
    if not attempt(first, many):
        break
"""


def attempts(run: Path, *, many: bool) -> list[dict[str, Any]]:
    done = child(run, EACH, ALL="1" if many else "0")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > (5 if many else 100)
    return found


def test_whatever_call_fails_once_training_goes_on_with_all_its_records_and_answers(tmp_path: Path) -> None:
    for number, found in enumerate(attempts(tmp_path / "runs", many=False), start=1):
        fine = {"error": "", "answers": 1, "whole": True, "steps": 6, "left": ["best", "best-value", "initial", "last"]}
        assert {name: found[name] for name in fine} == fine, f"when call {number} failed"


def test_whatever_call_is_the_first_of_all_that_fail_training_goes_on(tmp_path: Path) -> None:
    assert {found["error"] for found in attempts(tmp_path / "runs", many=True)} == {""}


# -- the control file --------------------------------------------------------------------------------------------------


MANAGED = """
import builtins

def refuse(number, *calls):
    # the first use of these on the control file
    for module, name in calls:
        def refused(path, *given, _call=getattr(module, name), _times=[1], **more):
            if str(path).endswith("control.json") and _times:
                raise OSError(number, os.strerror(number * _times.pop()))
            return _call(path, *given, **more)
        setattr(module, name, refused)

with Workload("test", objective="loss", total_steps=9) as w:
    declare(w)
    for step in w.steps():
        place = run / "control.json"
        if step == 3:
            %s
        if step == 6:
            %s
        w.step(step, {"loss": 1.0})
        if step == 4:
            print(state["lr"])
print(state["lr"])
"""
OPENED = "(os, 'open'), (builtins, 'open')"
TROUBLE = {
    "stat": "refuse(errno.ESTALE, (os, 'stat'))",
    "open": f"refuse(errno.EIO, {OPENED})",
    "forbidden": f"refuse(errno.EACCES, {OPENED})",
}


@pytest.mark.parametrize("where", TROUBLE)
def test_a_look_at_the_control_file_that_fails_is_made_again(tmp_path: Path, where: str) -> None:
    run = tmp_path / "run"
    done = child(run, MANAGED % (f"control(0.2); {TROUBLE[where]}", "pass"))
    assert done.stdout == "0.2\n0.2\n"
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 4)]
    (said,) = messages(run)
    assert said.startswith("control.json cannot be read ([Errno ")
    assert said.endswith("); it is looked at again")


IN_THE_WAY = {
    "a process without a free descriptor": (
        ("import resource; limits = resource.getrlimit(resource.RLIMIT_NOFILE); control(0.2); "
         "resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))"),
        "resource.setrlimit(resource.RLIMIT_NOFILE, limits)",
        "control.json cannot be read ([Errno 24] Too many open files",
    ),
    "an error of the disk": (
        "place.symlink_to('/proc/self/mem')", "control(0.2)", "control.json cannot be read ([Errno 5]"
    ),
    "a pipe": ("os.mkfifo(place)", "control(0.2)", "control file ignored: it is no file"),
    "a folder": ("place.mkdir()", "place.rmdir(); control(0.2)", "control file ignored: it is no file"),
    "a device": ("place.symlink_to('/dev/zero')", "control(0.2)", "control file ignored: it is no file"),
    "a terabyte": (
        "place.touch(); os.truncate(place, 1 << 40)", "control(0.2)", "control file ignored: it is no file of at most"
    ),
    "another run's": (
        "place.write_text(json.dumps({'v': 1, 'revision': 1, 'params': {}}))", "control(0.2)",
        "control file ignored: it is for run None",
    ),
    "its size without its content": (
        ("control(0.2); data, was = place.read_bytes(), place.stat(); place.write_bytes(bytes(len(data))); "
         "os.utime(place, ns=(was.st_mtime_ns,) * 2)"),
        "place.write_bytes(data); os.utime(place, ns=(was.st_mtime_ns,) * 2)",
        "control file ignored: JSONDecodeError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_stands_in_the_way_of_the_control_file_is_said_and_waited_for_by_nobody(tmp_path: Path, what: str) -> None:
    run, (first, then, words) = tmp_path / "run", IN_THE_WAY[what]
    done = child(run, MANAGED % (first, then))
    assert done.stdout == "0.1\n0.2\n"
    assert [(r["revision"], r["step"]) for r in records(run, "applied")] == [(1, 6)]
    (said,) = messages(run)
    assert said.startswith(words)
    assert whole(run)


KILLED = """
w = Workload("test", objective="loss", total_steps=9)
declare(w)
control(0.2)
w.step(1, {"loss": 1.0})
w.flush()
os._exit(1)
"""


def test_the_recipe_in_force_is_back_after_a_restart_though_the_first_look_fails(tmp_path: Path) -> None:
    run = tmp_path / "run"
    child(run, KILLED, check=False)
    again = MANAGED.replace("with Workload(", f"refuse(errno.ESTALE, {OPENED})\nwith Workload(")
    assert child(run, again % ("pass", "pass")).stdout == "0.2\n0.2\n"
    assert len(records(run, "applied")) == 1
