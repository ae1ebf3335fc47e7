"""Numbers as a person reads them. Pure."""

from __future__ import annotations

LONG = 1e9  # seconds


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss; in hours alone beyond LONG."""
    if not seconds < LONG:
        return f"{seconds / 3600:.3g} h"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def steps(count: int) -> str:
    """1 step, 2,000 steps."""
    return f"{count:,} step{'s' * (count != 1)}"
