"""Text from elsewhere, as each medium may show it. Pure.

What a script, a manager, an endpoint or a file of a run says may hold anything: escape sequences, markup, formulas.
Nothing of it reaches a terminal, a page or a table but through the function of that medium. On a terminal with colours
that is ``markup.quoted``, which goes through ``on_terminal``.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata

LONGEST = 4_000  # characters of one text on a terminal, in a page or in a table
STACKED = 4  # combining marks on one letter: more of them cover the lines around it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
UNSEEN = frozenset(  # what Python calls printable, and nobody sees
    map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x3164, 0xFFA0, *range(0xE0100, 0xE01F0)))
)
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # as spreadsheets know the beginning of one

_ODD = re.compile(r"[^\n -~]")
_MARK = re.compile(r"[\\`*|<~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)")
_BLOCK = re.compile(r"(\d{1,9}(?=[.)])|)([-+#>.)])")


def on_terminal(text: str, most: int = LONGEST) -> str:
    """One line of printable characters: no control characters, marks of direction or line separators."""
    cut = text[: most + 1]
    if not (cut.isascii() and cut.isprintable()):
        cut = _visible(cut)
    return cut if len(cut) <= most else f"{cut[: most - 1]}…"


def on_terminal_in_lines(text: str) -> str:
    """The same for a text of ours that has lines, and quotes others."""
    return "\n".join(map(on_terminal, text.split("\n")))


def _visible(text: str) -> str:
    found, marks = [], 0
    for c in text:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        found.append(c if c.isprintable() and c not in UNSEEN and marks <= STACKED else REPLACEMENT)
    return "".join(found)


def in_json(text: str) -> str:
    """JSON text with what is not printable as escapes, which read as the same values."""
    return text if text.isascii() and "\x7f" not in text else _ODD.sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() and found[0] not in UNSEEN else json.dumps(found[0])[1:-1]


def in_markdown(text: str, *, paragraph: bool = False) -> str:
    """Text in one line that ends no cell and is no emphasis, code, link, image, HTML or entity.

    With ``paragraph`` it begins one, and starts no heading, list or quotation either.
    """
    line = _MARK.sub(_unmarked, on_terminal(" ".join(text.split())))
    return _BLOCK.sub(r"\1\\\2", line, count=1) if paragraph and _BLOCK.match(line) else line


def _unmarked(found: re.Match[str]) -> str:
    return {"<": "&lt;", "&": "&amp;"}.get(found[0], f"\\{found[0]}")


def in_html(text: object) -> str:
    """Content of an element, or of an attribute in quotes; never of a script or a style."""
    return html.escape(on_terminal(str(text)))


def in_csv(value: object) -> object:
    """A cell that no spreadsheet takes for a formula; numbers stay what they are."""
    if not isinstance(value, str):
        return value
    return f"'{on_terminal(value)}" if value.lstrip().startswith(FORMULA) else on_terminal(value)
