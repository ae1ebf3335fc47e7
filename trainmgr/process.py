"""One child process in a session of its own: started, watched, stopped with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainmgr.errors import WorkloadError
from trainmgr.files import open_regular
from trainmgr.paths import CHECK_VARIABLE, RESUME_VARIABLE, RUN_DIR_VARIABLE, SECRET_VARIABLES, SEED_VARIABLE

UNBUFFERED_VARIABLE = "PYTHONUNBUFFERED"
LEAST_KEY = 8  # characters; a shorter one stands in other texts by chance, and is no key
STEP = 0.05  # seconds between two looks at a process that is not our child
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
    hidden = {*SECRET_VARIABLES, *secrets, RUN_DIR_VARIABLE, SEED_VARIABLE, RESUME_VARIABLE, CHECK_VARIABLE}
    keys = {key for name in (*SECRET_VARIABLES, *secrets) if len(key := os.environ.get(name, "").strip()) >= LEAST_KEY}
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

        Raises WorkloadError when it cannot be started.
        """
        try:
            with stdout.open("ab") as out, stderr.open("ab") as err:
                self._process = subprocess.Popen(
                    list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=dict(environment),
                    cwd=directory, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise WorkloadError(f"{command[0]} cannot be started: {error.strerror}.") from None
        self.pid = self._process.pid
        self._ended = ended
        self._waiter = threading.Thread(target=self._wait, name="child waiter", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        code = self._process.wait()
        self._ended(Exit(code if code >= 0 else 128 - code))

    def signal(self, number: int) -> None:
        """Signal the whole process group; a group that is gone is no error."""
        signal_group(self.pid, number)

    def pass_on(self, number: int, reporter: int | None = None) -> None:
        """Signal one process: its workers may have no handler, and die of it.

        That is the one that was started, or where that is a wrapper without a handler, ``reporter``: the process that
        writes telemetry, if it has one.
        """
        if reporter is not None and catches(reporter, number) and not catches(self.pid, number):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(reporter, number)
            return
        with contextlib.suppress(PermissionError):
            self._process.send_signal(number)

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came."""
        self._waiter.join(timeout)
        return not self._waiter.is_alive()


class Adopted:
    """A child of a supervisor that died: watched by looking, since only a parent can wait. Its exit code is lost.

    ``pid`` is the process that reports; the group to signal may have another leader (torchrun, a shell script).
    """

    def __init__(self, pid: int, ended: Callable[[Exit], None]) -> None:
        self.pid = pid
        try:
            self._group = os.getpgid(pid)
        except ProcessLookupError:
            self._group = pid
        self._ended = ended
        self._waiter = threading.Thread(target=self._wait, name="child waiter", daemon=True)
        self._waiter.start()

    def _wait(self) -> None:
        while alive(self.pid):
            time.sleep(STEP)
        self._ended(Exit(0, known=False))

    def signal(self, number: int) -> None:
        signal_group(self._group, number)

    def pass_on(self, number: int, reporter: int | None = None) -> None:  # noqa: ARG002
        """The same: signal the process that was started, or the one that reports."""
        first = self._group
        if not alive(first) or (catches(self.pid, number) and not catches(first, number)):
            first = self.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(first, number)

    def join(self, timeout: float) -> bool:
        self._waiter.join(timeout)
        return not self._waiter.is_alive()


def alive(pid: int) -> bool:
    """Whether a process with this id is running (a zombie is not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return True


def belongs(pid: int, variable: str, value: str) -> bool:
    """Whether a process runs that was started with ``variable=value``: an id alone may be another's by now.

    Where the system does not show the environment of a process (no /proc), being alive is enough.
    """
    if pid <= 1 or not alive(pid):
        return False
    try:
        return f"{variable}={value}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self/environ").exists()


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
    """The processes that were started with ``variable=value``; none where the system does not tell (no /proc)."""
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return sorted(pid for pid in pids if pid != os.getpid() and belongs(pid, variable, value))


def signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def last_lines(path: Path, count: int = 8, limit: int = 16_384) -> list[str]:
    """The last lines of a log file, for a person; none where there is no file."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read(limit).decode(errors="replace").splitlines()[-count:]
    except OSError:
        return []
