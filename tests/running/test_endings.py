"""How runs end at their worst: with processes left behind, restarts that cannot be, and hostile process ids."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base import errors, files, process
from trainmgr.base.errors import WorkloadError
from trainmgr.base.paths import RUN_DIR_VARIABLE, RunPaths, list_runs
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import ParameterLimits, Process
from trainmgr.log import audit
from trainmgr.readers import proof
from trainmgr.running import launch
from trainmgr.testing import EXACT, PYTHON, TIME_LIMIT, Recorder, supervise, wait_for, write_child, write_shell

LEAVING = """
import subprocess
w = Workload("leaving", objective="loss", total_steps=200, metrics={"loss": "made up"})
loader = subprocess.Popen(["sleep", "300"], start_new_session=True)
far = f"setsid /bin/sh -c 'echo > {RUN}/far; exec sleep 301' & exit 0"  # its parent is gone
subprocess.run(["/bin/sh", "-c", far])
until((RUN / "far").exists)
w.step(1, {"loss": 1.0})
"""


def failures(paths: RunPaths, where: str) -> list[str]:
    found = [event.data for event in audit.read(paths.audit)]
    return [event.message for event in found if isinstance(event, events.Failure) and event.where == where]


def left(paths: RunPaths) -> list[int]:
    return process.living(RUN_DIR_VARIABLE, str(paths.root))


def press(record: Any, _: Any) -> None:
    if isinstance(record, protocol.Step):
        os.kill(os.getpid(), signal.SIGINT)


# ---- what is left behind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "status", "settings"),
    [
        ("until(lambda: False)", "interrupted", {}),
        ("sys.exit(3)", "failed", {}),
        ("signal.pause()", "hung", {"process": Process(stall_timeout=3.0)}),
        ("signal.pause()", "failed", {"parameters": {"momentum": ParameterLimits(frozen=True)}}),  # which it has not
    ],
)
def test_what_has_left_the_group_is_ended_after_a_stop_a_crash_a_hang_and_with_a_policy_that_does_not_fit(
    tmp_path: Path, end: str, status: str, settings: dict[str, Any]
) -> None:
    listener = Recorder(on_record=press) if status == "interrupted" else None
    policy = EXACT.model_copy(update=settings)
    script = write_child(tmp_path, f"import signal\n{LEAVING}\n{end}\n")
    paths, closing, _ = supervise(tmp_path, script, policy=policy, listener=listener)
    assert closing.status == status
    assert left(paths) == []
    (said,) = failures(paths, "processes")
    assert said.startswith("what the script had left running was ended: process ")
    assert "(sleep 300)" in said
    assert "(sleep 301)" in said
    assert proof.prove(paths).findings == []


def test_a_policy_that_does_not_fit_is_the_cause_whatever_goes_wrong_after_it(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("[parameters.momentum]\nfrozen = true\n")
    script = write_child(tmp_path, f"import signal\n{LEAVING}\nsignal.pause()\n")
    command = [PYTHON, "-m", "trainmgr", "run", script, "-m", "none", "--runs-dir", tmp_path / "runs", "--quiet",
               "--policy", tmp_path / "policy.toml"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    (paths,) = list_runs(tmp_path / "runs")
    assert done.returncode == errors.EXIT_USAGE, done.stderr
    for where in ("policy", "processes"):
        (said,) = failures(paths, where)
        assert f"{where}: {said}" in " ".join(done.stdout.split())


def test_what_is_left_behind_after_a_good_end_is_named_and_left_alone(tmp_path: Path) -> None:
    script = write_child(tmp_path, f"{LEAVING}\nw.end(1)\n")
    command = [PYTHON, "-m", "trainmgr", "run", script, "-m", "none", "--runs-dir", tmp_path / "runs", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    (paths,) = list_runs(tmp_path / "runs")
    try:
        assert done.returncode == 0, done.stderr
        (said,) = failures(paths, "processes")
        assert said.startswith("the script has ended and left running: process ")
        assert "(sleep 300)" in said
        assert "(sleep 301)" in said
        assert said in " ".join(done.stdout.split())
        assert len(left(paths)) == 2
        assert proof.prove(paths).findings == []
    finally:
        process.end_all(RUN_DIR_VARIABLE, str(paths.root))


def test_a_restart_ends_what_the_crash_has_left_running_first(tmp_path: Path) -> None:
    """Else two of them would train in the same folder."""
    end = "(RUN / 'seen').open('a').write(f'{loader.pid}\\n'); sys.exit(3)"
    policy = EXACT.model_copy(update={"process": Process(restarts=1)})
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, f"{LEAVING}\n{end}\n"), policy=policy)
    assert (closing.status, closing.exit_code) == ("failed", 3)
    assert len((paths.root / "seen").read_text().split()) == 2
    assert len(failures(paths, "processes")) == 2
    assert left(paths) == []


# ---- starts that cannot be ---------------------------------------------------------------------------------------


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


@pytest.mark.parametrize(
    ("doing", "why"),
    [
        ('rm "$0"', "child.sh cannot be started: No such file or directory."),
        ('printf "not\\0a script" > "$0"', "child.sh cannot be started: Exec format error; a script begins with"),
        ('chmod a-x "$0"', "child.sh cannot be started: Permission denied."),
        ("rmdir work", "work is gone."),
    ],
)
def test_a_restart_that_cannot_start_closes_the_run_and_says_why(tmp_path: Path, doing: str, why: str) -> None:
    (tmp_path / "work").mkdir()
    script = write_shell(tmp_path, f"cd {tmp_path}\n{doing}\nexit 5\n")
    policy = EXACT.model_copy(update={"process": Process(restarts=3)})
    request = launch.Request(
        script=script, manager="none", policy=policy, runs_dir=tmp_path / "runs", directory=tmp_path / "work"
    )
    before = descriptors()
    paths, closing = launch.launch(request, lambda *_: Recorder())
    assert (closing.status, closing.exit_code) == ("failed", 5)
    (said,) = failures(paths, "restart")
    assert why in said
    assert files.is_held(paths.audit) is False
    assert descriptors() == before
    assert proof.prove(paths).findings == []


def test_a_restart_that_cannot_start_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = write_shell(tmp_path, f"[ -e {tmp_path}/again ] && exit 0\ntouch {tmp_path}/again\nexit 5\n")
    policy = EXACT.model_copy(update={"process": Process(restarts=1)})
    real, opened = Path.open, 0

    def failing(path: Path, *more: Any, **named: Any) -> Any:
        nonlocal opened
        opened += path.name == "stdout.log"
        if path.name == "stdout.log" and opened in (2, 3):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(Path, "open", failing)
    paths, closing, _ = supervise(tmp_path, script, policy=policy)
    assert (closing.exit_code, opened) == (0, 4)
    assert failures(paths, "restart") == []
    assert proof.prove(paths).findings == []


def test_a_first_start_that_cannot_be_keeps_neither_the_lock_nor_a_descriptor(tmp_path: Path) -> None:
    script = write_shell(tmp_path, "")
    script.write_text("#!/no/such/interpreter\n")
    before = descriptors()
    with pytest.raises(WorkloadError, match="cannot be started"):
        supervise(tmp_path, script)
    (paths,) = list_runs(tmp_path / "runs")
    assert files.is_held(paths.audit) is False
    assert descriptors() == before
    (said,) = failures(paths, "start")
    assert said.endswith("child.sh cannot be started: No such file or directory.")
    assert proof.prove(paths).findings == []


FEW = """
import resource, sys
from trainmgr.running import launch
from trainmgr.testing import EXACT, Recorder
from trainmgr.contract.policy import ParameterLimits, Process
from pathlib import Path
here = Path.cwd()
policy = EXACT.model_copy(update={"process": Process(restarts=1)})
held = []

