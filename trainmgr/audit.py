"""audit.jsonl: a hash chain that is appended to, and read back with every link checked.

A line is ``{"seq":…,"t":…,"data":{…},"prev":"…","hash":"…"}``: ``prev`` is the SHA-256 of the whole line before it
(64 zeros for the first), ``hash`` the SHA-256 of this line without its ``hash`` member. Whoever changes, drops, swaps,
repeats or appends a line breaks a link. Whoever rewrites every hash after the change, in all files, does not: only a
digest that was kept elsewhere (``trainmgr audit --head``) shows that.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from trainmgr import events
from trainmgr.errors import RecordError, UserError
from trainmgr.files import Appender, open_regular, sha256
from trainmgr.protocol import explain
from trainmgr.wire import Wire, to_json

GENESIS = "0" * 64
TRIES, PAUSE = 10, 0.02  # how often the lock is tried, and the seconds between
MAX_LINE = 1 << 24  # bytes of an event; a prompt as long as any model reads is far shorter
_HASH = re.compile(rb',"hash":"([0-9a-f]{64})"\}\n\Z')


class Body(Wire):
    """An event without its own hash."""

    seq: int
    """Counts from 0."""
    t: float
    """When, in seconds since 1970."""
    data: Annotated[events.Payload, Field(discriminator="kind")]
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

    def __init__(self, path: Path, seq: int = 0, head: str = GENESIS) -> None:
        """Raises UserError while another process writes to the same log."""
        self._appender = Appender(path)
        self._lock = os.open(path, os.O_RDONLY)
        if not self._locked():
            self.close()
            raise UserError(f"{path.parent.name} has a supervisor already; one run takes one.")
        self._seq = seq
        self.head = head

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

    def close(self) -> None:
        self._appender.close()
        os.close(self._lock)


def is_held(path: Path) -> bool | None:
    """Whether a living process writes to a log; None where that cannot be told (no log yet, no locks)."""
    try:
        with open_regular(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: those who look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


class Reading(Iterator[Event]):
    """The events of a log as it was when it was opened, each link checked, and then what is behind them.

    Raises RecordError, naming the line, where the chain does not hold or cannot be read; FileNotFoundError without a
    file.
    """

    def __init__(self, path: Path) -> None:
        self.offset = 0
        """Bytes of the events so far."""
        self.torn = 0
        """In the end: the bytes behind the last line break, of a line that a crash cut short or that is being written
        right now."""
        self._events = self._read(path)

    def __next__(self) -> Event:
        return next(self._events)

    def _read(self, path: Path) -> Iterator[Event]:
        head, number = GENESIS, 1
        try:
            with io.BufferedReader(open_regular(path), buffer_size=1 << 16) as file:
                end = os.fstat(file.fileno()).st_size
                while self.offset < end and (line := file.readline(MAX_LINE + 1)):
                    if len(line) > MAX_LINE:
                        raise RecordError(f"audit.jsonl line {number}: more than {MAX_LINE:,} bytes, as no event has")
                    if not line.endswith(b"\n"):
                        self.torn = len(line)
                        return
                    event = check_line(line, number, head)
                    head, number = event.line_hash, number + 1
                    self.offset += len(line)
                    yield event
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RecordError(f"audit.jsonl line {number}: it cannot be read: {error.strerror}") from None


def read(path: Path) -> Reading:
    """The events of a log, as ``Reading`` has them: complete lines, whatever is behind the last."""
    return Reading(path)


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
