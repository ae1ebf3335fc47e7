"""One child process: how it is started, what it gets to see, how it is stopped, and how its end is told."""

from __future__ import annotations

import errno
import os
import queue
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainmgr.base import process
from trainmgr.base.errors import WorkloadError
from trainmgr.base.paths import SECRET_VARIABLES, RunPaths
from trainmgr.base.process import Adopted, Child, Exit
from trainmgr.testing import PYTHON, TIME_LIMIT, ScriptedManager, answer, supervise, wait_for, write_child, write_shell


@contextmanager
def started(folder: Path, *command: str, **environment: str) -> Iterator[tuple[Child, queue.Queue[Exit]]]:
    ends: queue.Queue[Exit] = queue.Queue()
    child = Child(
        command,
        environment=process.clean_environment(environment),
        directory=folder,
        stdout=folder / "stdout.log",
        stderr=folder / "stderr.log",
        ended=ends.put,
    )
    try:
        yield child, ends
    finally:
        child.signal(signal.SIGKILL)
        assert child.join(TIME_LIMIT)


def number_in(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text().endswith("\n"), path.name)
    return int(path.read_text())


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("exit 0", 0, "ended with exit code 0"),
        ("exit 3", 3, "ended with exit code 3"),
        ("kill -TERM $$", 143, "was killed by SIGTERM"),
        ("kill -KILL $$", 137, "was killed by SIGKILL"),
        (f"kill -{signal.SIGRTMIN + 3} $$", 128 + signal.SIGRTMIN + 3, "was killed by SIGRTMIN+3"),
        ("exit 255", 255, "ended with exit code 255"),
    ],
)
def test_an_end_has_a_code_as_in_a_shell_and_words(tmp_path: Path, script: str, code: int, words: str) -> None:
    with started(tmp_path, "/bin/sh", "-c", script) as (_, ends):
        end = ends.get(timeout=TIME_LIMIT)
    assert (end.code, end.words, end.known) == (code, words, True)


def test_an_end_that_nobody_saw_says_so() -> None:
    assert Exit(0, known=False).words == "ended, unseen by its supervisor"


def test_output_goes_to_files_and_is_appended(tmp_path: Path) -> None:
    for _ in range(2):
        with started(tmp_path, "/bin/sh", "-c", "echo out; echo err >&2; cat") as (_, ends):
            assert ends.get(timeout=TIME_LIMIT).code == 0  # stdin is empty: nothing waits for a person
    assert (tmp_path / "stdout.log").read_text() == "out\nout\n"
    assert process.last_lines(tmp_path / "stderr.log") == ["err", "err"]


def test_what_cannot_be_started_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(WorkloadError, match=r"no-such-program cannot be started: No such file"),
        started(tmp_path, "no-such-program"),
    ):
        pass


def test_the_whole_group_is_stopped_grandchildren_included(tmp_path: Path) -> None:
    script = "sleep 300 & echo $! > pid.new; mv pid.new pid; wait"
    with started(tmp_path, "/bin/sh", "-c", script) as (child, ends):
        grandchild = number_in(tmp_path / "pid")
        assert process.alive(grandchild)
        child.signal(signal.SIGTERM)
        assert ends.get(timeout=TIME_LIMIT).code == 143
        wait_for(lambda: not process.alive(grandchild), "the end of the grandchild")
        child.signal(signal.SIGTERM)  # a group that is gone is no error


def test_a_signal_that_is_passed_on_reaches_the_process_that_was_started_and_not_its_workers(tmp_path: Path) -> None:
    script = "trap 'echo warned; exit 7' USR1; sleep 300 & echo $! > pid.new; mv pid.new pid; wait"
    with started(tmp_path, "/bin/sh", "-c", script) as (child, ends):
        worker = number_in(tmp_path / "pid")
        child.pass_on(signal.SIGUSR1)
        assert ends.get(timeout=TIME_LIMIT).code == 7
        assert process.alive(worker)
        child.pass_on(signal.SIGUSR1)  # a process that is gone is no error
    assert (tmp_path / "stdout.log").read_text() == "warned\n"
    wait_for(lambda: not process.alive(worker), "the end of the worker")


