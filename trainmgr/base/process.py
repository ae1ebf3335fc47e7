"""One child process in a session of its own: started, watched, stopped with everything it started."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmgr.base.concealment import LEAST_KEY
from trainmgr.base.errors import WorkloadError
from trainmgr.base.files import open_regular
from trainmgr.base.foreign import on_terminal
from trainmgr.base.paths import (
    AUDIT_KEY_FILE_VARIABLE,
    CHECK_VARIABLE,
    KEY_NAME_VARIABLE,
    RESUME_VARIABLE,
    RUN_DIR_VARIABLE,
    SECRET_VARIABLES,
    SEED_VARIABLE,
)

UNBUFFERED_VARIABLE = "PYTHONUNBUFFERED"
STEP = 0.05  # seconds between two looks at a process that is not our child
TRIES = 10  # looks at a process where something that passes fails them ...
PASSING = frozenset(  # ... too few descriptors, too little memory or space, a disk or a server that is in trouble
    (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)
)
EXITING = 1.0  # seconds that a process may take to end after what it belongs to, or at SIGTERM
ROUNDS = 10  # times that what a run has left behind is killed: what forks meanwhile is found by the next look
SHOWN = 120  # characters of a command line
STAYING = frozenset(
    getattr(signal, f"SIG{name}")
    for name in (
        *("KILL", "STOP"),  # nobody can catch them
        *("INT", "TERM", "HUP"),  # they are for the supervisor
        *("SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "SYS"),  # faults of the process that gets them
        *("CHLD", "PIPE", "XFSZ"),  # what it did itself
        *("TSTP", "TTIN", "TTOU", "CONT", "WINCH"),  # its terminal
    )
)
"""The signals that are not passed on to a child. All others are a message for the script that is trained, from a batch
system mostly: the warning before the end (USR1, USR2, URG), a limit of CPU time (XCPU), a dump (QUIT)."""
HARMLESS = frozenset({signal.SIGURG})  # of the others, those that end nobody who does not listen


@dataclass(frozen=True)
class Exit:
    """How a process ended. ``code`` is its exit code, 128 + n for signal n, as shells have it."""

    code: int
    known: bool = True
    """False where only a parent could have seen the code, and we are none."""

    @property
    def words(self) -> str:
        if not self.known:
            return "ended, unseen by its supervisor"
        if self.code - 128 in signal.valid_signals():
            return f"was killed by {signal_name(self.code - 128)}"
        return f"ended with exit code {self.code}"


def signal_name(number: int) -> str:
    """SIGTERM, SIGRTMIN+3."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"


def clean_environment(extra: Mapping[str, str], secrets: Sequence[str] = ()) -> dict[str, str]:
    """Our environment without the manager's secrets and what another supervisor told us, and with ``extra``.

    Python does not keep back what a script prints, unless ours is told otherwise: a script that is killed has no chance
    to write it.
    """
    names = {*SECRET_VARIABLES, *secrets, os.environ.get(KEY_NAME_VARIABLE, "").strip()}
    told = {RUN_DIR_VARIABLE, SEED_VARIABLE, RESUME_VARIABLE, CHECK_VARIABLE}
    hidden = {*names, AUDIT_KEY_FILE_VARIABLE, *told}
    keys = {key for name in names if len(key := os.environ.get(name, "").strip()) >= LEAST_KEY}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in hidden and not any(key in value for key in keys)  # the same key under another name
    }
    return {UNBUFFERED_VARIABLE: "1", **kept, **extra}


