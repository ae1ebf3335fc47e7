"""From a line to what it says, by patterns or as a row."""

from __future__ import annotations

from typing import Protocol

from trainmgr.sources.lines import Line
from trainmgr.sources.pattern import EPOCH, STEP, Pattern
from trainmgr.sources.reading import PLACES, Reading
from trainmgr.sources.record import Record
from trainmgr.sources.rows import Csv, JsonLines, Unseen


class Reader(Protocol):
    """Reads line by line."""

    def read(self, line: Line) -> Record | None:
        """What a line says; None for nothing."""
        ...

    def settle(self) -> None:
        """What was read so far is of an earlier run."""
        ...

    def anew(self) -> None:
        """The lines begin again with the first one."""
        ...

    def unused(self) -> list[str]:
        """What has found nothing so far, in words."""
        ...


def reader(reading: Reading) -> Reader:
    return Printed(reading) if reading.patterns else Rows(reading)


class Printed:
    """Lines that match patterns. One that matches several says what all of them find."""

    def __init__(self, reading: Reading) -> None:
        self._patterns = [Pattern(text) for text in reading.patterns]
        self._matched = [False] * len(self._patterns)
        names = {name for pattern in self._patterns for name in pattern.names}
        self._place = next((name for name in (STEP, EPOCH) if name in names - {reading.objective}), None)
        training = [reading.objective not in pattern.names for pattern in self._patterns]
        self._counts = [mine or not any(training) for mine in training]  # where no line has a place

    def read(self, line: Line) -> Record | None:
        metrics: dict[str, float] = {}
        kinds = []
        for kind, pattern in enumerate(self._patterns):
            if numbers := pattern.read(line.text):
                self._matched[kind] = True
                kinds.append(kind)
                metrics = {**numbers, **metrics}
        if not kinds:
            return None
        place = metrics.pop(self._place, None) if self._place else None
        counted = self._place is None and any(self._counts[kind] for kind in kinds)
        return Record(metrics, place, kinds[0], counted, line.redrawn)

    def settle(self) -> None:
        """There is nothing from before."""

    def anew(self) -> None:
        """What is printed does not begin again."""

    def unused(self) -> list[str]:
        return [
            f"--read {pattern.text!r}"
            for pattern, matched in zip(self._patterns, self._matched, strict=True)
            if not matched
        ]


class Rows:
    """Rows of a table. Their step is in the column that was named, else in the first of PLACES that was ever met."""

    def __init__(self, reading: Reading) -> None:
        self._what = f"--csv {reading.csv}" if reading.csv else f"--jsonl {reading.jsonl}"
        self._rows = Unseen(Csv() if reading.csv else JsonLines())
        self._objective = reading.objective
        self._wanted = (reading.step,) if reading.step else PLACES
        self._found = len(self._wanted)  # the place in it of what was met
        self._read = False

    def read(self, line: Line) -> Record | None:
        row = self._rows.read(line.text)
        if not row:
            return None
        self._read = True
        there = (index for index, name in enumerate(self._wanted) if name in row and name != self._objective)
        self._found = min([self._found, *there])
        named = self._wanted[self._found] if self._found < len(self._wanted) else None
        place = row.pop(named, None) if named else None
        return Record(row, place, int(self._objective in row), named is None, line.redrawn)

    def settle(self) -> None:
        self._rows.settle()
        self._read = False

    def anew(self) -> None:
        self._rows.anew()

    def unused(self) -> list[str]:
        return [] if self._read else [self._what]
