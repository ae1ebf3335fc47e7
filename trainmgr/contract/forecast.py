"""Where a series of evaluations was going: the yardstick for what comes after a change. Pure.

A trend to the better is damped (Gardner and McKenzie 1985, https://doi.org/10.1287/mnsc.31.10.1237): learning slows
down by itself. One that gets worse goes on undamped: a change that does not stop an overfitting is not its cause.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from trainmgr.base.wire import Number, Wire

DAMPING = 0.8  # at least: factor on a trend to the better from one evaluation to the next
SPANS = (3, 4, 5)  # evaluations in the lines that must agree on a trend


class Forecast(Wire):
    """What the objective was to be without a change, in its own unit."""

    evals: int
    """Evaluations before the change."""
    level: Number | None
    """Where the objective was; null where nothing finite was measured last, so that nothing can be forecast."""
    slope: Number
    """Its change in one evaluation."""
    damping: Number
    """Factor on that from one evaluation to the next; 1: the trend goes on."""
    noise: Number | None
    """Standard deviation of one evaluation around its neighbours; null before there are four."""
    scale: Number
    """The difference that counts as 100%: declared, else the larger of the absolute best and level."""
    best: Number | None
    """The best objective until then; null before there was any."""

    def at(self, evals: int) -> float | None:
        """The objective to be expected that many evaluations after the change."""
        if self.level is None:
            return None
        return self.level + self.slope * sum(self.damping**i for i in range(1, evals + 1))

    def after(self, evals: int) -> Forecast:
        """The same, as seen that many evaluations later."""
        if self.level is None or evals <= 0:
            return self.model_copy(update={"evals": self.evals + max(0, evals)})
        slope = self.slope * self.damping**evals
        return self.model_copy(update={"evals": self.evals + evals, "level": self.at(evals), "slope": slope})

    def margin(self, tolerance: float, noise_factor: float) -> float:
        """How much worse than that is no harm yet."""
        return max(tolerance * self.scale, noise_factor * (self.noise or 0.0))


def predict(values: Sequence[float], *, evals: int, mode: str, best: float | None, scale: float | None) -> Forecast:
    """The forecast from the objectives of the latest evaluations (NaN where there was none), the last one last.

    The least hopeful reading of them, since it is held against a change: the level is the last value or the end of the
    line through the last five, whichever is worse. A trend is what several lines agree on: to the worse the steepest of
    them, to the better the least steep, no steeper than the last step, and damped the more the more the curve flattens.
    """
    turn = -1.0 if mode == "max" else 1.0
    finite = [turn * value for value in values if math.isfinite(value)]
    level = None
    if values and math.isfinite(values[-1]):
        recent = finite[-SPANS[-1] :]
        trend = slope(recent)
        end = sum(recent) / len(recent) + (trend or 0.0) * (len(recent) - 1) / 2
        level = recent[-1] if trend is None else max(recent[-1], end)
    lines = [s for span in SPANS if len(finite) >= span and (s := slope(finite[-span:])) is not None]
    agreed, damping = 0.0, 1.0
    if lines and min(lines) > 0:
        agreed = max(lines)
    elif lines:
        before, last = finite[-2] - finite[-3], finite[-1] - finite[-2]
        agreed = min(0.0, max(*lines, last))
        damping = min(DAMPING, last / before) if last < 0 and before < 0 else 0.0
    if level is None or not math.isfinite(level + agreed):
        return Forecast(evals=evals, level=None, slope=0.0, damping=1.0, noise=None, scale=0.0, best=best)
    return Forecast(
        evals=evals,
        level=turn * level,
        slope=turn * agreed,
        damping=damping,
        noise=_noise(finite),
        scale=scale or max(abs(best or 0.0), abs(level)),
        best=best,
    )


def _noise(values: Sequence[float]) -> float | None:
    """The noise beyond curvature: of second differences that all have one sign, the least counts, not their median."""
    second = [a - 2 * b + c for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    found = noise(values)
    if found is None or min(second) < 0 < max(second):
        return found
    return _deviation(min(map(abs, second)))


def noise(values: Sequence[float]) -> float | None:
    """Standard deviation of one value around its neighbours: median |second difference| x 1.4826 / sqrt 6.

    A second difference of normal noise has 6 times its variance; 1.4826 makes a median deviation standard.
    """
    if len(values) < 4:
        return None
    second = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return _deviation(median(second))


def _deviation(second: float) -> float:
    return 1.4826 * second / math.sqrt(6)


def rough_noise(values: Sequence[float]) -> float | None:
    """The same by the mean of the second differences instead of their median: of a score that mostly stands still, the
    median says 0. (The mean of the absolute value of normal noise is 0.8 times its deviation.)"""
    if len(values) < 4:
        return None
    second = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return 1.2533 * sum(second) / len(second) / math.sqrt(6)


def slope(values: Sequence[float]) -> float | None:
    """Of the least-squares line, for each value."""
    n = len(values)
    if n < 3:
        return None
    middle, mean = (n - 1) / 2, sum(values) / n  # fmean raises where a sum overflows
    spread = sum((i - middle) ** 2 for i in range(n))
    return sum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread
