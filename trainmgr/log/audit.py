"""audit.jsonl: a hash chain that is appended to, and read back with every link checked.

A line is ``{"seq":…,"t":…,"data":{…},"prev":"…","hash":"…"}``: ``prev`` is the SHA-256 of the whole line before it
(64 zeros for the first), ``hash`` the SHA-256 of this line without its ``hash`` member. Whoever changes, drops, swaps,
repeats or appends a line breaks a link. Whoever rewrites every hash after the change, in all files, does not: only a
digest that was kept elsewhere (``trainmgr audit --head``) shows that, or a key.

With a key, ``hash`` is the HMAC-SHA-256 of the line instead, which nobody without the key can make; the start of the
run says which key, by its id. What it does not show is an end that was cut off: the lines that are left are authentic.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import io
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError

from trainmgr.base.errors import RecordError, UserError
from trainmgr.base.files import Appender, open_regular, sha256
from trainmgr.base.paths import AUDIT_KEY_FILE_VARIABLE, AUDIT_KEY_VARIABLE
from trainmgr.base.wire import Wire, to_json
from trainmgr.contract import events
from trainmgr.contract.protocol import explain

GENESIS = "0" * 64
TRIES, PAUSE = 10, 0.02  # how often the lock is tried, and the seconds between
MAX_LINE = 1 << 24  # bytes of an event; a prompt as long as any model reads is far shorter
LEAST_KEY, LARGEST_KEY = 16, 4096  # bytes
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


def seal(body: Body, key: bytes | None = None) -> bytes:
    """The line for ``body``."""
    data = to_json(body)
    return data[:-1] + b',"hash":"' + _hash(data, key).encode() + b'"}\n'


def _hash(data: bytes, key: bytes | None) -> str:
    return sha256(data) if key is None else hmac.new(key, data, hashlib.sha256).hexdigest()


# -- keys --------------------------------------------------------------------------------------------------------------


def given_key() -> bytes | None:
    """The key that the environment gives for the logs of this process; None where it gives none.

    Raises UserError where it cannot be used.
    """
    path, text = os.environ.get(AUDIT_KEY_FILE_VARIABLE, ""), os.environ.get(AUDIT_KEY_VARIABLE, "")
    if path and text:
        raise UserError(f"{AUDIT_KEY_FILE_VARIABLE} and {AUDIT_KEY_VARIABLE} are both set. Unset one of them.")
    if path:
        return read_key(Path(path))
    return _usable(os.fsencode(text), f"${AUDIT_KEY_VARIABLE}") if text else None


def read_key(path: Path) -> bytes:
    """The key in a file, without the white space around it. Raises UserError where there is none that can be used."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_KEY + 1)
    except OSError as error:
        raise UserError(f"The audit key {path} cannot be read: {error.strerror}.") from None
    return _usable(data, str(path))


def _usable(data: bytes, place: str) -> bytes:
    key = data.strip()
    if len(key) < LEAST_KEY or len(data) > LARGEST_KEY:
        size = f"only {len(key)}" if len(key) < LEAST_KEY else f"more than {LARGEST_KEY}"
        raise UserError(
            f"The audit key in {place} has {size} bytes; {LEAST_KEY} to {LARGEST_KEY} are allowed. "
            "Make one with: openssl rand -hex 32"
        )
    return key


def key_id(key: bytes | None) -> str:
    """What a log calls its key by, which does not tell what it is; "" for none."""
    return "" if key is None else sha256(_hash(b"trainmgr audit key", key).encode())[:16]


# -- the log -----------------------------------------------------------------------------------------------------------


class Log:
    """Appends events. ``head`` is the SHA-256 of the last line."""

    def __init__(self, path: Path, key: bytes | None = None) -> None:
        """Takes the lock. With a ``key``, the run's start must name it.

        Raises UserError while another process writes to the same log.
        """
        self._appender = Appender(path)
        self._lock = os.open(path, os.O_RDONLY)
        if not self._locked():
            self.close()
            raise UserError(f"{path.parent.name} has a supervisor already; one run takes one.")
        self._seq = 0
        self._key = key
        self.head = GENESIS

    def _locked(self) -> bool:
        """Take the lock, which is gone with the process, however that dies. ``files.is_held`` has it for a moment."""
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
        line = seal(Body(seq=self._seq, t=t, data=payload, prev=self.head), self._key)
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


