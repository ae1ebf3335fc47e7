"""Tables that are printed after the tests."""

from __future__ import annotations

from collections.abc import Callable

Row = Callable[..., None]
TABLES: dict[str, list[tuple[str, ...]]] = {}
