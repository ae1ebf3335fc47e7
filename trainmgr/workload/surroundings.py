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

RUN_DIR_VARIABLE = "TRAINMGR_RUN_DIR"  # the run directory, where a supervisor looks on
SEED_VARIABLE = "TRAINMGR_SEED"
RESUME_VARIABLE = "TRAINMGR_RESUME"
CHECK_VARIABLE = "TRAINMGR_CHECK"  # set by `trainmgr check`: changes are looked for at every step, loads compared

ODD: dict[str, str] = {}  # what was said of variables of the environment, by their name
Found = TypeVar("Found")


def default_seed(fallback: int = 0) -> int:
    """The seed that the supervisor asked for (``TRAINMGR_SEED``, a whole number of 64 bits), or ``fallback``."""
    return setting(SEED_VARIABLE, fallback, -(1 << 63), (1 << 64) - 1)


def resume_path() -> str | None:
    """The checkpoint to resume from (``TRAINMGR_RESUME``), set when the supervisor restarts a crashed workload. None
    where it is not there any more, which is said: training begins anew then."""
    path = os.environ.get(RESUME_VARIABLE) or None
    try:
        if path is not None:
            os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return odd(RESUME_VARIABLE, f"names {path}, which is not there: training begins anew", None)
    except OSError:  # whoever reads it will see
        pass
    return path


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
