"""Telemetry as the workload writes it: whole lines, gathered, at the cost of a list append a step."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from trainmgr.workload import ranks
from trainmgr.workload.backlog import Backlog
from trainmgr.workload.lines import MAX_LINE, MAX_TEXT, as_line, dump, encode, shortened
from trainmgr.workload.surroundings import PAUSES, aloud, patiently
from trainmgr.workload.values import (
    MAX_NAME,
    described,
    entries,
    figure,
    instead,
    label,
    named,
    nearest,
    number,
    real,
    text,
    whole,
)

PROTOCOL_VERSION = 1
MAX_SAID = 16  # names of metrics that are no numbers, of which the log speaks
_CLOSED = (errno.EBADF, errno.ESTALE)  # of a descriptor: the file may be there all the same, and must be opened again
BACK = (
    "the step went back from {} to {}: report steps of the whole run, not of each epoch, and let load() leave the "
    "counter alone; a script that is resumed passes resumed_step"
)
SEVERAL = "this run has several trainings"  # begins what the log says of it, once in a run
Role: TypeAlias = Literal["success", "unsafe", "policy step", "action noise", "loss gradient"]
ROLES: tuple[Role, ...] = ("success", "unsafe", "policy step", "action noise", "loss gradient")
_PLAIN = frozenset((float, int))
_HOW = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK  # the last for a pipe that nobody reads
_ENDED: set[str] = set()  # telemetry of trainings that ended in this process
_OPEN: dict[str, Writer] = {}  # telemetry to the one of this process that has it


def goal(metric: str, mode: str, counterpart: str | None, scale: float | None) -> dict[str, Any]:
    """The objective as the ``start`` record has it; raises ValueError for what cannot be one."""
    metric = named(metric, "the name of the objective")
    if counterpart is not None:
        counterpart = named(counterpart, "the name of the counterpart")
    if mode not in ("min", "max"):
        raise ValueError(f"mode is {mode!r}; allowed are 'min' and 'max'")
    if scale is not None and not 0 < (scale := figure(scale, "scale")) < math.inf:
        raise ValueError(f"scale is {scale!r}; it must be greater than 0 and finite")
    found = {"metric": metric, "mode": mode, "counterpart": counterpart}
    return found if scale is None else {**found, "scale": scale}


class Metric(NamedTuple):
    """What a metric means, so that a manager need not guess it from its name.

    ``role`` is one of ROLES: success and unsafe are shares of episodes (0 to 1) that ended well, and in harm; a policy
    step is how far an update moved the policy, as a multiple of what it may; action noise is the standard deviation of
    the actions over the largest action; a loss gradient is the norm of the gradient of one weighted term of the loss,
    with the name of the term's weight in ``depends``.

    ``depends`` names the parameters that it is a direct function of: once one of them is changed, earlier values are
    not comparable with later ones, and nobody is shown them beside each other.
    """

    description: str
    role: Role | None = None
    depends: tuple[str, ...] = ()

    @classmethod
    def of(cls, metric: str | Metric) -> Metric:
        """A description alone is a metric too; raises ValueError for a role that there is not."""
        found = metric if isinstance(metric, Metric) else cls(metric)
        text(found.description, "the description of a metric")
        if isinstance(found.depends, str):
            raise TypeError(f"depends is {described(found.depends)}; it must be a tuple of names of parameters")
        if found.role not in (None, *ROLES):
            raise ValueError(f"{found.role!r} is no role of a metric; there are: {', '.join(ROLES)}")
        return found._replace(depends=tuple(map(label, found.depends)))

    def spec(self) -> dict[str, Any]:
        """As the ``start`` record has it."""
        return {name: value for name, value in self._asdict().items() if value or name == "description"}


class Writer:
    """Appends records to one file. ``step`` only gathers; everything else goes to disk at once."""

    def __init__(self, name: str, needed: Mapping[str, str] | None = None) -> None:
        self._name = name
        self.needed = dict(needed or {})  # what an evaluation must have, by what it is to us
        self.fd: int | None = None  # None: nothing is written
        self.seq = 0
        self.handled = -1  # the last revision that an earlier life of this run answered
        self.resuming = False  # whether there was an earlier life
        self.ended = ""  # how that ended; "" where it crashed, or where it is another process's to take up again
        self.several = False  # whether the log says already that this run has several trainings
        self.effects: dict[str, Any] = {}  # what it had changed, and to what
        self.shares: dict[str, tuple[float, float]] = {}  # of what it had changed in optimizers, see Managed.pair
        self._steps: list[tuple[int, float, Mapping[str, Any]]] = []  # not yet formatted
        self._names: tuple[str, ...] = ()  # of the last step's metrics ...
        self._template = "{}"  # ... and their JSON, values left open
        self._lines: list[bytes] = []  # formatted, not yet written
        self._backlog = Backlog()
        self._path = ""
        self._identity = (0, 0)  # of the file
        self._pid = 0  # of the process that may write
        self._first = 0  # the first seq of this life
        self._elder: tuple[Writer, int] | None = None  # who has the file in this process, and its seq at that moment
        self._silent = ""  # why what comes now is not written, until that was said
        self._rival: int | None = None  # the file, where another process writes it
        self._last = 0  # the last training step
        self._said: set[str] = set()  # what the log has spoken of
        self._to_say: list[tuple[str, str]] = []  # ... and what it is to speak of next

    def open(self, path: Path) -> bool:
        """Go on after what is in the file. False where another process writes it: then nothing is ever written here.

        Raises OSError where that cannot be opened or read.
        """
        self._path = os.path.realpath(path)
        elder = _OPEN.get(self._path)
        if elder is not None and (elder.fd is None or elder._pid != os.getpid()):
            elder = None
        if elder is not None:
            elder.flush()
        fd = patiently(lambda: os.open(path, _HOW | os.O_CREAT, 0o600))
        if not self._claims(fd, ranks.WRITER):
            return False
        try:
            patiently(lambda: self._take_up(fd))
        except OSError:
            os.close(fd)
            raise
        self.fd, self._pid, self._first = fd, os.getpid(), self.seq
        if elder is not None:
            self._elder = (elder, elder.seq)
        _OPEN.setdefault(self._path, self)
        return True

    def leads(self) -> bool:
        """Called before the first record. False where another one of this process has the file and goes on with it:
        then nothing is ever written here. One that does not go on is over."""
        if self._elder is None:
            return True
        (elder, seq), self._elder = self._elder, None
        if elder.fd is not None and (elder.seq != seq or elder._steps):
            self.fd = None  # not closed: that would end the claim of the other one
            self.complain(
                f"{elder._name} reports this run in the same process, so {self._name} reports nothing and gets no "
                "changes; its training goes on. A run has one Workload at a time: declare everything in one, or end it "
                "before the next one begins, by `with` or end()."
            )
            return False
        if elder.fd is not None:
            elder.fd, elder._silent = None, f"{self._name} reports this run since"
            self.ended = self.ended or ("over" if elder.seq != elder._first else "")
        _OPEN[self._path] = self
        return True

    def close(self) -> None:
        """Nothing more is written here; who tries is told, once."""
        for pause in PAUSES:
            if self.fd is not None and self._backlog.data:  # the last chance of what a full disk refused
                time.sleep(pause)
                self.flush()
        if self.fd is not None:
            _ENDED.add(self._path)
            self._silent = "it was ended before"
            if _OPEN.get(self._path) is self:
                del _OPEN[self._path]
        for fd in (self.fd, self._rival):
            if fd is not None and _identity(fd) == self._identity:
                with contextlib.suppress(OSError):  # some file systems say only here that they are full
                    os.close(fd)
        self.fd = self._rival = None

    def late(self) -> None:
        """Something is reported that cannot be written any more."""
        if self._silent:
            self.complain(f"a report is not written: {self._silent}; training goes on")
            self._silent = ""

    def _claims(self, fd: int, byte: int) -> bool:
        if ranks.claim(fd, byte):
            return True
        self.fd, self._rival, self._identity = None, fd, _identity(fd)
        ranks.rival(fd)
        self.complain(
            f"another process writes the telemetry of this run, so process {os.getpid()} reports nothing and gets no "
            f"changes; its training goes on. {ranks.REMEDY}."
        )
        return False

    def _ours(self, fd: int) -> bool:
        """Whether this process may write, and into this file. Raises OSError where nobody can tell at the moment.

        Of the forks of the one that opened the file, the first to write may, unless that has written by itself. Then a
        fork of it is a helper, which has copies of what is not yet written, and comes to its end by the same code.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            if self.seq == self._first:
                return self._claims(fd, ranks.FORK)
            self.fd, self._silent = None, f"process {self._pid} is a fork of the one that reports this run"
            return False
        try:
            status = os.fstat(fd)
        except OSError as error:
            if error.errno not in _CLOSED:
                raise
            return self._again()
        return (status.st_dev, status.st_ino) == self._identity or self._again()

    def _again(self) -> bool:
        """Somebody has closed the file, as daemons do with all that they have open; its number may be another one's."""
        try:
            fd = os.open(self._path, _HOW)
        except (FileNotFoundError, NotADirectoryError):
            fd = -1
        if fd >= 0 and _identity(fd) == self._identity:
            self.fd = fd
            return self._claims(fd, ranks.WRITER)
        if fd >= 0:
            os.close(fd)
        self.fd = None
        self.complain("something has closed the file of telemetry, and it is not there any more; training goes on")
        return False

    def _take_up(self, fd: int) -> None:
        """Go on after the records of an earlier life of this run: the next seq, the revisions already answered."""
        status = os.fstat(fd)
        self._identity = status.st_dev, status.st_ino
        if status.st_size == 0:
            return
        last, torn, final = -1, False, b""
        with open(fd, "rb", closefd=False) as file:  # to close another one of this file would end the claim to it
            for line in file:
                torn = not line.endswith(b"\n")
                if torn:  # no record: its number is free
                    break
                final = line
                try:
                    self.several |= SEVERAL.encode() in line
                    record = json.loads(line) if b'"applied"' in line or b'"refused"' in line else None
                    last = int(line[line.index(b'"seq":') + 6 :].split(b",", 1)[0])
                    if record and record.get("event") in ("applied", "refused"):
                        self.handled = max(self.handled, record["revision"])
                        self.shares |= {name: (a, b) for name, (a, b) in record.get("shares", {}).items()}
                        self.effects |= {name: new for name, (_, new) in record.get("changes", {}).items()}
                except (ValueError, TypeError, LookupError, AttributeError):  # no record, or none of ours
                    continue
        self.seq = last + 1
        self.resuming = True
        if not torn and b'"end"' in final:
            self.ended = self._end_of(final)
        if torn:  # a line that a crash cut short must not swallow the next one
            self._backlog.data[:] = b"\n"

    def _end_of(self, line: bytes) -> str:
        """How the training before this one ended, if this is its last record; "" where it may have been started again:
        what failed in another process."""
        try:
            record = json.loads(line)
            status = str(record["status"]) if record["event"] == "end" else ""
        except (ValueError, TypeError, LookupError):
            return ""
        return status if status in ("completed", "stopped") or self._path in _ENDED else ""

    def step(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Gather the record of a step. Whether its values are finite numbers.

        What is no plain number is read now: the script may write its next loss into the same tensor.
        """
        if step < self._last:
            self.say("back", BACK.format(self._last, step), "info")  # the supervisor counts them
        self._last = step
        try:
            row = dict(metrics)
            plain = _PLAIN.issuperset(map(type, row.values()))
        except Exception:  # no names with numbers
            plain = False
        if not plain:
            row = self.numbers(step, metrics)
        self._steps.append((step, time.time(), row))
        try:
            return math.isfinite(sum(row.values()))  # a sum that overflows costs one early flush
        except (TypeError, OverflowError):  # "NaN" as text, an int beyond every float
            return False

    def report(self, event: str, **fields: Any) -> None:
        """Write a record at once, after the steps before it."""
        self.flush()
        if self.fd is None:
            if event not in ("log", "end"):
                self.late()
            return
        self._emit(event, **fields)
        self._speak()
        self.flush()

    def say(self, about: str, message: str, level: str = "warning") -> None:
        """Say something once, in a ``log`` record that follows what is reported next."""
        if about not in self._said:
            self._said.add(about)
            self._to_say.append((level, message))

    def log(self, level: str, message: str) -> None:
        """Say something at once, in a ``log`` record."""
        self.report("log", level=level, message=message[:MAX_TEXT])

    def _speak(self) -> None:
        while self._to_say:
            level, message = self._to_say.pop(0)
            self._emit("log", level=level, message=message[:MAX_TEXT])

    def count(self, step: Any) -> int:
        """A step as an int. One that is none must not stop training: it counts as the last whole one before it."""
        try:
            return whole(step, "the step")
        except (TypeError, ValueError) as error:
            value = real(step)
            last = math.floor(value) if math.isfinite(value) else self._last
            self.say("step", f"{error}; it counts as {last}: report how many training steps are done")
            return last

    def numbers(self, step: int, metrics: Mapping[str, Any], *, needed: bool = False) -> dict[str, Any]:
        """Metrics as the protocol has them. What is no number is left out, and spoken of once for each name.

        With ``needed``, of an evaluation, so is it when what is needed is not there at all.
        """
        found: dict[str, Any] = {}
        if (given := entries(metrics)) is None:
            what = f"the metrics at step {step} are {described(metrics)}, and are left out"
            self.say("metrics", f"{what}; report names with numbers, such as {{'loss': 1.5}}")
            return found
        for name, value in given.items():
            try:
                found[label(name)] = number(value)
            except TypeError:
                if len(self._said) < MAX_SAID:
                    short = label(name)[:MAX_NAME]
                    what = f"{short!r} is left out: it is {described(value)} at step {step}, no number"
                    self.say(f"metric {short}", f"{what}; {instead(value)}")
        names = list(map(label, given))
        for role, wanted in self.needed.items() if needed else ():
            if wanted not in names:
                there = ", ".join(names)[:200] or "nothing"
                what = f"the evaluation at step {step} is without the {role} {wanted!r}; it has: {there}"
                self.say(role, f"{what}.{nearest(wanted, found)}")
            elif role == "counterpart":  # perhaps not measured every time
                self._said.add(role)
        return found

    def tables(self, step: int, split: Any) -> dict[str, dict[str, Any]]:
        """The same for each part of an evaluation."""
        if split is None:
            return {}
        if (parts := entries(split)) is None:
            what = f"the split at step {step} is {described(split)}, and is left out"
            self.say("split", f"{what}; report parts with metrics, such as {{'easy': {{'loss': 1.5}}}}")
            return {}
        return {label(name): self.numbers(step, row) for name, row in parts.items()}

    def flush(self) -> None:
        """Write what was gathered. A full disk costs records, never the training run: the loss is reported later."""
        if self.fd is None:
            return
        trouble: OSError | None = None
        try:
            if not self._ours(self.fd):
                return
        except OSError as error:
            trouble = error
        for step, t, metrics in self._steps:
            head = f'{{"v":{PROTOCOL_VERSION},"seq":{self.seq},"t":{t:.6f},"event":"step","step":{step},"metrics":'
            self.seq += 1
            self._lines.append(self._fit(f"{head}{self._numbers(step, metrics)}}}\n"))
            if self._to_say:
                self._speak()
        self._steps.clear()
        self._write(self.fd, trouble)
        if ended := self._backlog.recovered():
            self._emit("log", level="warning", message=ended)
            self._write(self.fd)

    def _write(self, fd: int, trouble: OSError | None = None) -> None:
        self._backlog.data += b"".join(self._lines)
        self._lines.clear()
        error = self._backlog.write(fd, trouble)
        if error is not None and (begun := self._backlog.refused(error, self._last)):
            self.complain(begun)

    def complain(self, message: str) -> None:
        """Say something where telemetry cannot."""
        aloud(f"{self._name}: {message}")

    def _numbers(self, step: int, metrics: Mapping[str, Any]) -> str:
        """The metrics of a step as JSON. Most steps have the names of the step before and plain finite numbers."""
        names, values = tuple(metrics), tuple(metrics.values())
        if names != self._names:
            self._names = names
            self._template = "{" + ",".join(f"{encode(label(name)).replace('%', '%%')}:%r" for name in names) + "}"
        try:
            if _PLAIN.issuperset(map(type, values)) and math.isfinite(sum(values)):
                return self._template % values
        except (ValueError, OverflowError):  # an int beyond every float
            pass
        return dump(self.numbers(step, metrics))

    def _fit(self, line: str) -> bytes:
        """A line as bytes; one that is too long without what can be spared, or a word about it in its place."""
        data = line.encode(errors="replace")  # lone surrogates
        if len(data) <= MAX_LINE:
            return data
        short, what, event = shortened(data, self.needed.values())
        if len(short) <= MAX_LINE:
            self.say(f"long {event}", what)
            return short
        return as_line(self._common("log", json.loads(data)["seq"]) | {"level": "warning", "message": what})

    def _common(self, event: str, seq: int) -> dict[str, Any]:
        return {"v": PROTOCOL_VERSION, "seq": seq, "t": round(time.time(), 6), "event": event}

    def _emit(self, event: str, **fields: Any) -> None:
        record = self._common(event, self.seq) | fields
        self.seq += 1
        self._lines.append(self._fit(dump(record) + "\n"))


def _identity(fd: int) -> tuple[int, int]:
    """Which file it is; (0, 0) where none is open."""
    try:
        status = os.fstat(fd)
    except OSError:
        return 0, 0
    return status.st_dev, status.st_ino