@pytest.mark.parametrize("leads", [True, False])
def test_an_adopted_process_gets_what_is_passed_on_by_its_leader(tmp_path: Path, leads: bool) -> None:
    """The process that was started is the leader of the group; where that is gone, the one that reports is left."""
    trap = "trap 'echo NAME > warned; exit 7' USR1\n"
    idle = "echo $$ > pid.new; mv pid.new pid\nsleep 300 & wait\n"
    worker = write_shell(tmp_path, trap.replace("NAME", "worker") + idle, "worker.sh")
    end = "wait" if leads else "exit 0"
    script = write_shell(tmp_path, f"{trap.replace('NAME', 'leader')}{worker} &\n{end}\n")
    leader = subprocess.Popen([script], cwd=tmp_path, start_new_session=True)
    try:
        if not leads:
            assert leader.wait(TIME_LIMIT) == 0
        pid = number_in(tmp_path / "pid")
        ends: queue.Queue[Exit] = queue.Queue()
        adopted = Adopted(pid, ends.put)
        adopted.pass_on(signal.SIGUSR1)
        wait_for(lambda: (tmp_path / "warned").exists() and not process.alive(leader.pid if leads else pid))
        assert (tmp_path / "warned").read_text() == ("leader\n" if leads else "worker\n")
        assert process.alive(pid) is leads
    finally:
        process.signal_group(leader.pid, signal.SIGKILL)
        leader.wait(TIME_LIMIT)
    assert adopted.join(TIME_LIMIT)
    adopted.pass_on(signal.SIGUSR1)  # a process that is gone is no error


def test_an_adopted_process_is_watched_and_stopped_with_its_group_whoever_leads_it(tmp_path: Path) -> None:
    """Under torchrun or a shell script the process that reports is not the leader of its group."""
    script = "sleep 300 & echo $! > pid.new; mv pid.new pid; wait"
    leader = subprocess.Popen(["/bin/sh", "-c", script], cwd=tmp_path, start_new_session=True)
    try:
        ends: queue.Queue[Exit] = queue.Queue()
        adopted = Adopted(number_in(tmp_path / "pid"), ends.put)
        assert ends.empty()
        adopted.signal(signal.SIGTERM)
        assert ends.get(timeout=TIME_LIMIT).known is False
        assert leader.wait(TIME_LIMIT) == -signal.SIGTERM
        assert adopted.join(TIME_LIMIT)
    finally:
        leader.kill()
        leader.wait()


def test_a_process_belongs_to_a_run_only_with_its_variable(tmp_path: Path) -> None:
    child = subprocess.Popen(["sleep", "300"], env={**os.environ, "TRAINMGR_RUN_DIR": "/runs/a"})
    try:
        wait_for(lambda: process.belongs(child.pid, "TRAINMGR_RUN_DIR", "/runs/a"))
        assert not process.belongs(child.pid, "TRAINMGR_RUN_DIR", "/runs/b")
        assert not process.belongs(os.getpid(), "TRAINMGR_RUN_DIR", "/runs/a")
        assert not process.belongs(1, "TRAINMGR_RUN_DIR", "/runs/a")
        assert not process.belongs(-1, "TRAINMGR_RUN_DIR", "/runs/a")
    finally:
        child.kill()
        child.wait()
    assert not process.belongs(child.pid, "TRAINMGR_RUN_DIR", "/runs/a")
    assert not process.alive(child.pid)


