"""A change that is being watched. Values, no code that decides."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from trainmgr.base.wire import Value
from trainmgr.contract.forecast import Forecast

MOST = 32  # revisions that one remembers
ROUNDING = 1e-6  # of a value


@dataclass(frozen=True)
class Trial:
    """What is being watched together: one decision; up to edition 1, all between the same two evaluations."""

    step: int
    """At which the first took effect."""
    forecast: Forecast
    revisions: tuple[int, ...]
    decisions: tuple[str, ...]
    before: dict[str, Value]
    """The values that they replaced."""
    shares: dict[str, float]
    """The same for numbers, as a share of what replaced them: for what the script itself has moved on since."""
    rollback: bool
    undone: int = 0
    """Steps of training that rollbacks among them undid."""
    challenge: bool = False
    """Whether it is the recipe of the start that is on trial."""
    until: int | None = None
    """The step before which it is not judged to have brought nothing; None: it has the usual number of evaluations."""

    def joined(self, other: Trial) -> Trial:
        """With later changes of the same moment."""
        return replace(
            self,
            revisions=(*self.revisions, *other.revisions)[-MOST:],
            decisions=(*self.decisions, *other.decisions)[-MOST:],
            before={**other.before, **self.before},
            shares=multiplied(self.shares, other.shares),
            rollback=self.rollback or other.rollback,
            undone=self.undone + other.undone,
            until=max((step for step in (self.until, other.until) if step is not None), default=None),
        )

    def without(self, names: Iterable[str]) -> Trial:
        """Without what it changed of these parameters."""
        gone = set(names)
        return replace(
            self,
            before={name: value for name, value in self.before.items() if name not in gone},
            shares={name: share for name, share in self.shares.items() if name not in gone},
        )


def multiplied(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    """The shares of two changes, one after the other."""
    return {name: first.get(name, 1.0) * second.get(name, 1.0) for name in {**first, **second}}


def same(one: Value, other: Value) -> bool:
    """Whether two values differ by rounding at most."""
    if any(isinstance(value, bool | str) for value in (one, other)):
        return type(one) is type(other) and one == other
    return math.isclose(one, other, rel_tol=ROUNDING)  # type: ignore[arg-type]


def share_of(old: Value, new: Value) -> float | None:
    """``old`` as a multiple of ``new``; None where one of them is no number, or there is no such multiple."""
    if any(isinstance(value, bool | str) for value in (old, new)) or not new:
        return None
    return float(old) / float(new)
