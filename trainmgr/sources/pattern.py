"""The pattern of a line: text with the names of numbers in braces, ``step {step} .* val {val_loss}``.

A name in braces stands for a number. What is between the braces is a regular expression, so that text stands for itself
but for its special characters, ``\\(`` for one; a space stands for one or more, and there may be any in front of a
number. It is looked for anywhere in the line. A ``{2}`` after something says how often, as in any regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from trainmgr.sources import figures

STEP, EPOCH = "step", "epoch"
MAX_NAME = 64  # characters
LONGEST = 4096  # characters of a line that are looked at
_NAME = re.compile(r"[A-Za-z_][\w./@%-]*")
_COUNT = re.compile(r"\{\d*,?\d*\}")  # how often, in a regular expression
_SPACE = re.compile(r"(\s+)(\.\*\s+)?")
_RULES = f"A name begins with a letter and goes on with letters, digits and _ . / - @ %, {MAX_NAME} at most"
_VARIABLE = frozenset(".*+?)]}|^$")  # what ends something of which nobody knows the last character


class SourceError(ValueError):
    """What was asked for cannot be: what was found, what is allowed, and what to do."""


class _Part(NamedTuple):
    """A piece of a pattern: the name of a number, or text as a regular expression."""

    name: str
    text: str
    fixed: bool
    """Whether it ends in a character that stands for itself."""


class Pattern:
    """Finds numbers in lines."""

    def __init__(self, text: str) -> None:
        """Raises SourceError for what is no pattern."""
        self.text = text
        parts = list(_parts(text))
        self.names = tuple(part.name for part in parts if part.name)
        if not self.names:
            raise SourceError(
                f"--read {text!r} names no number. Put a name in braces where one stands: "
                "'step {step} loss {loss}'."
            )
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise SourceError(f"--read {text!r} has {{{twice}}} twice. Give each number a name of its own.")
        try:
            self._expression = re.compile(_joined(parts, text))
        except re.error as error:
            raise SourceError(
                f"--read {text!r} is no regular expression: {error.msg}. Text between the braces is one; write a "
                r"special character that stands for itself with a backslash: \( \[ \. \* \+ \? \|"
            ) from None

    def read(self, line: str) -> dict[str, float]:
        """The numbers of a line by their names; none where it does not match."""
        found = self._expression.search(line[:LONGEST])
        if found is None:
            return {}
        groups = (found[f"n{index}"] for index in range(len(self.names)))
        return {name: figures.value(group) for name, group in zip(self.names, groups, strict=True) if group is not None}


def _joined(parts: list[_Part], text: str) -> str:
    """The regular expression of a pattern."""
    found, index = [], 0
    for before, part, after in zip([None, *parts], parts, [*parts[1:], None], strict=False):
        if not part.name:
            found.append(part.text)
            continue
        if before is not None and before.name:
            raise SourceError(
                f"--read {text!r} has nothing between {{{before.name}}} and {{{part.name}}}. Put what stands there."
            )
        apart = before is None or not before.fixed
        grouped = after is None or not after.text.startswith(",")
        found.append(figures.expression(f"n{index}", apart=apart, grouped=grouped))
        index += 1
    return "".join(found)


def _parts(text: str) -> Iterator[_Part]:
    """What a pattern is made of, in order; pieces of text between two names are one."""
    piece, fixed, place, within = "", False, 0, False
    while place < len(text):
        character = text[place]
        if character == "\\":
            escaped = text[place : place + 2]
            piece, fixed, place = piece + escaped, len(escaped) == 2 and not escaped[1].isalnum(), place + 2
        elif within or character == "[":
            within = character != "]"
            piece, fixed, place = piece + character, False, place + 1
        elif character == "{" and (count := _COUNT.match(text, place)) and count[0] != "{}":
            piece, fixed, place = piece + count[0], False, count.end()
        elif character == "{":
            end = text.find("}", place)
            name = text[place + 1 : end] if end > 0 else text[place + 1 :]
            if end < 0 or not _NAME.fullmatch(name) or len(name) > MAX_NAME:
                raise SourceError(
                    f"--read {text!r} has {text[place : end + 1 or None]!r}, which names no number. {_RULES}; a "
                    r"brace that stands for itself is \{."
                )
            if piece:
                yield _Part("", piece, fixed)
            yield _Part(name, "", fixed=True)
            piece, fixed, place = "", False, end + 1
        elif character.isspace():
            found = _SPACE.match(text, place)
            assert found is not None
            counted = text[found.end() : found.end() + 1] in {*"*+?"} or _COUNT.match(text, found.end())
            around = r"\s+(?:.*\s)?" if found[2] else r"\s+"  # there may be nothing between
            piece, fixed, place = piece + (found[0] if counted else around), not counted, found.end()
        else:
            piece, fixed, place = piece + character, character not in _VARIABLE, place + 1
    if piece:
        yield _Part("", piece, fixed)
