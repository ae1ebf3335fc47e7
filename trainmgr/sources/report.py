"""What lines say, reported as steps and evaluations of a Workload."""

from __future__ import annotations

from trainmgr.sources.clock import Clock
from trainmgr.sources.lines import Line
from trainmgr.sources.reader import Reader
from trainmgr.sources.reading import Reading
from trainmgr.sources.record import Record
from trainmgr.workload import Workload

EARLY = 200  # lines after which it is said that none of them has matched
SHOWN, WIDTH = 3, 100  # lines that are shown then, and characters of each
NAMED, MAX_SEEN = 12, 64  # names of numbers in a sentence, and that are kept


class Report:
    """Takes lines in, one after the other. Nothing is reported any more after a stop: the run ended there."""

    def __init__(self, workload: Workload, reading: Reading, reader: Reader) -> None:
        self._workload, self._reader = workload, reader
        self._objective, self._counterpart = reading.objective, reading.counterpart
        self._clock = Clock()
        self._stepped = -1  # the last step that was reported
        self._told: set[str] = set()  # what was reported of it
        self._last: float | None = None  # the objective at the last evaluation
        self._sum, self._count = 0.0, 0  # of the counterpart, over the training steps since then
        self._lines = self._matched = 0
        self._first: list[str] = []  # lines that say nothing to us
        self._names: dict[str, None] = {}  # of the numbers that were seen

    @property
    def step(self) -> int:
        """The last one that was reported."""
        return max(0, self._stepped)

    def line(self, line: Line) -> bool:
        """Take a line in; whether it says something."""
        self._lines += 1
        record = self._reader.read(line)
        if record is None:
            if len(self._first) < SHOWN:
                self._first.append(line.text.strip()[:WIDTH])
            if self._lines == EARLY and not self._matched and (unused := self._reader.unused()):
                self._warn(f"{' and '.join(unused)}: nothing was found in the first {EARLY} lines, {self._shown()}")
            return False
        self._matched += 1
        if not self._workload.stopping:
            self._take(record)
        return True

    def look(self) -> None:
        """Between two lines: carry out what waits in the control file. A replay does so before the next step."""
        self._workload.boundary(self.step, "checkpoint")

    def ended(self) -> None:
        """Say what was looked for in vain."""
        for unused in self._reader.unused():
            what = f"found nothing in {self._lines} lines, {self._shown()}" if self._lines else "found no lines"
            self._warn(f"{unused} {what}")
        if self._matched and self._objective not in self._names:
            names = list(self._names)
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            self._warn(f"no line had the objective {self._objective}; found: {', '.join(names[:NAMED])}{more}")

    def _take(self, record: Record) -> None:
        workload, before = self._workload, self.step
        step = self._clock.at(record)
        while self._clock.said:
            workload.log("info", self._clock.said.pop(0))
        if step > before:
            workload.boundary(before, "checkpoint")
            if workload.stopping:
                return
            self._told.clear()
        metrics = dict(record.metrics)
        if len(self._names) < MAX_SEEN:
            self._names.update(dict.fromkeys(metrics))
        if record.redrawn and metrics.get(self._objective) == self._last is not None:
            del metrics[self._objective]
        if self._objective in metrics:
            self._evaluation(step, metrics)
        else:
            self._training(step, metrics)

    def _training(self, step: int, metrics: dict[str, float]) -> None:
        fresh = {name: value for name, value in metrics.items() if name not in self._told}
        if step == self._stepped and not fresh:  # a bar that is drawn again
            return
        if self._counterpart in fresh:
            self._sum, self._count = self._sum + fresh[self._counterpart], self._count + 1
        self._told.update(fresh)
        self._stepped = step
        self._workload.step(step, fresh)

    def _evaluation(self, step: int, metrics: dict[str, float]) -> None:
        if step > self._stepped:
            self._stepped = step
            self._workload.step(step, {})
            if self._workload.stopping:
                return
        if self._counterpart is not None and self._counterpart not in metrics and self._count:
            metrics[self._counterpart] = self._sum / self._count
        self._sum, self._count, self._last = 0.0, 0, metrics[self._objective]
        self._workload.eval(step, metrics)

    def _shown(self) -> str:
        return "the first of them: " + " | ".join(self._first) if self._first else "of which all were something else"

    def _warn(self, message: str) -> None:
        self._workload.log("warning", message)
