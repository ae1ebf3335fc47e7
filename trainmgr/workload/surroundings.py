"""What a script finds around it, its environment, its disk and its standard error: none of them stops training."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

PAUSES = (0.1, 0.5)  # seconds between tries of what a run begins with
SHOWN = 64  # characters of a variable
ODD: dict[str, str] = {}  # what was said of variables of the environment, by their name
Found = TypeVar("Found")


def setting(name: str, fallback: int, least: int, most: int) -> int:
    """A whole number of the environment. One that is none or out of this range is said, and ``fallback`` counts."""
    given = os.environ.get(name, "").strip()
    if not given:
        return fallback
    try:
        found = int(given)
    except ValueError:  # with more than 4,300 digits too
        found = least - 1
    if least <= found <= most:
        return found
    what = f"is {given[:SHOWN]!r}, no whole number from {least:,} to {most:,}: {fallback} is used"
    return odd(name, what, fallback)


def odd(name: str, what: str, instead: Found) -> Found:
    """Say what is wrong with a variable of the environment, once, and what is taken ``instead``."""
    if name not in ODD:
        ODD[name] = f"{name} {what}"
        aloud(ODD[name])
    return instead


def aloud(message: str) -> None:
    """Say something on standard error, which may be closed, gone, or on a full disk itself."""
    with contextlib.suppress(Exception):
        if sys.stderr is not None:
            print(message, file=sys.stderr, flush=True)


def patiently(do: Callable[[], Found], pauses: Sequence[float] = PAUSES) -> Found:
    """Do what a disk, or a network in between, may refuse for a moment only; ``pauses`` before it is tried again.

    Raises the last OSError.
    """
    for pause in pauses:
        try:
            return do()
        except OSError:
            time.sleep(pause)
    return do()


def no_room(folder: Path) -> bool:
    """Whether no space is left on its device, as far as that tells."""
    try:
        return os.statvfs(folder).f_bavail == 0
    except (OSError, AttributeError):  # not on this system
        return False
