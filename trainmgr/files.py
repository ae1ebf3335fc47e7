"""Files that survive crashes: replaced in one step, appended in whole lines, read in whole lines."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` so that a reader sees the old content or the new, and a crash leaves one of the two."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
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
        self._hash = hashlib.sha256()
        self._inode: int | None = None
        self._last = b""
        self._over = 0  # bytes behind the offset that are not read again: the beginning of a line that is too long
        self._begin = b""  # what of it is handed out
        self._ahead = self._hash  # the hash with these bytes

    def digest(self) -> str:
        return self._hash.hexdigest()

    def rest(self) -> bytes:
        """What stands behind the complete lines that were handed out."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read()
        except FileNotFoundError:
            return b""

    def lines(self, until: int | None = None) -> Iterator[bytes]:
        """The complete lines that are there now, each with its line break; with ``until``, none beyond that offset."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                position = self.offset + self._over
                if status.st_size < position or (self._inode is not None and status.st_ino != self._inode):
                    self.truncated = True
                file.seek(position - len(self._last))
                if self.truncated or file.read(len(self._last)) != self._last:
                    self.truncated = True
                    return
                self._inode = status.st_ino
                rest = b""
                while chunk := file.read(self.CHUNK if until is None else min(self.CHUNK, max(0, until - file.tell()))):
                    *complete, rest = (rest + chunk).split(b"\n")
                    for line in complete:
                        yield self._complete(line + b"\n")
                    if self._over or (self._limit is not None and len(rest) > self._limit):
                        self._take(rest)
                        rest = b""
        except FileNotFoundError:
            self.truncated |= self._inode is not None

    def _take(self, data: bytes) -> None:
        """Read on in a line."""
        if not self._over:
            self._begin, self._last, self._ahead = data[: self._limit], b"", self._hash.copy()
        self._over += len(data)
        self._last = (self._last + data)[-self.LAST :]
        self._ahead.update(data)

    def _complete(self, data: bytes) -> bytes:
        """Read a line to its end, which ``data`` is; what is handed out of it."""
        self._take(data)
        size, self._over = self._over, 0
        self.offset += size
        self._hash = self._ahead
        return data if self._limit is None or size <= self._limit else self._begin + b"\n"


_KINDS = (
    (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)  # fmt: skip


def open_regular(path: Path) -> io.FileIO:
    """Open a file for reading, without a buffer. Never waits, whatever is there instead of a file.

    Raises FileNotFoundError; another OSError where it is no regular file, also at the end of links.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = next((words for known, words in _KINDS if known(mode)), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, where a file belongs", str(path))
    return os.fdopen(fd, "rb", buffering=0)


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
