"""Telemetry as it comes: complete lines of a growing file, as records. The only user of watchdog."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from trainmgr.base.files import Tail
from trainmgr.contract.protocol import MAX_LINE, Telemetry, Unreadable, parse_telemetry

Item = Telemetry | Unreadable


class Feed:
    """Reads the records that are new; remembers how far, and the SHA-256 of what was read.

    ``records`` may be left after any record, and raises OSError where the file cannot be read: the next call goes on
    behind the last record that was handed out, which is where ``offset`` and ``digest()`` are.
    """

    def __init__(self, path: Path) -> None:
        self.tail = Tail(path, MAX_LINE)

    @property
    def offset(self) -> int:
        return self.tail.offset

    def digest(self) -> str:
        return self.tail.digest()

    def records(self, until: int | None = None) -> Iterator[Item]:
        """Everything complete that was not read yet, up to the byte offset ``until`` if there is one."""
        for line in self.tail.lines(until):
            yield parse_telemetry(line)


logging.getLogger("watchdog").setLevel(logging.CRITICAL)  # it complains of events that arrive while it stops


class _Handler(FileSystemEventHandler):
    def __init__(self, name: str, notify: Callable[[], None]) -> None:
        self._name = name
        self._notify = notify

    def on_modified(self, event: FileSystemEvent) -> None:
        # Never on "opened" or "closed": our own reading would wake us for ever.
        if str(event.src_path).endswith(self._name):
            self._notify()


class Watcher:
    """Calls ``notify`` from another thread when a file changes.

    File systems without events (NFS, CIFS, FUSE) never call; whoever waits must also look now and then by itself.
    """

    def __init__(self, path: Path, notify: Callable[[], None]) -> None:
        self._handler, self._folder = _Handler(path.name, notify), str(path.parent)
        self._observer: BaseObserver | None = None
        self.alive = False

    def __enter__(self) -> Self:
        # Out of inotify watches, descriptors or threads: polling alone is slower, not worse.
        try:
            self._observer = Observer()
            self._observer.schedule(self._handler, self._folder)
            self._observer.start()
            self.alive = True
        except (OSError, RuntimeError):
            with contextlib.suppress(OSError, RuntimeError):
                if self._observer is not None:
                    self._observer.unschedule_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.alive and self._observer is not None:
            with contextlib.suppress(OSError):
                self._observer.stop()
                self._observer.join(timeout=5)
