"""An evaluation, what training did since the one before, and which of many are kept. No code that decides."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from trainmgr.base.wire import Value

NORMS = 64  # gradient norms in the running median
SPIKE = 10.0  # a gradient norm above this many times that is an outlier
USUAL = 8  # gradient norms before there is one

T = TypeVar("T")


@dataclass(slots=True)
class Window:
    """One training metric between two evaluations."""

    count: int = 0
    total: float = 0.0
    high: float = -math.inf
    last: float = math.nan
    non_finite: int = 0

    def add(self, value: float) -> bool:
        """Take a value in; whether it is finite."""
        self.last = value
        if not math.isfinite(value):
            self.non_finite += 1
            return False
        self.count += 1
        self.total += value
        if value > self.high:
            self.high = value
        return True

    @property
    def mean(self) -> float:
        """NaN where nothing finite was seen."""
        return self.total / self.count if self.count else math.nan


@dataclass
class Norms:
    """The gradient norms of late, and how many since the last evaluation are outliers."""

    recent: deque[float] = field(default_factory=lambda: deque(maxlen=NORMS))
    count: int = 0
    outlying: int = 0
    _sorted: list[float] = field(default_factory=list, repr=False, compare=False)
    """The same, in order: the median of every record by sorting would be half of all the time that folding takes."""

    def add(self, value: float) -> None:
        """Take a finite value in."""
        recent, ordered = self.recent, self._sorted
        self.count += 1
        if len(recent) >= USUAL and value > SPIKE * _middle(ordered):
            self.outlying += 1
        if len(recent) == NORMS:
            del ordered[bisect_left(ordered, recent[0])]
        recent.append(value)
        insort(ordered, value)

    def restart(self) -> None:
        """Count anew. What is usual stays."""
        self.count = self.outlying = 0

    @property
    def spikes(self) -> float:
        """The share of outliers; 0 where there was no norm."""
        return self.outlying / self.count if self.count else 0.0


def _middle(ordered: list[float]) -> float:
    """The median of what is in order."""
    half, odd = divmod(len(ordered), 2)
    return ordered[half] if odd else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class Evaluation:
    """One evaluation with what training did since the one before."""

    step: int
    metrics: dict[str, float]
    means: dict[str, float]
    """Mean of each training metric since the evaluation before."""
    spikes: float
    """Share of the steps since then with an outlying gradient norm."""
    non_finite: int
    """Non-finite values since then."""
    recipe: dict[str, Value] = field(default_factory=dict)
    """The values in effect at it."""

    def joined(self, other: Evaluation) -> Evaluation:
        """With what else was measured of the same weights."""
        return replace(
            self,
            metrics={**self.metrics, **other.metrics},
            means={**other.means, **self.means},
            non_finite=self.non_finite + other.non_finite,
        )

    def without(self, gone: set[str]) -> Evaluation:
        """Without these metrics."""
        return replace(self, metrics=_without(self.metrics, gone), means=_without(self.means, gone))


def _without(metrics: dict[str, float], gone: set[str]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in gone}


def thinned(rows: Sequence[T], most: int, recent: int) -> list[T]:
    """At most ``most`` of the rows, in their order: the last ``recent`` whole, and of those before every second, as
    often as it takes. ``recent`` is at least 1 and at most ``most``; where it is less, the first row stays.
    """
    kept = list(rows)
    while len(kept) > most:
        kept = [*(kept[:-recent:2] if recent < most else []), *kept[-recent:]]
    return kept
