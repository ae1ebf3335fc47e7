"""The control file as the workload reads it: checked without pydantic, and never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from trainmgr.workload.records import PROTOCOL_VERSION

BOUNDARIES = ("step", "eval", "checkpoint")  # from fine to coarse
COMMANDS = ("checkpoint", "rollback", "stop")
_ENTRY_KEYS = frozenset(
    ("revision", "params", "based_on_step", "valid_until_step", "at_step", "at_boundary", "command", "keep", "decision")
)
_CONTROL_KEYS = _ENTRY_KEYS | {"v", "run", "issued", "schedule"}


class Inbox:
    """Looks for a new control file with one ``stat``. Without a path there never is one."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._run = ""
        self._seen: tuple[int, int, int] | None = None

    def open(self, path: Path) -> None:
        self._path = str(path)
        self._run = path.absolute().parent.name

    def again(self) -> None:
        """Read the file once more, even if it is the one that was read last."""
        self._seen = None

    def read(self) -> dict[str, Any] | None:
        """The control file, if it changed since the last look.

        Raises ValueError, once for each file, where it does not hold what it should.
        """
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
            signature = (status.st_mtime_ns, status.st_ino, status.st_size)
            if signature == self._seen:
                return None
            self._seen = signature
            with open(self._path, "rb") as file:
                control = _check_control(json.loads(file.read()))
        except FileNotFoundError:
            return None
        except (OSError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if control["run"] != self._run:
            raise ValueError(f"it is for run {control['run']!r}")
        return control


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_entry(entry: Any, keys: frozenset[str]) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError("an entry is not an object")
    unknown = sorted(set(entry) - keys)
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}")
    if not _whole(entry.get("revision")):
        raise ValueError("revision is not a whole number")
    if not isinstance(entry.get("params"), dict):
        raise ValueError("params is not an object")
    for key in ("valid_until_step", "at_step"):
        if entry.setdefault(key, None) is not None and not _whole(entry[key]):
            raise ValueError(f"{key} is neither a whole number nor null")
    if entry.setdefault("at_boundary", None) not in (None, *BOUNDARIES):
        raise ValueError(f"at_boundary is {entry['at_boundary']!r}; allowed are {', '.join(BOUNDARIES)}")
    keep = entry.setdefault("keep", None)
    if keep is not None and not (isinstance(keep, str) and keep.isascii() and keep.isalpha() and keep.islower()):
        raise ValueError(f"keep is {keep!r}, which is neither null nor a name of lower case letters")
    command = entry.setdefault("command", None)
    if command is not None:
        if not isinstance(command, dict) or set(command) != {"id", "name", "to"} or command["name"] not in COMMANDS:
            raise ValueError(f"command is not one of {', '.join(COMMANDS)} with id, name and to")
        if not isinstance(command["to"], (str, type(None))):
            raise ValueError("command.to is neither a string nor null")
    return entry


def _check_control(control: Any) -> dict[str, Any]:
    """The same shape as ``schemas/control.json``, without pydantic; raises ValueError saying what is wrong."""
    entry = _check_entry(control, _CONTROL_KEYS)
    if entry.get("v") != PROTOCOL_VERSION:
        raise ValueError(f"protocol version {entry.get('v')!r}; this library speaks {PROTOCOL_VERSION}")
    schedule = entry.setdefault("schedule", None)
    if schedule is not None:
        if not isinstance(schedule, list):
            raise ValueError("schedule is not a list")
        for item in schedule:
            _check_entry(item, _ENTRY_KEYS)
    return entry