def test_a_look_at_a_process_that_fails_is_no_end_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor left nothing in /proc can be opened: the training lives all the same."""
    child = subprocess.Popen(
        ["sleep", "300"], env={**os.environ, "TRAINMGR_RUN_DIR": "/runs/a"}, start_new_session=True
    )
    place, looks = f"/proc/{child.pid}/", 0
    real_text, real_bytes = Path.read_text, Path.read_bytes

    def fails(path: Path) -> None:
        nonlocal looks
        looks += str(path).startswith(place)
        if str(path).startswith(place) and looks in (1, 2, 6, 7):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    def read_text(path: Path, *more: Any, **named: Any) -> str:
        fails(path)
        return real_text(path, *more, **named)

    def read_bytes(path: Path) -> bytes:
        fails(path)
        return real_bytes(path)

    try:
        wait_for(lambda: process.belongs(child.pid, "TRAINMGR_RUN_DIR", "/runs/a"))
        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr(Path, "read_bytes", read_bytes)
        ends: queue.Queue[Exit] = queue.Queue()
        adopted = Adopted(child.pid, ends.put)
        wait_for(lambda: looks > 12 or not ends.empty())
        assert ends.empty()
        looks = 0
        assert process.belongs(child.pid, "TRAINMGR_RUN_DIR", "/runs/a")
        adopted.signal(signal.SIGKILL)
        child.wait()
        assert ends.get(timeout=TIME_LIMIT).known is False
    finally:
        child.kill()
        child.wait()


def test_the_environment_loses_secrets_and_what_another_supervisor_said(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {*SECRET_VARIABLES, "MY_KEY", "HF_TOKEN"}
    for name in (*hidden, "TRAINMGR_RESUME", "TRAINMGR_SEED", "HARMLESS", "WANDB_API_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("TRAINMGR_API_KEY_ENV", "HF_TOKEN")
    found = process.clean_environment({"TRAINMGR_RUN_DIR": "/r"}, secrets=["MY_KEY"])
    assert found["HARMLESS"] == "x"
    assert found["TRAINMGR_RUN_DIR"] == "/r"
    assert found["WANDB_API_KEY"] == "x"  # the script's own
    assert not {*hidden, "TRAINMGR_RESUME", "TRAINMGR_SEED"} & set(found)


def test_the_key_is_kept_from_a_child_under_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    monkeypatch.setenv("SUDO_COMMAND", f"/usr/bin/env OPENAI_API_KEY={CANARY} trainmgr run train.py")
    monkeypatch.setenv("BASH_FUNC_key%%", f"() {{ echo {CANARY}\n}}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Key: another-canary-1")
    monkeypatch.setenv("COPY", "X-Key: another-canary-1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    found = process.clean_environment({})
    assert not {"OPENAI_API_KEY", "SUDO_COMMAND", "BASH_FUNC_key%%", "OPENAI_CUSTOM_HEADERS", "COPY"} & set(found)
    assert {"OPENAI_ORG_ID", "PATH"} <= set(found)  # no secrets


@pytest.mark.parametrize(("set_by_user", "kept"), [(None, "1"), ("", ""), ("x", "x")])
def test_what_a_script_prints_is_not_kept_back_unless_the_user_wants_that(
    monkeypatch: pytest.MonkeyPatch, set_by_user: str | None, kept: str
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    if set_by_user is not None:
        monkeypatch.setenv("PYTHONUNBUFFERED", set_by_user)
    assert process.clean_environment({})["PYTHONUNBUFFERED"] == kept


CANARY = "sk-canary-4bfa21"


def test_the_key_reaches_neither_the_child_nor_any_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    body = """
print(dict(os.environ), flush=True)
with Workload("spy", objective="loss", info={k: v for k, v in os.environ.items()}) as w:
    w.eval(1, {"loss": 1.0})
    until(lambda: settled(1))
    w.log("info", str(dict(os.environ))[:1000])
sys.stderr.write(str(dict(os.environ)))
"""
    paths, closing, _ = supervise(tmp_path, write_child(tmp_path, body), ScriptedManager([answer()]))
    assert closing.exit_code == 0
    assert "TRAINMGR_RUN_DIR" in paths.stdout.read_text()
    files = [path for path in paths.root.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []
    assert private(paths) == []


BOUND = """
import ctypes, os, sys
if os.geteuid() == 0:  # as in a container: without CAP_SYS_PTRACE, CAP_SYS_ADMIN and CAP_PERFMON
    for capability in (19, 21, 38):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""  # a command as a user who is not allowed everything: root that is sees all

