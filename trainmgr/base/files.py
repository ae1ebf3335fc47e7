"""Files that survive crashes: replaced in one step, appended in whole lines, read in whole lines."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` so that a reader sees the old content or the new, and a crash leaves one of the two."""
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


class Appender:
    """Appends whole lines to one file and makes each durable before it returns."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._torn: int | None = None  # where the file is to end, as long as it could not be cut there

    def append(self, line: bytes) -> None:
        """Write ``line``, which ends with a line break, or raise OSError with nothing of it in the file.

        What of it could not be taken out again is taken out before the next line is written.
        """
        if self._torn is not None:
            os.ftruncate(self._fd, self._torn)
            self._torn = None
        before = os.fstat(self._fd).st_size
        try:
            left = line
            while left:  # a disk that takes a part says why it takes no more when it gets the rest
                left = left[os.write(self._fd, left) :]
            os.fdatasync(self._fd)
        except OSError:
            self._torn = before
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, before)
                self._torn = None
            raise

    def cut(self, end: int) -> int:
        """Cut off what stands behind ``end`` bytes; how many bytes that were."""
        behind = max(0, os.fstat(self._fd).st_size - end)
        if behind:
            os.ftruncate(self._fd, end)
            os.fdatasync(self._fd)
        return behind

    def close(self) -> None:
        os.close(self._fd)


class Tail:
    """Reads the complete lines of a growing file, from a byte offset on; what is torn waits for its rest.

    ``offset`` counts the bytes handed out, ``digest()`` is the SHA-256 of exactly these bytes. A file that became
    shorter than the offset, was removed after something was read, was replaced by another, or no longer has at the
    offset what was handed out last, is reported by ``truncated`` and never read again: the records before it are
    already known.

    Of a line that is longer than ``limit`` bytes only these are handed out, with a line break, and none is read twice:
    an endless line costs no memory, and at the next look no time. What is handed out, ``offset`` and ``digest()``
    follow from the bytes of the file alone, never from when they were looked at.
    """

    CHUNK = 1 << 20
    LAST = 64  # bytes before the offset that must still be there: a file cut short and written anew has others

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        self.offset = 0
        self.truncated = False
        self._limit = limit
        self._lines: list[bytes] = []  # that were read ...
        self._next = 0  # ... how many of them are handed out ...
        self._settled = 0  # ... and how many are in the hash, which is cheaper in blocks
        self._hash = hashlib.sha256()
        self._inode: int | None = None
        self._last = b""
        self._over = 0  # bytes behind the offset that are not read again: the beginning of a line that is too long
        self._begin = b""  # what of it is handed out
        self._ahead = self._hash  # the hash with these bytes

    def digest(self) -> str:
        self._settle()
        return self._hash.hexdigest()

    def rest(self) -> tuple[int, str]:
        """What stands behind the complete lines that were handed out: how many bytes, and their SHA-256; "" for none.

        Raises OSError where it cannot be read.
        """
        size, digest = 0, hashlib.sha256()
        try:
            with open_regular(self.path) as file:
                end = os.fstat(file.fileno()).st_size
                while piece := self._piece(file, self.offset + size, end):
                    digest.update(piece)
                    size += len(piece)
        except FileNotFoundError:
            pass
        return size, digest.hexdigest() if size else ""

    def lines(self, until: int | None = None) -> Iterator[bytes]:
        """The complete lines that are there now, each with its line break; with ``until``, none beyond that offset.

        "Now" is when the file is opened: a writer that is faster than the reader does not keep it for ever. Whoever
        leaves early goes on later with the next line, without reading anything again. Raises OSError where the file
        cannot be read, as often as it is tried; then, too, nothing is lost or doubled.
        """
        with contextlib.ExitStack() as stack:
            file: io.FileIO | None = None
            end = 0
            while True:
                lines = self._lines
                while self._next < len(lines):
                    line = lines[self._next]
                    size = len(line)
                    if until is not None and self.offset + size > until:
                        return
                    self._next += 1
                    self.offset += size
                    yield line if self._limit is None or size <= self._limit else line[: self._limit] + b"\n"
                    if lines is not self._lines:  # somebody else has read on meanwhile
                        break
                else:
                    if until is not None and self.offset >= until:
                        return
                    if file is None:
                        file, end = self._opened(stack)
                    if file is None or not self._fill(file, end):
                        return
                    if self._over:
                        end_of_line = self._to_its_end(file, end if until is None else min(end, until))
                        if end_of_line is None:
                            return
                        yield end_of_line

    def _opened(self, stack: contextlib.ExitStack) -> tuple[io.FileIO | None, int]:
        """The file and its size, where it is still the one that was read before."""
        try:
            file = stack.enter_context(open_regular(self.path))
        except FileNotFoundError:
            self.truncated |= self._inode is not None
            return None, 0
        self._settle()
        status = os.fstat(file.fileno())
        position = self.offset + self._over
        if status.st_size < position or (self._inode is not None and status.st_ino != self._inode):
            self.truncated = True
        if self.truncated or _read_at(file, len(self._last), position - len(self._last)) != self._last:
            self.truncated = True
            return None, 0
        self._inode = status.st_ino
        return file, status.st_size

    def _fill(self, file: io.FileIO, end: int) -> bool:
        """Read on, when everything read was handed out; whether a line, or the beginning of a long one, came of it."""
        if self._over:
            return True
        data = self._piece(file, self.offset, end)
        while (cut := data.rfind(b"\n")) < 0 and (self._limit is None or len(data) <= self._limit):
            more = self._piece(file, self.offset + len(data), end)
            if not more:
                return False
            data += more
        self._settle()
        self._lines, self._next, self._settled = [], 0, 0
        if cut < 0:
            self._begin, self._last, self._ahead = data[: self._limit], b"", self._hash.copy()
            self._take(data)
        else:
            self._lines = io.BytesIO(data[: cut + 1]).readlines()
        return True

    def _to_its_end(self, file: io.FileIO, end: int) -> bytes | None:
        """Read on in a line that is too long; what is handed out of it, once its end is there."""
        while data := self._piece(file, self.offset + self._over, end):
            cut = data.find(b"\n") + 1
            self._take(data[:cut] if cut else data)
            if cut:
                self.offset += self._over
                self._hash, self._over = self._ahead, 0
                return self._begin + b"\n"
        return None

    def _take(self, data: bytes) -> None:
        self._over += len(data)
        self._last = (self._last + data)[-self.LAST :]
        self._ahead.update(data)

    def _piece(self, file: io.FileIO, position: int, end: int) -> bytes:
        return _read_at(file, max(0, min(self.CHUNK, end - position)), position)

    def _settle(self) -> None:
        """Bring the hash up to what is handed out."""
        if self._settled < self._next:
            block = b"".join(self._lines[self._settled : self._next])
            self._hash.update(block)
            self._last = (self._last + block[-self.LAST :])[-self.LAST :]
            self._settled = self._next


def _read_at(file: io.FileIO, size: int, position: int) -> bytes:
    return os.pread(file.fileno(), size, position) if size else b""


_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[io.FileIO]:
    """A file that is open for reading, without a buffer. Never waits, whatever is there instead of a file.

    Raises FileNotFoundError; another OSError where it is no regular file, also at the end of links.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:  # a server that has lost it, which may be asked again and again
            raise OSError(error.errno, error.strerror, str(path)) from None
        if not stat.S_ISREG(mode):
            kind = next((words for known, words in _KINDS if known(mode)), "something else")
            raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
        # The descriptor is closed here and nowhere else: a generator that reads and is left half-way may become garbage
        # in a cycle, and the collector would close a file object, with a warning, before the generator that owns it.
        yield io.FileIO(fd, closefd=False)
    finally:
        os.close(fd)


def is_held(path: Path) -> bool | None:
    """Whether a living process writes to a log; None where that cannot be told (no log yet, no locks)."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def read_regular(path: Path, limit: int = 1 << 26) -> bytes:
    """The content of a file of at most ``limit`` bytes. Raises OSError as ``open_regular`` does, and for more."""
    with open_regular(path) as file:
        data = bytearray()
        while len(data) <= limit and (piece := file.read(min(Tail.CHUNK, limit + 1 - len(data)))):
            data += piece
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes", str(path))
    return bytes(data)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
