"""Words and figures of a prompt. Foreign text is data: quoted, in ASCII, cut short; no line of it looks like ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

from trainmgr.base.wire import MAX_NAME, Value, short

T = TypeVar("T")
NAME = 40  # characters of a foreign name

_PLAIN = re.compile(r"(?!(?:BEGIN|END|DATA)\Z)[A-Za-z_][A-Za-z0-9_./%@-]*")  # not the words of our marks
_PIECE = re.compile(r"[A-Za-z]+|[0-9]|[^\sA-Za-z0-9]|\n| {2,}")


def estimate(text: str) -> int:
    """Tokens of ``text``, on the high side: one for each digit, sign, line end and run of blanks, one for every five
    letters begun, three for what is not ASCII. Tokenizers of current models need fewer for our prompts."""
    count = 0
    for piece in _PIECE.findall(text):
        if piece[0].isalpha() and piece.isascii():
            count += -(-len(piece) // 5)
        else:
            count += 1 if piece.isascii() else 3
    return count


def word(text: str, limit: int = NAME) -> str:
    """A foreign name: as it is where it is an ordinary one, else quoted, in ASCII."""
    return text if len(text) <= limit and _PLAIN.fullmatch(text) else quote(text, limit)


def exact(text: str) -> str | None:
    """A foreign name letter by letter, for whoever must repeat it; None where that takes too long."""
    if len(text) <= MAX_NAME and _PLAIN.fullmatch(text):
        return text
    quoted = _ascii(text)
    return quoted if len(quoted) <= 2 * MAX_NAME + 2 else None


def quote(text: str, limit: int) -> str:
    """Foreign text as one quoted line in ASCII: what looks like another letter is seen to be one."""
    cut = short(text, limit)
    quoted = _ascii(cut)
    while len(quoted) > 2 * limit + 2:  # escapes are long
        cut = cut[: len(cut) // 2]
        quoted = _ascii(cut + "...")
    return quoted


def _ascii(text: str) -> str:
    """JSON, without the sign that fences are made of."""
    return json.dumps(text).replace("`", "\\u0060")


def last(texts: Sequence[T], count: int) -> Sequence[T]:
    return texts[-count:] if count else ()


def step(number: float | None) -> str:
    return "-" if number is None else f"{number:.0f}"


def figure(number: float | None) -> str:
    """Four digits: enough to see a trend."""
    return "-" if number is None else f"{number:.4g}"


def value(of: Value, limit: int = NAME) -> str:
    """A parameter's value, in six digits."""
    if isinstance(of, bool):
        return "true" if of else "false"
    if isinstance(of, str):
        return word(of, limit)
    return f"{of:.6g}" if isinstance(of, float) else str(of)


def limit_of(of: float) -> str:
    """A limit, in all the digits that it has: whoever takes it at its word must not be out of reach."""
    text = value(of)
    return text if float(text) == of else repr(of)


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns under their heads: the first to the left, all others to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        " ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
