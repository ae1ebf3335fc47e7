"""An evaluation, and what training did since the one before. Values, no code that decides."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


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