class Child:
    """A started child. Its output goes to files: a dead supervisor neither kills nor blocks it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        stdout: Path,
        stderr: Path,
        ended: Callable[[Exit], None],
    ) -> None:
        """Start it; ``ended`` is called from another thread when it is over.

        Raises WorkloadError when it cannot be started; its ``passes`` says whether it may be in a moment.
        """
        try:
            with stdout.open("ab") as out, stderr.open("ab") as err:
                self._process = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment),
                    cwd=directory, start_new_session=True,
                )  # fmt: skip
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
            passes = isinstance(error, OSError) and error.errno in PASSING
            raise WorkloadError(f"{command[0]} cannot be started: {_why(error, directory)}.", passes=passes) from None
        self.pid = self._process.pid
        self._ended = ended
        self._guardian = Guardian(self.pid)
        self._waiter = threading.Thread(target=self._wait, name="child waiter", daemon=True)
        try:
            self._waiter.start()
        except RuntimeError as error:  # no thread can be had: nobody would see its end
            signal_group(self.pid, signal.SIGKILL)
            self._process.wait()
            raise WorkloadError(f"{command[0]} cannot be watched: {error}.") from None

    def _wait(self) -> None:
        known = True
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:  # SIGCHLD is ignored, or somebody else has waited for it
            known = False
        code = self._process.wait()
        self._guardian.release()
        self._ended(Exit(code if code >= 0 else 128 - code, known))

    def signal(self, number: int) -> None:
        """Signal the whole process group; a group that is gone is no error."""
        if number != signal.SIGSTOP or self._guardian.watches():
            signal_group(self.pid, number)

    def pass_on(self, number: int, reporter: int | None = None) -> None:
        """Signal one process: its workers may have no handler, and die of it.

        That is the one that was started, or where that is a wrapper without a handler, ``reporter``: the process that
        writes telemetry, if it has one.
        """
        if reporter is not None and catches(reporter, number) and not catches(self.pid, number):
            signal_one(reporter, number)
            return
        with contextlib.suppress(PermissionError):
            self._process.send_signal(number)

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came."""
        self._waiter.join(timeout)
        return not self._waiter.is_alive()


class Adopted:
    """A child of a supervisor that died: watched by looking, since only a parent can wait. Its exit code is lost.

    ``pid`` is the process that reports; the group to signal may have another leader (torchrun, a shell script). Where
    that is ours, or led by a process of somebody else, ``pid`` alone is signalled: the id is the script's word.
    """

    def __init__(self, pid: int, ended: Callable[[Exit], None]) -> None:
        self.pid = pid
        self._born = _stat(pid, START_TIME)
        self._leader = _leader(pid)
        self._ended = ended
        self._guardian = Guardian(self._leader)
        self._waiter = threading.Thread(target=self._wait, name="child waiter", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        while alive(self.pid):
            born = _stat(self.pid, START_TIME)
            if born is not None and born != self._born is not None:  # its id is another's by now
                break
            self._born = self._born or born  # a look that fails (no descriptor left) is no end of it
            time.sleep(STEP)
        self._guardian.release()
        self._ended(Exit(0, known=False))

    def signal(self, number: int) -> None:
        if number == signal.SIGSTOP and not self._guardian.watches():
            return
        if self._leader is not None:
            signal_group(self._leader, number)
        elif self._waiter.is_alive():
            signal_one(self.pid, number)

    def pass_on(self, number: int, reporter: int | None = None) -> None:  # noqa: ARG002
        """The same: signal the process that was started, or the one that reports."""
        first = self._leader
        if first is None or not alive(first) or (catches(self.pid, number) and not catches(first, number)):
            first = self.pid
        signal_one(first, number)

    def join(self, timeout: float) -> bool:
        self._waiter.join(timeout)
        return not self._waiter.is_alive()


class Guardian:
    """Lets a process group go on that was stopped (SIGSTOP) by a supervisor that died meanwhile.

    A process of its own, since SIGKILL leaves a supervisor no time: it reads from a pipe, which ends with whoever holds
    the other end. It is started before the first stop, and only then.
    """

    def __init__(self, group: int | None) -> None:
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # the waiter releases it while the loop may be about to stop the group
        self._released = False

    def watches(self) -> bool:
        """Whether it is there; False where it cannot be, or the group is over."""
        with self._lock:
            if self._process is None and self._group is not None and not self._released:
                command = ["/bin/sh", "-c", 'read -r _; kill -s CONT -- "-$0"', str(self._group)]
                with contextlib.suppress(OSError):
                    self._process = subprocess.Popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                        env={}, start_new_session=True,
                    )  # fmt: skip
            return self._process is not None

    def release(self) -> None:
        """The group is over; its id may be another's soon."""
        with self._lock:
            self._released = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process = None


STATE, PARENT, SESSION, START_TIME = 0, 1, 3, 19  # in /proc/PID/stat, behind the name


def _stat(pid: int, field: int) -> str | None:
    """A field of what the system says of a process; None where it does not say it (no such process, no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(")", 1)[1].split()[field]
    except (OSError, IndexError):
        return None


def _why(error: OSError | ValueError, directory: Path) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if error.errno == errno.ENOEXEC:
        return f"{error.strerror}; a script begins with a line that names its interpreter, #!/bin/sh for one"
    if error.errno == errno.ENOENT and not directory.is_dir():
        return f"its working directory {directory} is gone"
    return error.strerror or str(error)


def alive(pid: int) -> bool:
    """Whether a process with this id is running (a zombie is not). Whatever the number: no process has 2^53."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # not ours to signal
    return _stat(pid, STATE) != "Z"


