"""Whether what was acknowledged stays in effect: a change that something overwrites a moment later is none.

Of a parameter that only we move, any other value says so. Of one that the script moves too, the next two reports do:
from the first to the second it goes as the script moves it, and from there back to the moment of the change it comes
either from the new value or from the old one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Change(NamedTuple):
    """A parameter that was set, as acknowledged."""

    revision: int
    step: int
    old: Any
    new: Any
    moves: bool
    """Whether the script moves it by itself, too."""


class Lost(NamedTuple):
    """A change that is not in effect any more."""

    name: str
    change: Change
    step: int
    found: Any


class Persistence:
    """The values in force, and which of them are not what they were set to."""

    UNUSED = 2  # evaluations without a step of its optimizer, after which a change is not in effect

    def __init__(self) -> None:
        self._used: dict[str, tuple[Change, int, int]] = {}  # with the optimizer's steps then, and evaluations since
        self._changes: dict[str, Change] = {}
        self._first: dict[str, tuple[int, Any]] = {}  # what a moving one was at the first report after its change
        self.recent = False
        """Whether the next report matters: most steps need no look."""

    def changed(self, name: str, change: Change) -> None:
        """A parameter was set; what was known of it before does not count any more."""
        self._changes[name] = change
        self._first.pop(name, None)
        self.recent = True

    def used(self, name: str, change: Change, steps: int) -> None:
        """A value of an optimizer was set that has made so many steps; it is in effect in the next one. Of one that has
        made none yet, or whose steps nobody sees, nothing can be said."""
        if steps:
            _, then, evaluations = self._used.get(name, (change, steps, 0))
            self._used[name] = change, steps, evaluations if then == steps else 0  # the one before was not used either

    def unused(self, step: int, get: Callable[[str], tuple[int, Any]]) -> Iterator[Lost]:
        """At an evaluation: the changes whose optimizer has not made a step since. ``get`` gives the optimizer's steps,
        and the value that the script itself has there."""
        for name, (change, steps, evaluations) in list(self._used.items()):
            try:
                now, own = get(name)
            except ValueError:  # its groups are gone
                continue
            if now > steps:
                del self._used[name]
            elif step > change.step:
                self._used[name] = change, steps, evaluations + 1
                if evaluations + 1 >= self.UNUSED:
                    del self._used[name]
                    yield Lost(name, change, step, own)

    def look(self, step: int, get: Callable[[str], Any]) -> Iterator[Lost]:
        """The changes that did not last, each once. ``get`` gives the value in effect at ``step``."""
        self.recent = False
        for name, change in list(self._changes.items()):
            if step <= change.step:
                self.recent = True
                continue
            found = get(name)
            if not change.moves:
                if found != change.new:
                    del self._changes[name]
                    yield Lost(name, change, step, found)
                continue
            if name not in self._first:
                self._first[name] = (step, found)
            if step <= self._first[name][0]:
                self.recent = True
                continue
            there, first = self._first.pop(name)
            del self._changes[name]
            if returned(change.old, change.new, first, found):
                yield Lost(name, change, there, first)


def returned(old: Any, new: Any, first: Any, second: Any) -> bool:
    """Whether a value that was set from ``old`` to ``new`` and then reported as ``first`` and ``second`` had gone back.

    False for what is no number, and where the change was too small to tell.
    """
    values = (old, new, first, second)
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values) or old == new:
        return bool(first == old != new)
    if not all(map(math.isfinite, values)):
        return False
    if min(values) > 0:  # a schedule multiplies
        old, new, first, second = map(math.log, values)
    begun = 2 * first - second  # where it stood right after the change
    return bool(abs(begun - old) < abs(begun - new))