LOOKS = """
import glob
def holds(path):
    try:
        with open(path, "rb") as file:
            return b"KEY" in file.read()
    except OSError as error:
        return type(error).__name__
pids = [path.split("/")[2] for path in glob.glob("/proc/[0-9]*/environ")]
print("environ", [pid for pid in pids if holds(f"/proc/{pid}/environ") is True])
print("cmdline", [pid for pid in pids if holds(f"/proc/{pid}/cmdline") is True])
try:
    open(f"/proc/{os.getppid()}/mem", "rb").close()
    print("memory is open")
except PermissionError:
    print("memory is closed")
print("parent", holds(f"/proc/{os.getppid()}/environ"))
with Workload("spy", objective="loss") as w:
    w.eval(1, {"loss": 1.0})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another system has no /proc, and no such protection")
@pytest.mark.parametrize(
    ("variable", "words", "parent"),
    [
        ("OPENAI_API_KEY", [], "PermissionError"),
        ("HOUSE_API_KEY", ["--policy", "policy.toml"], "PermissionError"),
        ("HF_TOKEN", ["--api-key-env", "HF_TOKEN"], "PermissionError"),
        ("OTHER", [], "True"),  # no key: nothing is closed
    ],
)
def test_a_script_cannot_read_the_key_in_its_supervisor(
    tmp_path: Path, variable: str, words: list[str], parent: str
) -> None:
    canary = f"sk-{secrets.token_hex(16)}"  # of no other test on this machine
    script = write_child(tmp_path, LOOKS.replace("KEY", canary))
    (tmp_path / "policy.toml").write_text('[llm]\napi_key_env = "HOUSE_API_KEY"\n')
    bound = [sys.executable, "-c", BOUND]
    start = [sys.executable, "-m", "trainmgr", "run", str(script), "-m", "rules", "--runs-dir", "runs", *words]
    base = {name: value for name, value in os.environ.items() if not name.startswith(("TRAINMGR", "OPENAI"))}
    with subprocess.Popen([*bound, "/bin/sleep", "300"], env={"OPENAI_API_KEY": canary}) as open_one:
        try:
            wait_for(lambda: Path(f"/proc/{open_one.pid}/comm").read_text() == "sleep\n", "a process with a key")
            done = subprocess.run(
                [*bound, *start], cwd=tmp_path, env={**base, variable: canary}, capture_output=True, text=True,
                timeout=TIME_LIMIT, check=False, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        finally:
            open_one.kill()
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    said = RunPaths(run).stdout.read_text().splitlines()
    if variable != "OTHER":
        assert said[0] == f"environ ['{open_one.pid}']"  # where it can be found, it is
        assert said[2] == "memory is closed"
    assert said[1] == "cmdline []"
    assert said[3] == f"parent {parent}"


def private(paths: RunPaths) -> list[str]:
    """Files that others than the owner can reach."""
    if paths.root.stat().st_mode & 0o077:
        return [str(paths.root)]
    ours = (paths.manifest, paths.telemetry, paths.audit, paths.control)
    return [path.name for path in ours if path.exists() and path.stat().st_mode & 0o077]


def test_the_last_lines_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    assert process.last_lines(path) == []
    path.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"line %d \xff\n" % i for i in range(20)))
    assert process.last_lines(path, count=2) == ["line 18 \ufffd", "line 19 \ufffd"]


def test_a_wrapper_without_a_handler_does_not_keep_a_signal_from_the_script(tmp_path: Path) -> None:
    """It would die of it, and the script would never hear."""
    trap = "trap 'echo warned; exit 7' USR1; echo $$ > pid.new; mv pid.new pid; sleep 300 & wait"
    script = write_shell(tmp_path, trap)
    with started(tmp_path, "/bin/sh", "-c", f"{script}; echo wrapper $?") as (child, ends):
        reporter = number_in(tmp_path / "pid")
        wait_for(lambda: process.catches(reporter, signal.SIGUSR1), "the handler")
        assert not process.catches(child.pid, signal.SIGUSR1)
        child.pass_on(signal.SIGUSR1, reporter)
        assert ends.get(timeout=TIME_LIMIT).code == 0
    assert (tmp_path / "stdout.log").read_text() == "warned\nwrapper 7\n"


# ---- what a run leaves behind, and ids that are not its own ---------------------------------------------------

ESCAPE = """
import os, subprocess, sys, time
if sys.argv[1] == "daemon" and (os.fork() or os.setsid() or os.fork()):  # twice: its parent and its leader are gone
    os._exit(0)
if sys.argv[1] == "session":
    subprocess.run([sys.executable, __file__, "sleep"], start_new_session=True)
open(f"{sys.argv[1]}.new", "w").write(f"{os.getpid()}\\n")
os.rename(f"{sys.argv[1]}.new", sys.argv[1])
time.sleep(300)
"""


def test_processes_are_found_by_what_they_were_started_with_and_those_of_a_person_are_not(tmp_path: Path) -> None:
    """A shell that exports the variable, and what is typed into it, is in a session of the person's."""
    value = str(tmp_path)
    environment = {"TRAINMGR_RUN_DIR": value, "PATH": os.environ["PATH"]}
    (tmp_path / "escape.py").write_text(ESCAPE)
    typed = subprocess.Popen(["sleep", "300"], env=environment)
    shell = subprocess.Popen(
        ["/bin/sh", "-c", f"TRAINMGR_RUN_DIR={value} sleep 300; true"], start_new_session=True
    )  # fmt: skip
    child = subprocess.Popen(
        ["/bin/sh", "-c", f"{PYTHON} escape.py daemon; {PYTHON} escape.py session & wait"],
        env=environment, cwd=tmp_path, start_new_session=True,
    )  # fmt: skip
    try:
        daemon, grandchild = (number_in(tmp_path / name) for name in ("daemon", "sleep"))
        assert len({os.getpgid(pid) for pid in (child.pid, daemon, grandchild)}) == 3
        assert {child.pid, daemon, grandchild} <= set(found := process.living("TRAINMGR_RUN_DIR", value))
        assert len(found) == 4  # and the one that waits for the grandchild
        ended = process.end_all("TRAINMGR_RUN_DIR", value)
        assert len(ended) == 4
        assert any(text.startswith(f"process {daemon} (") and text.endswith("escape.py daemon)") for text in ended)
        assert child.wait(TIME_LIMIT) == -signal.SIGTERM
        assert process.living("TRAINMGR_RUN_DIR", value) == []
        assert typed.poll() is None
        assert shell.poll() is None
    finally:
        process.signal_group(shell.pid, signal.SIGKILL)
        for other in (typed, shell, child):
            other.kill()
            other.wait()


@pytest.mark.parametrize("pid", [2**53 - 1, 2**31, 2**31 - 1, 0, -1])
def test_an_id_that_no_process_has_is_nobodys(pid: int) -> None:
    assert not process.alive(pid)
    assert not process.belongs(pid, "TRAINMGR_RUN_DIR", "/runs/a")
    if pid > 0:
        ends: queue.Queue[Exit] = queue.Queue()
        adopted = Adopted(pid, ends.put)
        assert ends.get(timeout=TIME_LIMIT).known is False
        adopted.signal(signal.SIGKILL)
        assert adopted.join(TIME_LIMIT)


NESTED = """
import os
from trainmgr.base import process
own = (os.getpid(), os.getppid())
assert all(os.environ["TRAINMGR_RUN_DIR"] in open(f"/proc/{pid}/environ").read() for pid in own)
print(*(process.belongs(pid, "TRAINMGR_RUN_DIR", "/runs/a") for pid in own))
print(*process.living("TRAINMGR_RUN_DIR", "/runs/a"))
"""


def test_a_supervisor_and_what_it_was_started_by_are_never_the_scripts(tmp_path: Path) -> None:
    (tmp_path / "nested.py").write_text(NESTED)
    done = subprocess.run(
        ["/bin/sh", "-c", f"{PYTHON} nested.py; true"], env={**os.environ, "TRAINMGR_RUN_DIR": "/runs/a"},
        cwd=tmp_path, capture_output=True, text=True, timeout=TIME_LIMIT, check=True, start_new_session=True,
    )  # fmt: skip
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_an_adopted_process_in_a_group_of_somebody_else_is_signalled_alone(tmp_path: Path) -> None:
    script = "TRAINMGR_RUN_DIR=/runs/a sleep 300 & echo $! > pid.new; mv pid.new pid; wait; sleep 300"
    person = subprocess.Popen(["/bin/sh", "-c", script], cwd=tmp_path, start_new_session=True)
    try:
        pid = number_in(tmp_path / "pid")
        wait_for(lambda: process.belongs(pid, "TRAINMGR_RUN_DIR", "/runs/a"))
        adopted = Adopted(pid, lambda _: None)
        adopted.signal(signal.SIGKILL)
        assert adopted.join(TIME_LIMIT)
        assert person.poll() is None
    finally:
        process.signal_group(person.pid, signal.SIGKILL)
        person.wait()


