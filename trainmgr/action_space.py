"""What may be changed, how far, and how far at once. Pure."""

from __future__ import annotations

import math
from typing import Literal

from trainmgr.wire import Lenient, Value

Boundary = Literal["step", "eval", "checkpoint"]
ZERO_RATIO_BASE = 1e-3  # a ratio limit at value 0 counts from this fraction of `high`, or 0 could never be left
_SLACK = 1e-9  # relative; 3e-3 * 0.1 is not exactly 3e-4


class Parameter(Lenient):
    """One thing that the workload lets be changed."""

    name: str
    type: Literal["float", "int", "bool", "choice"]
    low: float | int | None = None
    """Smallest value (float and int)."""
    high: float | int | None = None
    """Largest value (float and int)."""
    choices: list[str] | None = None
    """All values (choice)."""
    scale: Literal["linear", "log"] = "linear"
    """Whether differences or ratios are what counts."""
    value: Value
    """The value in effect when the record was written."""
    boundary: Boundary = "step"
    """The coarsest moment a change waits for: any step, the next evaluation, or the next checkpoint."""
    max_ratio: float | None = None
    """Largest factor upwards in one change."""
    min_ratio: float | None = None
    """Smallest factor in one change; 1 / max_ratio when absent."""
    max_delta: float | None = None
    """Largest difference in one change."""
    off: float | None = None
    """One more allowed value, outside [low, high], that switches the mechanism off; reachable from everywhere."""
    group: str = "other"
    """optimizer, regularization, loss weight, exploration, reward, data, other."""
    description: str = ""
    scheduled: bool = False
    """The workload itself moves the value too (a learning-rate scheduler), so that drift is no breach."""

    def objection(self, value: object) -> str | None:
        """Why ``value`` is not one that this parameter can have, or None. NaN, infinity and wrong types never are."""
        if self.type == "choice":
            if isinstance(value, str) and value in (self.choices or []):
                return None
            return f"{self.name} = {value!r} is not one of {', '.join(self.choices or [])}"
        if self.type == "bool":
            return None if isinstance(value, bool) else f"{self.name} = {value!r} is not true or false"
        wanted = (int,) if self.type == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            return f"{self.name} = {value!r} is not of type {self.type}"
        if not math.isfinite(value):
            return f"{self.name} = {value!r} is not finite"
        assert self.low is not None
        assert self.high is not None
        if (self.off is not None and value == self.off) or self.low <= value <= self.high:
            return None
        also = "" if self.off is None else f" or {self.off:g}"
        return f"{self.name} = {value:g} is outside [{self.low:g}, {self.high:g}]{also}"

    def reach(self, current: Value) -> tuple[float, float] | None:
        """The range that one change from ``current`` may end in; None for choices and switches (everywhere).

        Always inside [low, high] and never empty. ``off`` is reachable besides.
        """
        if self.type in ("bool", "choice"):
            return None
        assert self.low is not None
        assert self.high is not None
        low, high = float(self.low), float(self.high)
        if isinstance(current, str) or (self.off is not None and current == self.off):
            return low, high
        if self.max_ratio is not None or self.min_ratio is not None:
            base = abs(current) or ZERO_RATIO_BASE * high
            up = self.max_ratio if self.max_ratio is not None else math.inf
            down = self.min_ratio if self.min_ratio is not None else 1 / up
            high = min(high, base * up)
            low = max(low, base * down if current else low)
        if self.max_delta is not None:
            high = min(high, current + self.max_delta)
            low = max(low, current - self.max_delta)
        low = min(low, float(self.high))
        high = max(high, float(self.low))
        return (low, high) if low <= high else (high, high) if current > self.high else (low, low)

    def too_far(self, value: Value, current: Value) -> str | None:
        """Why going from ``current`` to ``value`` at once is too much, or None."""
        reach = self.reach(current)
        if reach is None or isinstance(value, str) or (self.off is not None and value == self.off):
            return None
        low, high = reach
        if low - _SLACK * abs(low) <= value <= high + _SLACK * abs(high):
            return None
        return f"{self.name} = {value:g} is further than one change from {current:g} may go: [{low:g}, {high:g}]"

    def clip(self, value: float, current: Value) -> Value:
        """The value nearest to ``value`` (finite) that one change from ``current`` reaches."""
        reach = self.reach(current)
        if reach is None or (self.off is not None and value == self.off):
            return value
        low, high = reach
        if self.type == "int":
            return int(min(max(round(value), math.ceil(low)), math.floor(high)))
        return min(max(value, low), high)

    def narrowed(
        self,
        low: float | None = None,
        high: float | None = None,
        max_ratio: float | None = None,
        min_ratio: float | None = None,
        max_delta: float | None = None,
    ) -> Parameter:
        """The same parameter within tighter limits; a wider one leaves what was declared."""
        if self.type in ("bool", "choice"):
            return self
        assert self.low is not None
        assert self.high is not None
        kind = int if self.type == "int" else float
        update = {
            "low": self.low if low is None else max(self.low, kind(low)),
            "high": self.high if high is None else min(self.high, kind(high)),
            "max_ratio": _least(self.max_ratio, max_ratio),
            "min_ratio": _most(self.min_ratio, min_ratio),
            "max_delta": _least(self.max_delta, max_delta),
        }
        return self.model_copy(update=update)


class ActionSpace:
    """The parameters of one run by name, and the commands that the workload offers."""

    def __init__(self, parameters: list[Parameter], commands: list[str]) -> None:
        self.parameters = {parameter.name: parameter for parameter in parameters}
        self.commands = tuple(commands)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ActionSpace) and self.parameters == other.parameters and self.commands == other.commands
        )

    __hash__ = None  # type: ignore[assignment]


def _least(a: float | None, b: float | None) -> float | None:
    given = [x for x in (a, b) if x is not None]
    return min(given) if given else None


def _most(a: float | None, b: float | None) -> float | None:
    given = [x for x in (a, b) if x is not None]
    return max(given) if given else None
