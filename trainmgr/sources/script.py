"""The script: started in our place, with its output and signals passed on, and stopped by signals."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

UNBUFFERED_VARIABLE = "PYTHONUNBUFFERED"  # what a Python script prints arrives at once
NOT_FOUND = 127  # as shells have it
_KEPT = frozenset(  # signals that are not for the script: nobody can catch them, or they are about this process alone
    getattr(signal, f"SIG{name}")
    for name in (
        *("KILL", "STOP", "SEGV", "BUS", "FPE", "ILL", "TRAP", "ABRT", "SYS", "CHLD", "PIPE", "XFSZ"),
        *("TSTP", "TTIN", "TTOU", "CONT", "WINCH"),
    )
)
_ALL = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})  # for its whole group; others may kill its workers
_SET_PDEATHSIG = 1  # of prctl on Linux


class Script:
    """The script as a child, in a process group of its own within our session."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, followed: bool, grace: float) -> None:
        """Start it. ``followed``: its output comes through us. ``grace``: seconds between two signals of a stop.

        Raises OSError where it cannot be started.
        """
        self._grace = grace
        self._signals: list[signal.Signals] = []  # of the stop, still to come
        self._due = 0.0
        self.asked: signal.Signals | None = None  # the last signal that told it to stop, while it ran
        self.interrupted = False  # whether somebody else's signal told it to end
        output = subprocess.PIPE if followed else None
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, bufsize=0, process_group=0,
            env={UNBUFFERED_VARIABLE: "1", **environment}, preexec_fn=_dying_with(os.getpid()),  # noqa: PLW1509 (no thread is there yet)
        )  # fmt: skip
        for number in signal.valid_signals() - _KEPT:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, self._pass_on)

    @property
    def outputs(self) -> list[tuple[IO[bytes], int]]:
        """Its standard output and standard error, with the descriptors of ours."""
        pairs = ((self._process.stdout, 1), (self._process.stderr, 2))
        return [(pipe, ours) for pipe, ours in pairs if pipe is not None]

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    @property
    def code(self) -> int:
        """Its exit code, 128 + n for signal n; 0 where it was told to stop."""
        code = self._process.returncode
        return 0 if self.asked is not None else code if code >= 0 else 128 - code

    @property
    def words(self) -> str:
        """How it ended."""
        code = self._process.returncode
        return f"ended with exit code {code}" if code >= 0 else f"was ended by {_name(-code)}"

    def stop(self) -> None:
        """As Ctrl-C does; if that is in vain, with SIGTERM, and at last with SIGKILL."""
        if self.asked is None and not self._signals:
            heard = signal.getsignal(signal.SIGINT) != signal.SIG_IGN  # what we ignore it ignores, too
            self._signals = [*[signal.SIGINT] * heard, signal.SIGTERM, signal.SIGKILL]
            self._due = 0.0
            self.tick()

    def tick(self) -> None:
        """Send the next signal of a stop, if it is time."""
        if self._signals and time.monotonic() >= self._due and not self.over:
            self.asked = self._signals.pop(0)
            self._due = time.monotonic() + self._grace
            self._group(self.asked)

    def _pass_on(self, number: int, _: object) -> None:
        if self._process.returncode is not None:
            return
        if number in _ALL:
            self.interrupted = True
            self._group(number)
        else:
            self._process.send_signal(number)

    def _group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _dying_with(parent: int) -> Callable[[], None]:
    """Called in the child before the script: it is killed when its parent dies, where the system can do that."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return lambda: None

    def prepare() -> None:
        prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
