"""Which metrics are numbers, were numbers, or never were: what a value that is not finite says of a run. Pure.

It need not be a divergence. A mean return is NaN until the first episode has ended, a loss scaler skips the steps whose
gradients overflow, a batch without a sample of one task has no loss for it: none of that is in the weights. What is in
the weights stays: a metric was finite and is not for several reports in a row, more than it ever took to come back.
Weights that are not finite spare no loss, so one loss that is finite later speaks for all of them, and so does the
objective, which is what counts. Metrics other than losses, gradient norms and the objective may be NaN for reasons of
their own; there the objective tells.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from trainmgr.base.wire import MAX_NAME, parts

LOSS = 2  # reports in a row
GRADIENT = 8  # a loss scaler that halves its scale at every overflow is done sooner
KEPT = 64  # metrics
LOSSES = frozenset(("loss", "losses", "nll", "bce", "ce", "mse"))  # as parts of a name
GRADIENTS = frozenset(("grad", "grads", "gradient", "gradients", "gradnorm"))


@dataclass(slots=True)
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
    since: int = 0
    """When the first of the missing ones was reported, ..."""
    fine: int = 0
    """... and the last finite one, in records."""
    undone: int = 0
    """Values that were missing before a rollback which has not made it finite yet: then it is no matter of weights."""

    def add(self, value: float, now: int = 0) -> None:
        if math.isfinite(value):
            if self.missing:
                self.longest = max(self.longest, self.missing + self.undone)
                self.missing = 0
            self.known, self.undone, self.fine = True, 0, now
        else:
            self.since = self.since if self.missing else now
            self.missing += 1

    def roll_back(self) -> None:
        """What was lost with the weights of before is to be seen anew."""
        if self.known:
            self.undone, self.missing = self.undone + self.missing, 0

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
class Witness:
    """When the objective was measured, in records: it speaks for the weights."""

    value: float | None = None
    """The last finite one."""
    first: int | None = None
    """When it was finite first, ..."""
    moved: int = 0
    """... when it last was another one than before, ..."""
    last: int = 0
    """... and when it was finite last."""

    def add(self, value: float, now: int) -> None:
        if math.isfinite(value):
            self.first = now if self.first is None else self.first
            self.moved = now if self.value not in (None, value) else self.moved
            self.value, self.last = value, now

    def vouches(self, since: int) -> bool:
        """Whether weights are sound although something is missing ``since`` then: the objective was finite later.

        Where it was not known before, one figure is not enough: an accuracy is finite whatever the weights are, but of
        weights that are not finite it is always the same.
        """
        return self.last >= since and self.first is not None and (self.first < since or self.moved >= since)


@dataclass
class Finiteness:
    """Of the metrics of training that tell of the weights, and of the objective and its counterpart."""

    steps: dict[str, Reports] = field(default_factory=dict)
    """Metrics of training by their names."""
    evals: dict[str, Reports] = field(default_factory=dict)
    """The objective and its counterpart by theirs."""
    counterpart: str | None = None
    witness: Witness = field(default_factory=Witness)
    records: int = 0

    def step(self, metrics: Mapping[str, float]) -> None:
        """Take a step of training in."""
        self.records = now = self.records + 1
        steps = self.steps
        for name, value in metrics.items():
            found = steps.get(name)
            if found is None:
                patience = _patience(name) if len(name) <= MAX_NAME and len(steps) < KEPT else None
                if patience is None:
                    continue
                found = steps[name] = Reports(patience)
            found.add(value, now)

    def evaluate(self, metrics: dict[str, float], objective: str, counterpart: str | None) -> None:
        """Take an evaluation in. The objective is what counts: it is lost at once."""
        self.records += 1
        self.counterpart = counterpart if counterpart != objective else None
        for name, patience in ((objective, 1), (counterpart, LOSS)):
            if name is not None and name in metrics:
                self.evals.setdefault(name, Reports(patience)).add(metrics[name], self.records)
        self.witness.add(metrics.get(objective, math.nan), self.records)

    def roll_back(self) -> None:
        """The weights are others now: what was lost with those of before is to be seen anew."""
        for reports in (*self.steps.values(), *self.evals.values()):
            reports.roll_back()

    def restart(self) -> None:
        """The same for a workload that began again, which may have to wait for its first episode once more."""
        self.roll_back()
        self.evals = {}

    @property
    def lost(self) -> dict[str, int]:
        """What was finite and is not any more: for how many reports. The counterpart never alone: only the objective
        was asked for at every evaluation."""
        sound = max((reports.fine for reports in self._losses()), default=0)
        lost = {
            name: reports.missing
            for name, reports in self.steps.items()
            if reports.lost
            and not (reports.patience == LOSS and sound > reports.since)
            and not self.witness.vouches(reports.since)
        }
        lost |= {name: reports.missing for name, reports in self._goals() if reports.lost}
        return {} if lost.keys() == {self.counterpart} else lost

    @property
    def unmeasured(self) -> dict[str, int]:
        """What never was finite: in how many reports. A loss only where no other one was."""
        known = any(reports.known for reports in self._losses())
        found = {
            name: reports.missing
            for name, reports in self.steps.items()
            if reports.unmeasured and not (reports.patience == LOSS and known)
        }
        return found | {name: reports.missing for name, reports in self._goals() if reports.unmeasured}

    def _losses(self) -> Iterator[Reports]:
        return (reports for reports in self.steps.values() if reports.patience == LOSS)

    def _goals(self) -> Iterator[tuple[str, Reports]]:
        """The objective last: it is what counts, also where a metric of training has its name."""
        return reversed(self.evals.items())


@lru_cache(maxsize=256)
def _patience(name: str) -> int | None:
    """None for a metric that may be NaN for reasons of its own."""
    found = parts(name)
    if found & GRADIENTS:
        return GRADIENT
    return LOSS if found & LOSSES else None
