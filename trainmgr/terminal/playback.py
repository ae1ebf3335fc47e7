"""A recorded run, played back in the terminal."""

from __future__ import annotations

import time

from trainmgr.base.paths import RunPaths
from trainmgr.log import history
from trainmgr.readers import replay
from trainmgr.terminal import consoles, screen, tables

LONGEST = 1.0  # seconds without anything new


def play(paths: RunPaths, speed: float) -> None:
    """Its telemetry and its log in the order of their times, ``speed`` times as fast, and then its last words.

    Raises RecordError where its files do not hold together.
    """
    manifest = history.manifest_of(paths)
    with screen.LiveView(manifest, consoles.narration) as view:
        before: float | None = None
        for moment, t in replay.frames(paths):
            if before is not None:
                time.sleep(min(LONGEST, max(0.0, (t - before) / speed)))
            before = t
            view.tick(moment.state, moment.ledger)
    tables.print_closing(consoles.data, *history.latest(paths))
