"""A clock that stands still."""

from __future__ import annotations


class FakeClock:
    """Seconds since 1970 that pass only when told."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
