"""The step of the whole run that a line is of: as it says, counted on where it begins again, or counted."""

from __future__ import annotations

from trainmgr.sources import figures
from trainmgr.sources.record import Record


class Clock:
    """Steps that never go back.

    A place that is smaller than the one before, of the same kind of line, is of a counter that begins again, with each
    epoch for one: it is counted on from there. A place that is no whole number (0.5 epochs) counts as one more, and so
    do all after it. A line without a place is of the step that the run is at, or one more where no line has any.
    """

    def __init__(self) -> None:
        self.step = 0
        self.said: list[str] = []  # what somebody should know of how it is counted, not said yet
        self._base = 0
        self._last: dict[int, int] = {}  # the place of each kind of line since the counter began
        self._counts = False
        self._again = False

    def at(self, record: Record) -> int:
        """The step of a line."""
        place = figures.whole(record.place)
        if record.place is not None and place is None and not self._counts:
            self._counts = True
            self.said.append(f"a step is {record.place:g}, which counts no steps: lines are counted instead")
        if self._counts and record.place is not None:
            self.step += 1
        elif place is not None:
            self._go(record.kind, place)
        elif record.counted:
            self.step += 1
        return self.step

    def _go(self, kind: int, place: int) -> None:
        last = self._last.get(kind)
        if last is not None and place < last:
            self._base = self.step + (place == 0)
            self._last.clear()
            if not self._again:
                self._again = True
                self.said.append(f"the step goes back from {last} to {place}: it is counted on, as of epochs")
        self._last[kind] = place
        self.step = max(self.step, self._base + place)
