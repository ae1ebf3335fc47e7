"""The course of a run, as it is compared with others: in bounded size, and nothing that a decision rests on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from trainmgr.base.wire import MAX_NAME
from trainmgr.contract import protocol

POINTS = 120  # of a curve, beside its end; of a longer one every second is left out
SEEN = 256  # names


@dataclass
class Course:
    """What the evaluations said, one after the other."""

    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, objective) of each ``every``-th evaluation that had it, from the first on."""
    every: int = 1
    passed: int = 0
    """Evaluations that had it since the last point."""
    last: tuple[int, float] | None = None
    """Of them all."""
    objectives: str | None = None
    """Digest of the objective at all evaluations that had it, those among them that a restart went back behind."""
    figures: str | None = None
    """Digest of all evaluations, and of the last step before each."""
    seen: dict[str, None] = field(default_factory=dict)
    """The first SEEN metrics of steps and evaluations whose names are not too long."""

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The points, and the last evaluation where it is none of them."""
        return self.points if self.last is None or self.points[-1:] == [self.last] else [*self.points, self.last]

    def see(self, name: str) -> None:
        """A metric was reported while the run went on."""
        if len(self.seen) < SEEN and len(name) <= MAX_NAME:
            self.seen[name] = None

    def unseen(self, names: list[str]) -> list[str]:
        """Those of the names that were never reported before, as far as that is known."""
        known = len(self.seen) < SEEN
        return [name for name in names if known and len(name) <= MAX_NAME and name not in self.seen]

    def evaluated(self, trained: protocol.Step | None, record: protocol.Eval, objective: float | None) -> None:
        """An evaluation after the step ``trained``, if there was one since that before; without an objective: None."""
        for each in (trained, record):
            if each is not None:
                self.figures = _chained(self.figures, f"{each.step} {sorted(each.metrics.items())}")
        for name in record.metrics:
            self.see(name)
        if objective is None:
            return
        self.last = (record.step, objective)
        self.objectives = _chained(self.objectives, f"{self.last}")
        self.passed += 1
        if not self.points or self.passed == self.every:
            self.points, self.passed = [*self.points, self.last], 0
            if len(self.points) > POINTS:  # which is even: this one stays
                self.points, self.every = self.points[::2], 2 * self.every

    def back_to(self, step: int) -> None:
        """What was measured beyond the step is of weights that are no more. The next evaluation is a point."""
        self.points = [point for point in self.points if point[0] <= step]
        self.last = self.points[-1] if self.points else None
        self.passed = self.every - 1


def _chained(before: str | None, text: str) -> str:
    return hashlib.sha256(f"{before or ''}\n{text}".encode()).hexdigest()[:16]
