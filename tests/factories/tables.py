"""Tables that are printed after the tests: the fixture ``row``."""

from __future__ import annotations

from collections.abc import Callable

Row = Callable[..., None]
ROW = "row"  # a property of a test's report: the title of its table, and the cells
