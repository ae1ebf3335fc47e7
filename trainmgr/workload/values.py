"""Numbers as scripts have them, of numpy and torch too, and as the protocol has them: never by guesswork.

Nothing of other libraries is imported: what behaves like one number counts as one.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any

MAX_NAME = 64  # characters of a parameter, a choice or a metric
MAX_FACTS = 16  # that a script declares of its run
MAX_INT = 2**53 - 1  # the whole numbers that every reader of JSON has exactly
SLACK = 1e-6  # relative: numbers no further apart are one, as 1e-4 and what float32 makes of it are
NON_FINITE = ("NaN", "Infinity", "-Infinity")  # how the protocol spells what JSON does not have
_OF_KIND = {"float": float, "int": int, "bool": bool}
_OWN = frozenset((bool, int, float, str, bytes, bytearray, type(None)))


def scalar(value: Any) -> Any:
    """One number or switch of another library as Python's own. Text and None stay, and what is masked is NaN; raises
    for what is not one value."""
    if type(value) in _OWN:
        return value
    if callable(getattr(value, "filled", None)) and value.mask:  # of numpy.ma: what is there was not measured
        return math.nan
    if callable(item := getattr(value, "item", None)):  # numpy, torch, jax: of an array, only if it has one element
        value = item()
    if isinstance(value, (bool, int, float, str)):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return float(value)


def number(value: Any) -> Any:
    """A metric as the protocol has it: an int or a float, true as 1, infinite where no float is as large.

    Raises TypeError for what is none.
    """
    if type(value) is float or (isinstance(value, str) and value in NON_FINITE):
        return value
    try:
        found = scalar(value)
    except Exception:  # other libraries raise what they like (torch: RuntimeError)
        found = None
    if not isinstance(found, (int, float)):
        raise TypeError(f"{described(value)} is no number")
    if isinstance(found, int) and abs(found) >= 1 << 1023:
        return math.inf if found > 0 else -math.inf
    return int(found) if isinstance(found, bool) else found


def real(value: Any) -> float:
    """The same as a float, as the supervisor reads it: NaN where it is none."""
    try:
        return float(number(value))
    except TypeError:
        return math.nan


def figure(value: Any, name: str) -> Any:
    """A number that was declared; raises TypeError for what is none."""
    try:
        found = number(value)
    except TypeError:
        found = None
    if not isinstance(found, (int, float)):
        raise TypeError(f"{name} is {described(value)}; it must be a number")
    return found


def whole(value: Any, name: str, most: int | None = MAX_INT, least: int | None = None) -> int:
    """A whole number as an int: those of numpy and torch and floats like 100.0 too.

    Raises TypeError for what is no number, and ValueError for one that is not whole, beyond ``most`` or under ``least``
    (None: any).
    """
    if type(value) is not int:
        try:
            found = scalar(value)
        except Exception:
            found = None
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            raise TypeError(f"{name} is {described(value)}; it must be a whole number")
        if isinstance(found, float) and not found.is_integer():
            raise ValueError(f"{name} is {found}; it must be a whole number")
        value = int(found)
    if most is not None and abs(value) > most:
        raise ValueError(f"{name} is beyond {most}, the largest whole number that JSON has exactly")
    if least is not None and value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
    return int(value)


def plain(value: Any, kind: str) -> Any:
    """The value of a parameter as the protocol has it, by the type of the parameter; as it is where that cannot be."""
    if kind == "choice":
        return label(value) if isinstance(value, str) else value
    if type(value) is _OF_KIND[kind]:
        return value
    try:
        found = scalar(value)
    except Exception:
        return value
    if kind == "bool":
        return bool(found) if found in (0, 1) else found
    if kind == "int" and isinstance(found, float) and found.is_integer():
        return int(found)
    return number(found) if kind == "float" and type(found) is int else found


def same(one: Any, other: Any) -> bool:
    """Whether two values of a parameter are the same one, as far as it can be told when one went through float32."""
    if isinstance(one, float) or isinstance(other, float):
        return math.isclose(one, other, rel_tol=SLACK)
    return bool(one == other)


def text(value: Any, name: str) -> str:
    """A text or a path that was declared; raises TypeError for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} is {described(value)}; it must be text")
    return label(value)


