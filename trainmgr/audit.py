"""audit.jsonl: a hash chain that is appended to, and read back with every link checked.

A line is ``{"seq":…,"t":…,"data":{…},"prev":"…","hash":"…"}``: ``prev`` is the SHA-256 of the whole line before it
(64 zeros for the first), ``hash`` the SHA-256 of this line without its ``hash`` member. Whoever changes, drops, swaps,
repeats or appends a line breaks a link. Whoever rewrites every hash after the change, in all files, does not: only a
digest that was kept elsewhere (``trainmgr audit --head``) shows that.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from trainmgr import events
from trainmgr.errors import RecordError, UserError
from trainmgr.files import Appender, Tail, sha256
from trainmgr.protocol import explain
from trainmgr.wire import Wire, to_json

GENESIS = "0" * 64
TRIES, PAUSE = 10, 0.02  # how often the lock is tried, and the seconds between
_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}\n\Z')


class Body(Wire):
    """An event without its own hash."""

    seq: int
    """Counts from 0."""
    t: float
    """When, in seconds since 1970."""
    data: events.Payload
    prev: str


@dataclass(frozen=True)
class Event:
    """One line of the log."""

    seq: int
    t: float
    data: events.Payload
    line_hash: str
    """SHA-256 of the whole line."""
    line: bytes

    def values(self) -> dict[str, Any]:
        """``data`` as the JSON values that stand in the file, whatever version wrote them."""
        result: dict[str, Any] = json.loads(self.line)["data"]
        return result


def seal(body: Body) -> bytes:
    """The line for ``body``."""
    data = to_json(body)
    return data[:-1] + b',"hash":"' + sha256(data).encode() + b'"}\n'


class Log:
    """Appends events. ``head`` is the SHA-256 of the last line."""

    def __init__(self, path: Path) -> None:
        """Takes the lock. Raises UserError while another process writes to the same log."""
        self._appender = Appender(path)
        self._lock = os.open(path, os.O_RDONLY)
        if not self._locked():
            self.close()
            raise UserError(f"{path.parent.name} has a supervisor already; one run takes one.")
        self._seq = 0
        self.head = GENESIS

    def _locked(self) -> bool:
        """Take the lock, which is gone with the process, however that dies. ``is_held`` has it for a moment only."""
        for _ in range(TRIES):
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(PAUSE)
            except OSError:
                return True  # a file system without locks
            else:
                return True
        return False

    def append(self, payload: events.Payload, t: float) -> Event:
        """Make one event durable; raises OSError when the disk refuses it."""
        line = seal(Body(seq=self._seq, t=t, data=payload, prev=self.head))
        self._appender.append(line)
        self.head = sha256(line)
        event = Event(self._seq, t, payload, self.head, line)
        self._seq += 1
        return event

    def go_on(self, seq: int, head: str, end: int) -> int:
        """Go on behind the ``seq`` events that were read since the lock was taken, of ``end`` bytes, the last with the
        digest ``head``. Returns the bytes of a torn line behind them, which are cut off.
        """
        self._seq, self.head = seq, head
        return self._appender.cut(end)

    def close(self) -> None:
        self._appender.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_held(path: Path) -> bool | None:
    """Whether a living process writes to a log; None where that cannot be told (no log yet, no locks)."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def read(path: Path) -> Iterator[Event]:
    """The events of a log, each link checked.

    Raises RecordError, naming the line, where the chain does not hold; FileNotFoundError without a file.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    head, tail = GENESIS, Tail(path)
    number = 0
    for number, line in enumerate(tail.lines(), start=1):
        yield check_line(line, number, head)
        head = sha256(line)


def check_line(line: bytes, number: int, head: str) -> Event:
    """Line ``number`` (from 1) as an event, when it follows the line whose SHA-256 is ``head``.

    Raises RecordError.
    """
    place = f"audit.jsonl line {number}"
    found = _HASH.search(line)
    if not found:
        raise RecordError(f"{place}: it does not end with a hash")
    if sha256(line[: found.start()] + b"}") != found[1].decode():
        raise RecordError(f"{place}: its content does not have the hash it carries: it was changed")
    try:
        body = Body.model_validate_json(line[: found.start()] + b"}")
    except ValidationError as error:
        raise RecordError(f"{place}: not an event of this version: {explain(error)}") from None
    if body.prev != head:
        raise RecordError(f"{place}: it does not follow the line before it: lines were dropped, swapped or repeated")
    if body.seq != number - 1:
        raise RecordError(f"{place}: its seq is {body.seq}; {number - 1} was to come")
    return Event(body.seq, body.t, body.data, sha256(line), line)
