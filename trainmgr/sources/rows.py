"""Rows of a CSV file, and JSON objects, as numbers by their names."""

from __future__ import annotations

import csv
import json
from array import array
from collections.abc import Iterator
from typing import Any, Protocol

from trainmgr.sources import figures

Numbers = dict[str, float]
SEPARATOR = "."  # between the names of nested objects
DEEPEST = 8  # objects in objects
_SPELLED = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}  # JSON has none of them


class Table(Protocol):
    """Makes numbers of lines."""

    def read(self, text: str) -> Numbers | None:
        """The numbers of a line; None where it is no row."""
        ...

    def anew(self) -> None:
        """The lines begin again with the first one."""
        ...


class Csv:
    """Lines under a header. Before the header, anything may stand; one that comes again counts from there on."""

    def __init__(self) -> None:
        self._header: list[str] = []
        self._delimiter = ","

    def anew(self) -> None:
        self._header = []

    def read(self, text: str) -> Numbers | None:
        if text.startswith("#"):
            return None
        delimiter = self._delimiter if len(self._header) > 1 else max(",;\t", key=text.count)
        try:
            cells = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter))]
        except csv.Error:
            return None
        numbers = [_number(cell) for cell in cells]
        if all(cells[1:]) and any(cells) and not any(number is not None for number in numbers):  # one has no first name
            self._header, self._delimiter = cells, delimiter
            return None
        if len(self._header) == 1 < len(cells):  # that was a title
            return None
        pairs = zip(self._header, numbers, strict=False)
        return {name: number for name, number in pairs if name and number is not None}


class JsonLines:
    """One object a line; nested ones are ``outer.inner``. What is no number is left out, and lines that are no objects
    are, too: a script may print what it likes in between."""

    def anew(self) -> None:
        """Nothing is known of earlier lines."""

    def read(self, text: str) -> Numbers | None:
        try:
            found = json.loads(text) if text.lstrip().startswith("{") else None
        except (ValueError, RecursionError):
            return None
        return dict(_flat(found, "")) if isinstance(found, dict) else None


class Unseen:
    """Rows that were not there before, of a file that may be written anew with the same rows and more columns."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known = array("q")  # a digest of each row, in order
        self._place = 0
        self._stale = 0  # rows that were there before the script was started

    def settle(self) -> None:
        """What was read so far is of an earlier run: nothing of it counts."""
        self._stale = self._place

    def anew(self) -> None:
        """The file begins again; what was in it before the script has written anything is another run's."""
        self._table.anew()
        if len(self._known) <= self._stale:
            self._known, self._stale = array("q"), 0
        self._place = 0

    def read(self, text: str) -> Numbers | None:
        """The numbers of a row; None where it is none, or a known one."""
        row = self._table.read(text)
        if row is None:
            return None
        digest = hash(repr(sorted((name, float(number)) for name, number in row.items())))
        self._place += 1
        if self._place <= len(self._known):
            if self._known[self._place - 1] == digest:
                return None
            del self._known[self._place - 1 :]  # another training from here on
            self._stale = min(self._stale, self._place - 1)
        self._known.append(digest)
        return row


def _number(cell: str) -> float | None:
    """A cell as a number; None where it is empty, or is none."""
    try:
        return figures.value(cell) if cell and "_" not in cell else None
    except ValueError:
        return None


def _flat(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict) and depth < DEEPEST:
        for key, item in value.items():
            yield from _flat(item, f"{name}{SEPARATOR}{key}" if name else str(key), depth + 1)
    elif isinstance(value, str) and value in _SPELLED:
        yield name, float(_SPELLED[value])
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
