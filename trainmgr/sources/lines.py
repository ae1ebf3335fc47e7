"""Bytes as they come, as lines of text: ended by a line break or redrawn, without what colours them."""

from __future__ import annotations

import re
from typing import NamedTuple

MAX_LINE = 64 * 1024  # bytes: of a longer line the rest is left out
_END = re.compile(rb"[\r\n\b]")
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


class Line(NamedTuple):
    """One line, without its end."""

    text: str
    redrawn: bool = False
    """Whether it is written over, as a progress bar is: it says again what it said before."""


class Lines:
    """Complete lines of a stream that comes in pieces. A carriage return and a backspace end one, too."""

    def __init__(self) -> None:
        self._rest = b""
        self._long = False  # whether what comes is of a line that is too long

    def feed(self, data: bytes) -> list[Line]:
        """The lines that are complete with this piece; empty ones are none."""
        found, place, data = [], 0, self._rest + data
        for end in _END.finditer(data, len(self._rest)):
            if not self._long and (text := _text(data[place : end.start()])):
                found.append(Line(text, end[0] != b"\n"))
            self._long, place = False, end.end()
        self._rest = data[place:]
        if len(self._rest) > MAX_LINE:
            if not self._long:
                found.append(Line(_text(self._rest[:MAX_LINE])))
            self._rest, self._long = b"", True
        return found

    def rest(self) -> list[Line]:
        """What the stream has ended with, without a line break."""
        rest, self._rest = b"" if self._long else self._rest, b""
        return [Line(text)] if (text := _text(rest)) else []


def _text(data: bytes) -> str:
    text = _ESCAPES.sub("", data[:MAX_LINE].decode(errors="replace"))
    return text if text.strip() else ""
