"""A recorded run, played back in the terminal."""

from __future__ import annotations

import time

from trainmgr.base.paths import RunPaths
from trainmgr.log import history
from trainmgr.terminal import consoles, screen, tables

LONGEST = 1.0  # seconds without anything new


def play(paths: RunPaths, speed: float) -> None:
    """Its telemetry and its log in the order of their times, ``speed`` times as fast, and then its last words.

    Raises RecordError where its files do not hold together.
    """
    before: float | None = None
    with screen.LiveView(consoles.narration) as view:

        def show(moment: history.Moment) -> None:
            nonlocal before
            if before is not None:
                time.sleep(min(LONGEST, max(0.0, (moment.event.t - before) / speed)))
            before = moment.event.t
            view.tick(moment.now)

        now = history.latest(paths, show)
    tables.print_closing(consoles.data, now)