def take(event):  # every descriptor there is, when it is about to start again
    if event.kind == "restarted":
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            while True:
                held.append(open("/dev/null"))
        except OSError:
            pass
    elif event.kind == "error":
        held.clear()

request = launch.Request(script=here / "child.sh", manager="none", policy=policy, runs_dir=here / "runs")
paths, closing = launch.launch(request, lambda *_: Recorder(on_event=take))
print(closing.status, closing.exit_code)
"""


def test_a_restart_without_a_descriptor_left_closes_the_run(tmp_path: Path) -> None:
    write_shell(tmp_path, "exit 5\n")
    done = subprocess.run([PYTHON, "-c", FEW], cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT,
                          check=False)  # fmt: skip
    assert done.stdout.split() == ["failed", "5"], done.stderr
    (paths,) = list_runs(tmp_path / "runs")
    assert ["Too many open files" in text for text in failures(paths, "restart")] == [True]


@pytest.mark.parametrize("command", ["run", "compare"])
@pytest.mark.parametrize("how", ["", "nohup"])
def test_a_script_gets_the_signals_that_it_would_have_alone(tmp_path: Path, command: str, how: str) -> None:
    """The supervisor handles SIGHUP and ignores SIGPIPE; only what the operator ignores reaches the script."""
    script = write_shell(tmp_path, "grep -E '^Sig(Ign|Blk)' /proc/self/status")
    nobody = ["-m", "none"] if command == "run" else ["--managers", "none", "--seeds", "1"]
    words = ["env", "--default-signal=HUP", *[how] * bool(how), "env", "--default-signal=INT,QUIT", PYTHON, "-m"]
    subprocess.run([*words, "trainmgr", command, script, *nobody, "--runs-dir", tmp_path / "runs"], cwd=tmp_path,
                   capture_output=True, timeout=TIME_LIMIT, check=False)  # fmt: skip
    (paths,) = list_runs(tmp_path / "runs")
    found = dict(line.split(":\t") for line in paths.stdout.read_text().splitlines())
    ignored = {number for number in range(1, 32) if int(found["SigIgn"], 16) >> number - 1 & 1}
    assert ignored == ({signal.SIGHUP} if how else set())
    assert int(found["SigBlk"], 16) == 0


# ---- ids and ends that are not what they seem --------------------------------------------------------------------

PLANTED = """
pid = {"own": os.getppid(), "init": 1, "huge": 2**53 - 1}[sys.argv[1]]



