"""Lines of telemetry that are not in the file yet: what a full disk refuses is kept, in bounds, and written first."""

from __future__ import annotations

import errno
import os

MAX_BACKLOG = 8 * 1024 * 1024  # bytes kept while the disk refuses them
MAX_OUTAGES = 16  # of which is spoken


class Backlog:
    """Bytes to append to one file, whole lines but for the rest of a torn one, which comes first."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._refused = ""  # why the disk refuses it, and since when
        self._outages = 0  # times that it began to
        self._dropped = 0  # records for which there was no room since

    def write(self, fd: int, trouble: OSError | None = None) -> OSError | None:
        """Write what is there; the error that prevents it. ``trouble`` says that the disk need not be asked."""
        if trouble is not None:
            return trouble
        try:
            while self.data:
                if not (count := os.write(fd, self.data)):
                    return OSError(errno.EIO, "nothing was written")
                del self.data[:count]
        except OSError as error:
            return error
        return None

    def refused(self, error: OSError, step: int) -> str:
        """Take in that a write failed at a step. Returns what is to be said at once of an outage that begins."""
        if len(self.data) > MAX_BACKLOG:
            self._thin()
        if self._refused:
            return ""
        self._outages += 1
        self._refused = f"{error.strerror or error} from step {step} on"
        return f"telemetry cannot be written ({error}); training goes on" if self._outages <= MAX_OUTAGES else ""

    def recovered(self) -> str:
        """What is to be said in the log of an outage that has ended."""
        if not self._refused or self.data:
            return ""
        lost = f"{self._dropped:,} records are lost" if self._dropped else "nothing is lost"
        message = f"telemetry could not be written: {self._refused}; now it can, and {lost}"
        self._refused, self._dropped = "", 0
        return message if self._outages <= MAX_OUTAGES else ""

    def _thin(self) -> None:
        """Drop records of steps, of which there are most: the gap in seq shows how many. Answers to changes are kept.

        The first line is too: it may be the rest of a torn one.
        """
        first, *lines = self.data.splitlines(keepends=True)
        kept = [line for line in lines if b'"event":"step"' not in line]
        if sum(map(len, kept)) > MAX_BACKLOG:
            kept = []
        self._dropped += len(lines) - len(kept)
        self.data[:] = first + b"".join(kept)