# ---- starts and ends that go wrong ------------------------------------------------------------------------------


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_a_start_that_fails_says_why_and_keeps_nothing_open(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.write_text("echo no interpreter is named\n")
    bare.chmod(0o700)
    gone = tmp_path / "gone"
    before = descriptors()
    for folder, command, message in (
        (tmp_path, "no-such-program", "cannot be started: No such file"),
        (tmp_path, str(bare), "Exec format error; a script begins with a line that names its interpreter"),
        (tmp_path, "a\0b", "cannot be started: embedded null byte"),
        (gone, "/bin/sh", "gone is gone"),
    ):
        with pytest.raises(WorkloadError, match=message):
            Child(
                [command], environment={}, directory=folder, stdout=tmp_path / "out", stderr=tmp_path / "err",
                ended=lambda _: None,
            )  # fmt: skip
    with pytest.raises(WorkloadError, match="Is a directory"):
        Child(["/bin/sh"], environment={}, directory=tmp_path, stdout=tmp_path / "out", stderr=tmp_path,
              ended=lambda _: None)  # fmt: skip
    assert descriptors() == before


UNSEEN = """
import queue, signal, sys
from pathlib import Path
from trainmgr.base.process import Child
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # as some daemons leave it to what they start
ends = queue.Queue()
here = Path.cwd()
Child(["/bin/sh", "-c", "exit 7"], environment={}, directory=here, stdout=here / "out", stderr=here / "err",
      ended=ends.put)
print(ends.get(timeout=60).words)
"""


def test_an_end_that_the_system_keeps_to_itself_is_no_good_end(tmp_path: Path) -> None:
    done = subprocess.run([PYTHON, "-c", UNSEEN], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "ended, unseen by its supervisor\n"


STOPPING = """
import os, queue, signal, sys
from pathlib import Path
from trainmgr.base.process import Adopted, Child
here, ends = Path.cwd(), queue.Queue()
if sys.argv[1:]:
    child = Adopted(int(sys.argv[1]), ends.put)
else:
    child = Child(["sleep", "300"], environment=os.environ, directory=here, stdout=here / "out", stderr=here / "err",
                  ended=ends.put)
for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGSTOP):
    child.signal(number)
print(child.pid, flush=True)
signal.pause()
"""


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def test_a_child_that_stands_still_goes_on_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    """Once a child of that process, once one that it has adopted."""
    pid = 0
    try:
        for _ in range(2):
            command = [PYTHON, "-c", STOPPING, *[str(pid)] * bool(pid)]
            supervisor = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
            assert supervisor.stdout is not None
            with supervisor.stdout as out:
                pid = int(out.readline())
            wait_for(lambda pid=pid: stopped(pid), "the stop")  # type: ignore[misc]
            supervisor.kill()
            supervisor.wait(TIME_LIMIT)
            wait_for(lambda pid=pid: not stopped(pid), "the end of the stop")  # type: ignore[misc]
    finally:
        if pid:
            process.signal_group(pid, signal.SIGKILL)


def test_nothing_watches_over_a_child_that_is_over(tmp_path: Path) -> None:
    before = descriptors()
    with started(tmp_path, "sleep", "300") as (child, ends):
        child.signal(signal.SIGSTOP)
        wait_for(lambda: stopped(child.pid), "the stop")
        child.signal(signal.SIGKILL)
        assert ends.get(timeout=TIME_LIMIT).code == 137
        child.signal(signal.SIGSTOP)
    assert descriptors() == before
    assert child._guardian._process is None