def belongs(pid: int, variable: str, value: str) -> bool:
    """Whether a process runs that was started with ``variable=value``: an id alone may be another's by now.

    Never this process, nor one that it descends from, whatever they were started with: a script may name them as its
    own. Where the system does not show the environment of a process (no /proc), being alive is enough.
    """
    if pid <= 1 or not alive(pid):
        return False
    found = _started_with(pid, variable) == value or not os.access("/proc/self/environ", os.F_OK)
    return found and pid not in _ancestors()


def _ancestors() -> set[int]:
    """This process, its parent, and so on."""
    found = {os.getpid(), os.getppid()}
    pid = os.getppid()
    while (parent := _stat(pid, PARENT)) is not None and int(parent) not in found:
        pid = int(parent)
        found.add(pid)
    return found


def _leader(pid: int) -> int | None:
    """The process group of a process that reports, by its leader; None where it is not the script's alone."""
    try:
        group = os.getpgid(pid)
    except (ProcessLookupError, OverflowError):
        return None
    if group <= 1 or group == os.getpgrp():
        return None
    run = _started_with(pid, RUN_DIR_VARIABLE)
    theirs = run is None or group == pid or not alive(group) or belongs(group, RUN_DIR_VARIABLE, run)
    return group if theirs else None


def _started_with(pid: int, variable: str) -> str | None:
    entries: list[bytes] = []
    for _ in range(TRIES):
        try:
            entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            break
        except OSError as error:
            if error.errno not in PASSING:
                return None
            time.sleep(STEP)  # a script that trains must not count as gone for that
    mark = f"{variable}=".encode()
    return next((os.fsdecode(entry[len(mark) :]) for entry in entries if entry.startswith(mark)), None)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal; False where the system does not tell (no /proc)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except (OSError, ValueError, IndexError):
        pass
    return False


def living(variable: str, value: str) -> list[int]:
    """The processes that a run with ``variable=value`` started, whatever group they are in by now.

    None where the system does not tell (no /proc). A process that a person started with that variable is none of them
    (`trainmgr show` in a shell that exports it): its session has a leader that is not of the run.
    """
    try:
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    except OSError:
        return []
    found = {pid for pid in pids if belongs(pid, variable, value)}
    ours = os.getsid(0)

    def within(pid: int) -> bool:
        session = _stat(pid, SESSION)
        leader = int(session) if session is not None else 0
        return leader != ours and (leader in found or not alive(leader))

    return sorted(pid for pid in found if within(pid))


def staying(variable: str, value: str, seconds: float = EXITING) -> list[int]:
    """What ``living`` still finds after the time that a worker needs to see that its parent is gone."""
    limit = time.monotonic() + seconds
    while (found := living(variable, value)) and time.monotonic() < limit:
        time.sleep(STEP)
    return found


def end_all(variable: str, value: str) -> list[str]:
    """End what ``living`` finds, also what it starts meanwhile: SIGTERM, then SIGKILL; who that was, for a person."""
    ended: dict[int, str] = {}
    if staying(variable, value, STEP):  # what was killed a moment ago is no more than gone
        for number in (signal.SIGTERM, *[signal.SIGKILL] * ROUNDS):
            left = living(variable, value)
            ended |= {pid: described(pid) for pid in left if pid not in ended}
            for pid in left:
                signal_one(pid, number)
            if not left or not staying(variable, value):
                break
    return [*ended.values()]


def described(pid: int) -> str:
    """process 4711 (python train.py), for a person."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    command = on_terminal(" ".join(b" ".join(words).decode(errors="replace").split()), SHOWN)
    return f"process {pid} ({command})" if command else f"process {pid}"


def signal_one(pid: int, number: int) -> None:
    """Signal a process; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def no_room(folder: Path) -> bool:
    """Whether no space is left on the device of a folder, as far as it tells (a quota it does not)."""
    try:
        return os.statvfs(folder).f_bavail == 0
    except OSError:
        return False


def last_lines(path: Path, count: int = 8, limit: int = 16_384) -> list[str]:
    """The last lines of a log file, for a person; none where there is no file."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