def label(name: Any) -> str:
    """A name as text: a member of ``class Names(str, Enum)`` is what it holds, and not "Names.LOSS"."""
    return str.__str__(name) if isinstance(name, str) else str(name)


def named(name: Any, what: str) -> str:
    """The name of a metric; raises ValueError for one that the supervisor would not follow."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        found = f"{name[:MAX_NAME]!r}..., {len(name)} characters" if isinstance(name, str) else described(name)
        raise ValueError(f"{what} is {found}; it must be text of 1 to {MAX_NAME} characters")
    return label(name)


def facts(given: Any) -> dict[str, Any]:
    """What a script declares of its run, as the protocol has it; raises TypeError or ValueError for what cannot be."""
    found = {} if given is None else entries(given)
    if found is None:
        raise TypeError(f"facts is {described(given)}; it must be a dictionary of names and values")
    if len(found) > MAX_FACTS:
        raise ValueError(f"there are {len(found)} facts; at most {MAX_FACTS} are told to a manager")
    return {named(name, "the name of a fact"): _fact(name, value) for name, value in found.items()}


def _fact(name: str, value: Any) -> Any:
    try:
        found = scalar(value)
    except Exception:
        found = None
    if isinstance(found, str) and len(found) <= MAX_NAME:
        return label(found)
    if isinstance(found, str):
        raise ValueError(f"the fact {name!r} is a text of {len(found)} characters; at most {MAX_NAME} are told")
    if not isinstance(found, (bool, int, float)):
        raise TypeError(f"the fact {name!r} is {described(value)}; it must be a number, true or false, or short text")
    if not math.isfinite(found) or (isinstance(found, int) and abs(found) > MAX_INT):
        raise ValueError(f"the fact {name!r} is {described(value)}; it must be a number that JSON has exactly")
    return found


def entries(metrics: Any) -> dict[Any, Any] | None:
    """What a mapping holds, by name; None for what is none, whatever it is."""
    try:
        return dict(metrics.items())
    except Exception:
        return None


def taken(metrics: Any, take: Callable[[Any], Any] | None = None) -> Any:
    """The same mapping with each number as it is now, whatever is written into it later."""
    given = entries(metrics)
    return metrics if given is None else {name: (take or now)(value) for name, value in given.items()}


def now(value: Any) -> Any:
    """The number that it is now; what is none stays."""
    try:
        return number(value)
    except TypeError:
        return value


def described(value: Any) -> str:
    """What something is, in few words, whatever it is."""
    name = type(value).__name__
    kind = f"a{'n' * (name[0] in 'aeiouAEIOU')} {name}"
    try:
        if value is None or isinstance(value, (bool, int, float)):
            return repr(value)[:40]
        if isinstance(value, str):
            return f"the text {value[:40]!r}"
        if (shape := getattr(value, "shape", None)) is not None:
            return f"{kind} of shape {tuple(shape)}"
        return f"{kind} of {len(value)}" if isinstance(value, Sized) else kind
    except Exception:
        return kind


def instead(value: Any) -> str:
    """What to report in place of something that is no number."""
    if value is None:
        return "leave out what was not measured, or report float('nan')"
    if isinstance(value, Mapping):
        return "report each number under a name of its own, such as 'report/macro_f1'"
    if isinstance(value, str):
        return "text belongs in log()"
    return "report one number: a mean, say, or each under a name of its own"


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of ``names`` that ``name`` may have been meant to be, as a question; empty where none is like it."""
    import difflib  # seldom needed, and slow to import

    known = {other.casefold(): other for other in list(names)[:MAX_NAME] if len(other) <= MAX_NAME}
    found = difflib.get_close_matches(name.casefold(), known, n=1)
    return f" Was {known[found[0]]!r} meant?" if found else ""
