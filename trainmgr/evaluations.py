"""An evaluation, and what training did since the one before. Values, no code that decides."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field, replace
from statistics import median

NORMS = 64  # gradient norms in the running median
SPIKE = 10.0  # a gradient norm above this many times that is an outlier
USUAL = 8  # gradient norms before there is one


@dataclass
class Window:
    """One training metric between two evaluations."""

    count: int = 0
    total: float = 0.0
    high: float = -math.inf
    last: float = math.nan
    non_finite: int = 0

    def add(self, value: float) -> None:
        self.last = value
        if math.isfinite(value):
            self.count += 1
            self.total += value
            self.high = max(self.high, value)
        else:
            self.non_finite += 1

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

    def add(self, value: float) -> None:
        self.count += 1
        self.outlying += len(self.recent) >= USUAL and value > SPIKE * median(self.recent)
        self.recent.append(value)

    def restart(self) -> None:
        """Count anew. What is usual stays."""
        self.count = self.outlying = 0

    @property
    def spikes(self) -> float:
        """The share of outliers; 0 where there was no norm."""
        return self.outlying / self.count if self.count else 0.0


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
