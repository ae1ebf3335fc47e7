"""Which metrics are numbers, were numbers, or never were: what a value that is not finite says of a run. Pure.

It need not be a divergence. A mean return is NaN until the first episode has ended, a loss scaler skips the steps whose
gradients overflow, one bad batch has one bad loss: nothing of that is in the weights. What is in them stays: a metric
was finite, and is not for several reports in a row, and for more of them than it ever took to come back. Other metrics
than losses, gradient norms and the objective may have reasons of their own, and the objective tells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LOSS = 2  # reports in a row
GRADIENT = 8  # a loss scaler that halves its scale at every overflow is done sooner
KEPT = 64  # metrics


@dataclass
class Reports:
    """What was reported of one metric."""

    patience: int
    """So many values in a row that are not finite mean that the metric is lost, if it ever was finite."""
    known: bool = False
    """Whether it ever was finite."""
    missing: int = 0
    """Values that were not finite since it last was, or since its first report."""
    longest: int = 0
    """The most of them in a row after which it was finite again."""

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.known, self.longest, self.missing = True, max(self.longest, self.missing), 0
        else:
            self.missing += 1

    @property
    def lost(self) -> bool:
        """Whether it was finite and is not any more."""
        habit = self.longest if self.patience > 1 else 0
        return self.known and self.missing >= self.patience and self.missing > habit

    @property
    def unmeasured(self) -> bool:
        """Whether it never was finite, in enough reports to say so."""
        return not self.known and self.missing >= self.patience


@dataclass
class Finiteness:
    """Of the metrics of training that tell of the weights, and of the objective and its counterpart."""

    steps: dict[str, Reports] = field(default_factory=dict)
    """Metrics of training by their names."""
    evals: dict[str, Reports] = field(default_factory=dict)
    """The objective and its counterpart by theirs."""

    def step(self, name: str, value: float) -> None:
        """Take a metric of training in."""
        found = self.steps.get(name)
        if found is None:
            patience = _patience(name)
            if patience is None or len(self.steps) >= KEPT:
                return
            found = self.steps[name] = Reports(patience)
        found.add(value)

    def evaluate(self, metrics: dict[str, float], objective: str, counterpart: str | None) -> None:
        """Take an evaluation in. The objective is what counts: it is lost at once."""
        for name, patience in ((objective, 1), (counterpart, LOSS)):
            if name is not None and name in metrics:
                self.evals.setdefault(name, Reports(patience)).add(metrics[name])

    def roll_back(self) -> None:
        """The weights are others now: what was lost with those of before is to be seen anew."""
        for reports in (*self.steps.values(), *self.evals.values()):
            if reports.known:
                reports.missing = 0

    def restart(self) -> None:
        """The same for a workload that began again, which may have to wait for its first episode once more."""
        self.roll_back()
        self.evals = {}

    @property
    def lost(self) -> dict[str, int]:
        """What was finite and is not any more: for how many reports."""
        return {name: reports.missing for name, reports in self._all() if reports.lost}

    @property
    def unmeasured(self) -> dict[str, int]:
        """What never was finite: in how many reports."""
        return {name: reports.missing for name, reports in self._all() if reports.unmeasured}

    def _all(self) -> list[tuple[str, Reports]]:
        """The objective after the rest: of two that have one name it is the one that counts."""
        return [*self.steps.items(), *reversed(self.evals.items())]


def _patience(name: str) -> int | None:
    """None for a metric that may be NaN for reasons of its own."""
    plain = name.lower()
    if "grad" in plain:
        return GRADIENT
    return LOSS if "loss" in plain else None