class Lying:
    def __getattr__(self, name):
        return (lambda: pid) if name == "getpid" else getattr(os, name)


from trainmgr.workload import workload
workload.os = Lying()
w = Workload("planted", objective="loss", total_steps=200, metrics={"loss": "made up"})
w.step(1, {"loss": 1.0})
w.eval(1, {"loss": 1.0})
assert json.loads((RUN / "telemetry.jsonl").read_bytes().splitlines()[0])["pid"] == pid
until(lambda: any(e["kind"] == "signal" for e in log()))
w.end(1)
"""
WITNESS = """
import os, signal, subprocess, sys
from pathlib import Path
from trainmgr.contract import protocol
from trainmgr.testing import Recorder, supervise
here = Path.cwd()
os.environ["TRAINMGR_RUN_DIR"] = "x"
signal.signal(signal.SIGUSR1, signal.SIG_DFL)

def press(record, _):
    if isinstance(record, protocol.Step):
        os.kill(os.getpid(), signal.SIGURG)

paths, closing, _ = supervise(here, here / "child.py", listener=Recorder(on_record=press),
                              arguments=[sys.argv[1]])
print(closing.status)
"""


@pytest.mark.parametrize("whose", ["own", "init", "huge"])
def test_a_process_id_that_a_script_made_up_harms_nobody(tmp_path: Path, whose: str) -> None:
    write_child(tmp_path, PLANTED)
    done = subprocess.run([PYTHON, "-c", WITNESS, whose], cwd=tmp_path, capture_output=True, text=True,
                          timeout=TIME_LIMIT, check=False)  # fmt: skip
    assert done.stdout == "completed\n", done.stderr
    (paths,) = list_runs(tmp_path / "runs")
    read = subprocess.run([PYTHON, "-m", "trainmgr", "show", paths.root], capture_output=True, text=True,
                          timeout=TIME_LIMIT, check=False)  # fmt: skip
    assert read.returncode == 0, read.stderr


def test_a_run_that_hung_is_no_success_even_if_its_script_says_so(tmp_path: Path) -> None:
    script = write_child(tmp_path, """
