"""The control file as the workload reads it: checked without pydantic, and never trusted."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trainmgr.workload.records import PROTOCOL_VERSION

Boundary: TypeAlias = Literal["step", "eval", "checkpoint"]
BOUNDARIES: tuple[Boundary, ...] = ("step", "eval", "checkpoint")  # from fine to coarse
COMMANDS = ("checkpoint", "rollback", "stop")
MAX_CONTROL = 16 * 1024 * 1024  # bytes; the longest schedules of a replay have a fraction of that
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
        self._torn: bytes | None = None  # what was no JSON: on a network file system it may be a half of what comes

    def open(self, path: Path) -> None:
        self._path = str(path)
        self._run = path.absolute().parent.name

    def again(self) -> None:
        """Read the file once more, even if it is the one that was read last."""
        self._seen = None

    def read(self) -> dict[str, Any] | None:
        """The control file, if it changed since the last look.

        Raises ValueError, once for each file, where it does not hold what it should, and OSError, each time, where it
        cannot be read.
        """
        if self._path is None:
            return None
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return None
        signature = (status.st_mtime_ns, status.st_ino, status.st_size)
        if signature == self._seen:
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_CONTROL:
            self._seen = signature
            raise ValueError(f"it is no file of at most {MAX_CONTROL:,} bytes")
        data = self._content()
        if data == self._torn:
            return None
        try:
            control = json.loads(data.decode())
        except (ValueError, RecursionError) as error:
            self._torn = data
            raise ValueError(f"{type(error).__name__}: {error}") from error
        self._seen, self._torn = signature, None
        _check_control(control)
        if control.get("run") != self._run:
            raise ValueError(f"it is for run {control.get('run')!r}")
        return dict(control)

    def _content(self) -> bytes:
        """What is in the file; no more than it may hold, and without waiting for the writer of a pipe."""
        assert self._path is not None
        with open(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            return file.read(MAX_CONTROL)


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
