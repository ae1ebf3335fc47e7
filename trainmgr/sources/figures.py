"""Numbers as programs print them: 100, 1,234, -0.5, 1e-3, nan, inf, tensor(0.5)."""

from __future__ import annotations

LARGEST = 2**53  # from here on a float cannot count steps
_SHORT = 15  # digits that an int and a float both have exactly
_POWER = r"(?:[eE][+-]?\d+)?"
_NONE = r"(?:[nN][aA][nN]|[iI]nf(?:inity)?|INF)(?![A-Za-z])"
_APART = (  # what may not come right before a number, where anything may: another part of it, or its sign
    r"(?<!\d)(?<!\d\.)(?<![\s(\[=:,]\.)(?<!\d,)(?<![\d.][eE])(?<![\d.][eE][+-])(?<!^[+-])(?<![\s(\[=:,][+-])"
)
_WRAPPED = r"(?:(?:tensor|array|np\.float\d+|np\.int\d+)\(\s*)?"  # what Python prints around one


def expression(group: str, *, apart: bool, grouped: bool) -> str:
    """A regular expression for a number, as the group of this name: it matches all of one or nothing, never a part.

    ``apart``: anything may come before it, so that its beginning must be found. ``grouped``: 1,234 is one number, and a
    comma before other digits (0,53) makes it none; else a comma is what comes between two numbers.
    """
    digits, end = (r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)", r"(?!,\d)") if grouped else (r"\d+", "")
    finite = rf"{digits}\.\d*+{_POWER}(?!\.\d)|{digits}{_POWER}{end}(?!\d|\.\d)|\.\d+{_POWER}"
    found, before = (rf"{finite}|(?<![A-Za-z]){_NONE}", _APART) if apart else (rf"{finite}|{_NONE}", "")
    return rf"\s*{_WRAPPED}{before}(?P<{group}>(?>[+-]?(?:{found})))"


def value(text: str) -> float | int:
    """The number that such a text is. Raises ValueError for what is none."""
    plain = text.strip().replace(",", "")
    if plain.isdecimal() and len(plain) <= _SHORT:
        return int(plain)
    return float(plain)


def whole(number: float | int | None) -> int | None:
    """A number that can count steps, as an int; None for what cannot."""
    if number is None or not 0 <= number < LARGEST or number != int(number):
        return None
    return int(number)