import signal
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
w = Workload("hung", objective="loss", total_steps=200, metrics={"loss": "made up"})
w.step(1, {"loss": 1.0})
while True:
    time.sleep(60)
""")  # fmt: skip
    command = [PYTHON, "-m", "trainmgr", "run", script, "-m", "none", "--stall-timeout", "2", "--runs-dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    assert done.returncode == errors.EXIT_FAILED
    assert "(hung)" in done.stdout


def test_a_script_that_went_into_the_background_is_no_success_either(tmp_path: Path) -> None:
    script = write_child(tmp_path, """
with Workload("away", objective="loss", total_steps=200, metrics={"loss": "made up"}) as w:
    w.log("info", "is written at once")
    (RUN / "there").touch()
    until((RUN / "go").exists)
""")  # fmt: skip
    wait = "until [ -e $TRAINMGR_RUN_DIR/there ]; do :; done"
    wrapper = write_shell(tmp_path, f"{PYTHON} {script} > /dev/null 2>&1 &\n{wait}")
    command = [PYTHON, "-m", "trainmgr", "run", wrapper, "-m", "none", "--runs-dir", tmp_path / "runs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
        assert done.returncode == errors.EXIT_FAILED, done.stderr
        assert "goes on unsupervised" in done.stderr
    finally:
        (paths,) = list_runs(tmp_path / "runs")
        process.end_all(RUN_DIR_VARIABLE, str(paths.root))


def test_a_script_goes_on_when_its_supervisor_is_killed_while_it_waits_for_a_decision(tmp_path: Path) -> None:
    script = write_child(tmp_path, """
recipe = {"lr": 0.1}
with Workload("waiting", objective="loss", total_steps=20000, metrics={"loss": "made up"}) as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=0.01, high=1.0)
    for step in w.steps():
        w.step(step, {"loss": 1.0})
        if step % 10 == 0:
            w.eval(step, {"loss": 1.0})
            time.sleep(0.01)
        if (RUN / "enough").exists():
            break
""")  # fmt: skip
    (tmp_path / "policy.toml").write_text("[probation]\nenabled = false\n[cadence]\nmin_steps = 1\n")
    command = [PYTHON, "-m", "trainmgr", "run", script, "-m", "late:1000", "--blocking", "--runs-dir", tmp_path,
               "--policy", tmp_path / "policy.toml", "--quiet"]  # fmt: skip
    supervisor = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: any(standing(pid) for paths in list_runs(tmp_path) for pid in left(paths)), "the stop")
        (paths,) = list_runs(tmp_path)
        supervisor.kill()
        supervisor.wait(TIME_LIMIT)
        (paths.root / "enough").touch()
        wait_for(lambda: b'"event":"end"' in paths.telemetry.read_bytes(), "the end of the training")
    finally:
        supervisor.kill()
        supervisor.wait()
        for paths in list_runs(tmp_path):
            process.end_all(RUN_DIR_VARIABLE, str(paths.root))


def standing(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False


def test_a_display_that_wants_to_leave_costs_the_display(tmp_path: Path) -> None:
    """As rich does where its reader is gone."""

    def leave(*_: Any) -> None:
        raise SystemExit(1)

    script = write_shell(tmp_path, "exit 4")
    paths, closing, _ = supervise(tmp_path, script, listener=Recorder(on_event=leave))
    assert (closing.status, closing.exit_code) == ("failed", 4)
    assert failures(paths, "display") == ["SystemExit: nothing more is shown"]
