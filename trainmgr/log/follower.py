"""Telemetry as the loop has it: a look that fails is tried again, and what cannot be read is said once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from trainmgr.log.telemetry import Feed, Item

BEHIND = 32 << 20  # bytes of telemetry that wait to be read: from here on it is said
AGAIN = 60.0  # seconds in which a disk that fails again is not spoken of again


class Follower:
    """Follows telemetry while it is written. ``fail`` gets the place and the words for what goes wrong."""

    def __init__(self, path: Path, fail: Callable[[str, str], None]) -> None:
        self.feed = Feed(path)
        self.unread = False
        """Whether the last look failed."""
        self.cut_short = False
        """Whether the file is not any more what was read from it."""
        self._path = path
        self._fail = fail
        self._spoken: float | None = None  # when it was said that a look failed
        self._behind = False

    def records(self) -> Iterator[Item]:
        """What is new. A look that fails is no end of anything: the next one begins where this one stopped."""
        self.unread = False
        try:
            yield from self.feed.records()
        except OSError as error:
            self.unread = True
            now = time.monotonic()
            if self._spoken is None or now - self._spoken > AGAIN:
                self._fail("reading", f"telemetry.jsonl cannot be read: {error.strerror}; it is tried again and again")
            self._spoken = now

    def compare(self, step: int) -> None:
        """Say once that the file is not any more what was read of it, which is until ``step``."""
        if self.feed.tail.truncated and not self.cut_short:
            there = os.path.lexists(self._path)
            self.cut("became shorter or was replaced" if there else "was removed", step)

    def cut(self, how: str, step: int) -> None:
        """Nothing more is read from it: say how it came."""
        self.cut_short = True
        self._fail("telemetry", f"telemetry.jsonl {how}; nothing more is read from it, after step {step}")

    def left(self) -> int:
        """Bytes that nobody has read yet."""
        try:
            return max(0, self._path.stat().st_size - self.feed.offset)
        except OSError:
            return 0

    def fall_behind(self, step: int) -> None:
        """Say once that more is written than can be read."""
        left = self.left()
        if left > BEHIND and not self._behind:
            self._behind = True
            self._fail(
                "reading",
                f"records come faster than they can be read: {left >> 20} MiB wait at step {step}; "
                "decisions rest on what was read. Let the script report fewer steps.",
            )

    def torn(self) -> str:
        """The SHA-256 of what stands behind the last line break; "" for nothing, and where it cannot be read."""
        try:
            return self.feed.tail.rest()[1]
        except OSError:
            return ""
