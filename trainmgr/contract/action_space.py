"""What may be changed, how far, and how far at once. Pure."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainmgr.base.wire import Lenient, Name, Value, Whole, quoted

Boundary = Literal["step", "eval", "checkpoint"]
ZERO_RATIO_BASE = 1e-3  # a ratio limit at value 0 counts from this fraction of the range, or 0 could never be left
MUCH_TRUST = 0.5  # above this a parameter may be switched off
_SLACK = 1e-9  # relative; 3e-3 * 0.1 is not exactly 3e-4
_ROUNDED = 1e-6  # relative; a bound of 1e-4 that went through float32 is a little less


class Parameter(Lenient):
    """One thing that the workload lets be changed."""

    name: Name
    """Printable; what managers and the control file call it."""
    type: Literal["float", "int", "bool", "choice"]
    low: float | Whole | None = None
    """Smallest value (float and int)."""
    high: float | Whole | None = None
    """Largest value (float and int)."""
    choices: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = None
    """All values (choice)."""
    scale: Literal["linear", "log"] = "linear"
    """Whether differences or ratios are what counts."""
    value: Value
    """The value in effect when the record was written."""
    boundary: Boundary = "step"
    """The coarsest moment a change waits for: any step, the next evaluation, or the next checkpoint."""
    max_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest factor upwards in one change."""
    min_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    """Smallest factor in one change; 1 / max_ratio when absent."""
    max_delta: Annotated[float, Field(gt=0)] | None = None
    """Largest difference in one change."""
    off: float | None = None
    """One more allowed value, outside [low, high], that switches the mechanism off; reachable from everywhere."""
    group: str = "other"
    """optimizer, regularization, loss weight, exploration, reward, data, other."""
    description: str = ""
    scheduled: bool = False
    """The workload itself moves the value too, as a learning-rate scheduler does: then that it moves is no breach."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """What everything below relies on."""
        problem = self._contradiction()
        if problem:
            raise ValueError(f"{quoted(self.name)}: {problem}")
        return self

    def _contradiction(self) -> str | None:
        if not self.name.isprintable():
            return "a name has printable characters only"
        if self.type == "bool":
            return None if isinstance(self.value, bool) else "the value of a switch is true or false"
        if self.type == "choice":
            return (
                None if self.choices and isinstance(self.value, str) else "a choice needs choices and a text as value"
            )
        numbers = (self.low, self.high, self.value)
        if any(isinstance(n, bool | str) or n is None for n in numbers):
            return f"{self.type} needs low, high and value as numbers"
        if self.type == "int" and any(type(n) is not int for n in numbers):
            return "low, high and value of an int are whole numbers"
        assert self.low is not None
        assert self.high is not None
        if self.low > self.high:
            return f"low {self.low:g} is above high {self.high:g}"
        if self.scale == "log" and self.low <= 0:
            return f"a log scale needs low > 0, not {self.low:g}"
        if self.off is not None and (self.low <= self.off <= self.high or (self.type == "int" and self.off % 1)):
            return f"off = {self.off:g} must lie outside [{self.low:g}, {self.high:g}] and be of the same type"
        return None

    def objection(self, value: object) -> str | None:
        """Why ``value`` is not one that this parameter can have, or None. NaN, infinity and wrong types never are."""
        if self.type == "choice":
            if isinstance(value, str) and value in (self.choices or []):
                return None
            return f"{self.name} = {quoted(value)} is not one of {', '.join(self.choices or [])}"
        if self.type == "bool":
            return None if isinstance(value, bool) else f"{self.name} = {quoted(value)} is not true or false"
        wanted = (int,) if self.type == "int" else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            return f"{self.name} = {quoted(value)} is not of type {self.type}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{self.name} = {value!r} is not finite"
        assert self.low is not None
        assert self.high is not None
        slack = _ROUNDED if self.type == "float" else 0
        inside = self.low - slack * abs(self.low) <= value <= self.high + slack * abs(self.high)
        if (self.off is not None and value == self.off) or inside:
            return None
        also = "" if self.off is None else f" or {self.off:g}"
        return f"{self.name} = {_shown(value)} is outside [{self.low:g}, {self.high:g}]{also}"

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
            up = self.max_ratio if self.max_ratio is not None else math.inf
            down = self.min_ratio if self.min_ratio is not None else 1 / up
            base = ZERO_RATIO_BASE * max(abs(low), abs(high))
            if current > 0:
                low, high = max(low, current * down), min(high, current * up)
            elif current < 0:
                low, high = max(low, current * up), min(high, current * down)
            elif base:
                low, high = max(low, -base * up), min(high, base * up)
        if self.max_delta is not None:
            high = min(high, current + self.max_delta)
            low = max(low, current - self.max_delta)
        return min(low, float(self.high)), max(high, float(self.low))

    def too_far(self, value: Value, current: Value) -> str | None:
        """Why going from ``current`` to ``value`` at once is too much, or None."""
        reach = self.reach(current)
        if reach is None or isinstance(value, str) or (self.off is not None and value == self.off):
            return None
        low, high = reach
        if low - _SLACK * abs(low) <= value <= high + _SLACK * abs(high):
            return None
        return f"{self.name} = {value:g} is further than one change from {_shown(current)} may go: [{low:g}, {high:g}]"

    def clip(self, value: float, current: Value) -> Value:
        """The value nearest to ``value`` (finite) that one change from ``current`` reaches."""
        reach = self.reach(current)
        if reach is None:
            return value
        if self.off is not None and value == self.off:
            return int(value) if self.type == "int" else value
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
        if self.type == "int":  # inwards
            low, high = math.ceil(low) if low is not None else None, math.floor(high) if high is not None else None
        own_least = 1 / self.max_ratio if self.min_ratio is None and self.max_ratio is not None else self.min_ratio
        update = {
            "low": self.low if low is None else max(self.low, low),
            "high": self.high if high is None else min(self.high, high),
            "max_ratio": _least(self.max_ratio, max_ratio),
            "min_ratio": _most(own_least, min_ratio) if min_ratio is not None else self.min_ratio,
            "max_delta": _least(self.max_delta, max_delta),
        }
        return self.model_copy(update=update)

    @property
    def sized(self) -> bool:
        """Whether a change from the value in effect has a size that can be limited."""
        return self.type in ("float", "int") and not isinstance(self.value, str) and self.value != self.off

    def trusted(self, trust: float) -> Parameter:
        """The same parameter with the reach of one change from its value narrowed to this trust, from 0 to 1.

        A factor is taken to the power of it, a difference times it; where none was declared, it counts from the range.
        A whole number may always move by one. What has no size stays, but ``off`` is out of reach below MUCH_TRUST.
        """
        if trust >= 1 or not self.sized:
            return self
        assert self.low is not None
        assert self.high is not None
        now, low, high = float(self.value), float(self.low), float(self.high)
        least = 1.0 if self.type == "int" else 0.0
        up, down, delta = self.max_ratio, self.min_ratio, self.max_delta
        if self.scale == "log" or up is not None or down is not None:
            widest = high / low if low > 0 else math.inf
            up = min(math.inf if up is None else up, widest)
            down = max(1 / up if down is None else down, 1 / widest)
            step = least / abs(now) if now else 0.0
            up, down = max(up**trust, min(up, 1 + step)), min(down**trust, max(down, 1 - step))
        if delta is not None or up is None or math.isinf(up) or not down:
            widest = high - low if delta is None else min(delta, high - low)
            delta = min(widest, max(least, trust * widest))
        return self.model_copy(
            update={
                "max_ratio": None if up is None or math.isinf(up) else up,
                "min_ratio": down or None,
                "max_delta": delta or None,
                "off": self.off if trust > MUCH_TRUST else None,
            }
        )


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


def _shown(value: Value) -> str:
    return quoted(value) if isinstance(value, str) or abs(value) > 1e300 else f"{value:g}"


def _least(a: float | None, b: float | None) -> float | None:
    given = [x for x in (a, b) if x is not None]
    return min(given) if given else None


def _most(a: float | None, b: float | None) -> float | None:
    given = [x for x in (a, b) if x is not None]
    return max(given) if given else None
