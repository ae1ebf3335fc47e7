"""What one line says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """The numbers of one line."""

    metrics: dict[str, float]
    place: float | None = None
    """The step that it names, or the epoch where no line names steps; None where it names none."""
    kind: int = 0
    """Which of the patterns it matches: steps of one kind are of one counter."""
    counted: bool = False
    """Whether it counts as one step, since no line names any."""
    redrawn: bool = False
    """Whether it is a progress bar, which says again what it said before."""
