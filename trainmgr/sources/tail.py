"""A file that somebody else writes, line by line: it may come late, grow, be cut short, or be written anew."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from trainmgr.sources.lines import Line, Lines

PIECE = 256 * 1024  # bytes that are read at once
MARK = 128  # bytes at the beginning, and before the place that was read to, by which a file is known again


class Tail:
    """What is new in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = Lines()
        self._offset = 0
        self._marks: list[tuple[int, bytes]] = []  # places in what was read, and what stood there
        self._state: tuple[int, ...] = ()  # of the file, as it was read last

    def look(self) -> tuple[bool, list[Line]]:
        """Whether the file was written anew since the last look, and the lines that are new: of a new file all."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:  # not there yet, or for a moment
            return False, []
        try:
            return self._read(fd)
        except OSError:  # a folder, or a network in between: it is looked at again
            return False, []
        finally:
            os.close(fd)

    def _read(self, fd: int) -> tuple[bool, list[Line]]:
        status = os.fstat(fd)
        state = (status.st_ino, status.st_dev, status.st_size, status.st_mtime_ns)
        if state == self._state or not stat.S_ISREG(status.st_mode):
            return False, []
        same = all(self._reads(fd, place) == mark for place, mark in self._marks)
        written_over = self._state[:3] == state[:3] and status.st_size == self._offset  # what is new is no longer
        anew = bool(self._state) and (not same or written_over or self._state[:2] != state[:2])
        if anew:
            self._lines, self._offset = Lines(), 0
        found: list[Line] = []
        with contextlib.suppress(OSError):  # what was read so far counts all the same
            while piece := os.pread(fd, PIECE, self._offset):
                self._offset += len(piece)
                found += self._lines.feed(piece)
            self._marks = [(place, self._reads(fd, place)) for place in (0, max(0, self._offset - MARK))]
            self._state = state
        return anew, found

    def _reads(self, fd: int, place: int) -> bytes:
        """What stands at a place, as far as was read."""
        return os.pread(fd, min(MARK, self._offset - place), place)

    def rest(self) -> list[Line]:
        """A last line that was not ended."""
        return self._lines.rest()
