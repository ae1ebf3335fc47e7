"""What leaves by stdout and stderr, whatever is at the other end: a terminal of another alphabet, nobody, or somebody
who does not read.

``prepare`` makes the streams of this process such that no character and no reader that is gone is an error. While a
run is supervised, a ``Printer`` writes in a thread of its own, since a terminal that is stopped (Ctrl-S), a paused
pager and a pipe that nobody reads hold back whoever writes to them.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, TextIO

from trainmgr.base.errors import TrainmgrError

LIMIT = 1 << 20  # characters that wait for their reader; more are dropped and counted
PATIENCE = 5.0  # seconds without progress after which what still waits at the end is given up
PIECE = 4096  # bytes a write: a pipe takes so many at once or none, so that progress is seen
ERRORS = "trainmgr"  # the name of what is done about characters that a stream does not know
ALIKE = {
    "→": "->",
    "…": "...",
    "–": "-",
    "±": "+-",
    "×": "x",
    "●": "*",
    "▲": "^",
    "─": "-",
    "━": "-",
    "✓": "+",
    "✗": "x",
}
BRAILLE = range(0x2800, 0x2900)  # of which curves are drawn


def spelled(error: UnicodeError) -> tuple[str, int]:
    """What we draw with, in ASCII; any other character as JSON escapes it, so that JSON stays what it is."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = ""
    for c in error.object[error.start : error.end]:
        units = c.encode("utf-16-be", "surrogatepass")
        escaped = "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))
        text += "." if ord(c) in BRAILLE else ALIKE.get(c, escaped)
    return text, error.end


codecs.register_error(ERRORS, spelled)


class _Descriptor(io.RawIOBase):
    """A file descriptor, at which a reader that is gone is no error: what nobody reads goes nowhere."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name, self._failed = fd, name, False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while not self._failed:
            try:
                return os.write(self._fd, view)
            except BlockingIOError:  # whoever shares it wants it so
                select.select([], [self._fd], [])
            except BrokenPipeError:
                self._failed = True
            except OSError as error:
                self._failed = True
                raise TrainmgrError(f"{self._name} cannot be written: {error.strerror}.") from None
        return len(view)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True


def prepare() -> None:
    """Open what is closed of the three standard streams; let nothing that is printed be an error but a full disk."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:  # else the next file that is opened would take its place, and get what is printed
            os.open(os.devnull, os.O_RDWR)
    for fd, name in ((1, "stdout"), (2, "stderr")):
        encoding = getattr(getattr(sys, name), "encoding", None) or "utf-8"
        raw = _Descriptor(fd, name)
        lines = fd == 2 or raw.isatty()
        setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw), encoding, ERRORS, line_buffering=lines))


class Printer(io.TextIOBase):
    """Writes to a stream's descriptor in a thread; whoever prints never waits, and never gets an error.

    Whole writes are dropped where ``limit`` characters wait already. ``missing`` counts their lines; as soon as there
    is room again, ``notice`` says so on the stream itself, if it has such words.
    """

    def __init__(self, stream: TextIO, limit: int = LIMIT, notice: str = "") -> None:
        self._fd = stream.fileno()
        self._encoding = stream.encoding or "utf-8"
        self._limit, self._notice = limit, notice
        self._waiting: deque[str] = deque()
        self._size = 0  # characters in it, and in what is being written
        self._told = 0  # of those missing
        self._moved = time.monotonic()
        self._over = self._failed = False
        self._given_up = False
        self._change = threading.Condition()
        self.missing = 0
        threading.Thread(target=self._print, name="printer", daemon=True).start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @property
    def behind(self) -> bool:
        """Whether something waits: a picture that is drawn over the last one can be left out."""
        return self._size > 0

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._change:
            if self._failed or self._over:
                return len(text)
            room = (
                self._limit // 2 if self.missing > self._told else self._limit
            )  # once too much, then not at once again
            if self._size and self._size + len(text) > room:
                self.missing += text.count("\n")
            else:
                self._tell()
                self._put(text)
        return len(text)

    def _tell(self) -> None:
        if self.missing > self._told:
            if self._notice:
                self._put(self._notice.format(self.missing - self._told))
            self._told = self.missing

    def _put(self, text: str) -> None:
        self._waiting.append(text)
        self._size += len(text)
        self._change.notify_all()

    def give_up(self) -> None:
        """Let ``drain`` wait no longer. Safe in a signal handler."""
        self._given_up = True

    def drain(self) -> None:
        """Wait until everything is written; nobody has read for PATIENCE seconds; or ``give_up`` is called."""
        with self._change:
            begin = time.monotonic()
            while self._size and not self._given_up:
                self._change.wait(0.1)
                if time.monotonic() - max(begin, self._moved) > PATIENCE:
                    self._given_up = True

    def close(self) -> None:
        """The same; what still waits then is missing, and nothing more is taken."""
        with self._change:
            self._tell()
        self.drain()
        with self._change:
            if not self._over:
                self._over = True
                self.missing += sum(text.count("\n") for text in self._waiting)
                self._change.notify_all()

    def _print(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    if self._over:
                        return
                    self._change.wait()
                text = self._waiting[0]
            try:
                self._write(text.encode(self._encoding, ERRORS))
            except OSError:  # the reader is gone, the terminal is, the disk is full
                self._failed = True
            with self._change:
                self._waiting.popleft()
                self._size -= len(text)
                if self._failed:
                    self._waiting.clear()
                    self._size = 0
                elif not self._waiting and not self._over:
                    self._tell()
                self._change.notify_all()
            if self._failed:
                return

    def _write(self, data: bytes) -> None:
        while data:
            try:
                written = os.write(self._fd, data[:PIECE])
            except BlockingIOError:
                select.select([], [self._fd], [])
                continue
            data = data[written:]
            self._moved = time.monotonic()


@contextlib.contextmanager
def printing(stream: TextIO, limit: int = LIMIT, notice: str = "") -> Iterator[TextIO]:
    """A stream that nobody waits for in place of one; the same where that is no file of the system (a test's)."""
    try:
        stream.flush()
        printer = Printer(stream, limit, notice)
    except (OSError, ValueError, AttributeError, RuntimeError):  # the last where no thread can be had
        yield stream
        return
    try:
        yield printer  # type: ignore[misc]
    finally:
        printer.close()
