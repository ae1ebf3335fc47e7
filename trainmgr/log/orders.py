"""The control file as the loop has it: log first, control file second, and what the disk refuses is tried again."""

from __future__ import annotations

from collections.abc import Callable

from trainmgr.base import files
from trainmgr.base.paths import RunPaths
from trainmgr.base.wire import to_json
from trainmgr.contract import events, protocol
from trainmgr.log.journal import Journal


class Orders:
    """Writes one control.json. ``fail`` gets the words for what goes wrong, and the decision."""

    def __init__(self, paths: RunPaths, journal: Journal, fail: Callable[[str, str], None]) -> None:
        self._paths = paths
        self._journal = journal
        self._fail = fail
        self._wanted: protocol.Control | None = None  # what control.json is to hold, as long as it does not
        self._told = 0  # the last revision of which it was said that it cannot be written

    def write(self, event: events.OverrideIssued) -> None:
        """What we issue ourselves: no change may exist that the log cannot explain, so the file waits for the log."""
        self._wanted = event.control
        if self._journal.append(event):
            self.put(event.control)

    def put(self, content: protocol.Control) -> None:
        """What is on record: where the disk refuses it, it is tried again until another one is wanted."""
        self._wanted = content
        try:
            write(self._paths, content)
            self._wanted = None
        except OSError as error:
            if self._told < content.revision:
                self._told = content.revision
                self._fail(f"control.json cannot be written: {error.strerror}", content.decision)

    def again(self) -> None:
        """What the disk has refused is tried again: the log first."""
        if self._journal.flush() and self._wanted is not None:
            self.put(self._wanted)

    def close(self) -> None:
        """Say what was not written any more."""
        if self._wanted is not None and self._told < self._wanted.revision:
            self._fail("control.json was not written any more: nobody is left to read it", self._wanted.decision)


def write(paths: RunPaths, control: protocol.Control) -> None:
    """Replace control.json in one step, readable by its owner only."""
    files.replace(paths.control, to_json(control) + b"\n", mode=0o600)