class Reading(Iterator[Event]):
    """The events of a log as it was when it was opened, each link checked, and then what is behind them. With a
    ``key``, also that somebody who has it wrote each of them.

    Raises RecordError, naming the line, where the chain does not hold or cannot be read; FileNotFoundError without a
    file.
    """

    def __init__(self, path: Path, key: bytes | None = None) -> None:
        self._key = key
        self.offset = 0
        """Bytes of the events so far."""
        self.torn = 0
        """In the end: the bytes behind the last line break, of a line that a crash cut short or that is being written
        right now."""
        self._events = self._read(path)

    def __next__(self) -> Event:
        return next(self._events)

    def _read(self, path: Path) -> Iterator[Event]:
        head, number, mark = GENESIS, 1, ""
        try:
            with open_regular(path) as raw, io.BufferedReader(raw, buffer_size=1 << 16) as file:
                end = os.fstat(file.fileno()).st_size
                while self.offset < end and (line := file.readline(MAX_LINE + 1)):
                    if len(line) > MAX_LINE:
                        raise RecordError(f"audit.jsonl line {number}: more than {MAX_LINE:,} bytes, as no event has")
                    if not line.endswith(b"\n"):
                        self.torn = len(line)
                        return
                    event = check_line(line, number, head, self._key, mark)
                    mark = _mark(event.data) if number == 1 else mark
                    head, number = event.line_hash, number + 1
                    self.offset += len(line)
                    yield event
        except FileNotFoundError:
            raise
        except OSError as error:
            raise RecordError(f"audit.jsonl line {number}: it cannot be read: {error.strerror}") from None


def read(path: Path, key: bytes | None = None) -> Reading:
    """The events of a log, as ``Reading`` has them: complete lines, whatever is behind the last."""
    return Reading(path, key)


def check_line(line: bytes, number: int, head: str, key: bytes | None = None, mark: str = "") -> Event:
    """Line ``number`` (from 1) as an event, when it follows the line whose SHA-256 is ``head``.

    ``mark`` is the id of the key that the first line names, "" for none. Without the ``key`` itself the hashes of a
    keyed log say nothing; that each line follows the one before is checked all the same. Raises RecordError.
    """
    place = f"audit.jsonl line {number}"
    found = _HASH.search(line)
    if not found:
        raise RecordError(f"{place}: it does not end with a hash")
    content, wrong = line[: found.start()] + b"}", ""
    try:
        body = Body.model_validate_json(content)
    except ValidationError as error:
        wrong = explain(error)
    if number == 1 and not wrong:
        mark = _mark(body.data)
        _check_mark(mark, key, place)
    if not mark and sha256(content) != found[1].decode():
        raise RecordError(f"{place}: its content does not have the hash it carries: it was changed")
    if mark and not _keyed(content, found[1].decode(), key):
        raise RecordError(f"{place}: its hash is not made with the key: it was changed, or written without the key")
    if wrong:
        raise RecordError(f"{place}: not an event of this version: {wrong}")
    if body.prev != head:
        raise RecordError(f"{place}: it does not follow the line before it: lines were dropped, swapped or repeated")
    if body.seq != number - 1:
        raise RecordError(f"{place}: its seq is {body.seq}; {number - 1} was to come")
    return Event(body.seq, body.t, body.data, sha256(line), line)


def _mark(payload: events.Payload) -> str:
    return payload.key if isinstance(payload, events.RunStarted) else ""


def _check_mark(mark: str, key: bytes | None, place: str) -> None:
    if key is not None and not mark:
        raise RecordError(
            f"{place}: the log is not keyed, and a key is given: it was begun without one, or rewritten by somebody "
            f"who does not have it. To treat it as a plain chain, give no key (--key-file, {AUDIT_KEY_FILE_VARIABLE}, "
            f"{AUDIT_KEY_VARIABLE})"
        )
    if key is not None and mark != key_id(key):
        raise RecordError(f"{place}: the log names the key {mark}; the one that is given is {key_id(key)}")


def _keyed(content: bytes, found: str, key: bytes | None) -> bool:
    """Whether a hash is made with the key; without the key, whether it could be."""
    return found != sha256(content) if key is None else hmac.compare_digest(found, _hash(content, key))
