"""How much of a snapshot is shown: the table of evaluations gives way first, the changes of the run last."""

from __future__ import annotations

from dataclasses import dataclass

from trainmgr.managers.prompts.words import NAME


@dataclass(frozen=True)
class Detail:
    """One step of it."""

    rows: int
    """Evaluations."""
    columns: int
    """Of their metrics."""
    recipe: int
    """Columns of the recipe beside them."""
    definitions: int
    """Characters of what a metric is, ..."""
    description: int
    """... and of what a parameter is."""
    parts: int
    """Of the last evaluation."""
    texts: int
    """Log lines."""
    reasons: int
    """Why earlier answers were rejected."""
    changes: int
    """Of the run, the last ones one by one."""
    together: int
    """Parameters in each of these."""
    said: int
    """Expectations of changes."""
    parameters: int
    facts: int
    name: int = NAME
    """Characters of a foreign name."""
    reasoning: int = 2000
    """Characters of a reasoner's text that its formatter gets."""


DETAILS = (
    Detail(24, 20, 12, 160, 120, 16, 4, 3, 64, 16, 3, 64, 16),
    Detail(24, 14, 8, 160, 120, 16, 4, 3, 64, 16, 3, 64, 16),
    Detail(24, 10, 8, 160, 120, 16, 4, 3, 64, 16, 3, 64, 16),
    Detail(20, 8, 6, 120, 120, 12, 4, 3, 64, 12, 3, 64, 16),
    Detail(16, 7, 5, 100, 100, 12, 3, 2, 64, 12, 3, 64, 16),
    Detail(12, 6, 4, 80, 80, 8, 3, 2, 64, 8, 3, 64, 16),
    Detail(10, 5, 4, 60, 60, 6, 2, 2, 40, 8, 2, 48, 16),
    Detail(8, 4, 3, 40, 40, 4, 1, 2, 24, 6, 2, 32, 12),
    Detail(6, 3, 2, 0, 24, 0, 1, 1, 12, 4, 1, 24, 8),
    Detail(4, 2, 1, 0, 0, 0, 0, 1, 6, 4, 1, 16, 4, 32, 1200),
    Detail(3, 2, 0, 0, 0, 0, 0, 0, 3, 2, 0, 8, 0, 24, 500),
    Detail(2, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 4, 0, 16, 300),
    Detail(1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 12, 150),
)
