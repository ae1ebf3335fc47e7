"""The loop of the process that stands in for the script: pass on, follow, report, carry out a stop."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from trainmgr.sources.lines import Line, Lines
from trainmgr.sources.reader import reader
from trainmgr.sources.reading import Reading
from trainmgr.sources.report import WIDTH, Report
from trainmgr.sources.script import NOT_FOUND, Script
from trainmgr.sources.tail import Tail
from trainmgr.workload import Metric, Workload

PERIOD = 0.05  # seconds between two looks at what tells nothing by itself: the file, the control file, the child
LINGER = 2.0  # seconds that a script's output is read after its end, where something else still holds it
PIECE = 64 * 1024  # bytes


class Watch:
    """One script, from its start to its end."""

    def __init__(
        self, name: str, reading: Reading, command: Sequence[str], environment: Mapping[str, str], grace: float
    ) -> None:
        """``environment`` is the script's, ``grace`` seconds between two signals of a stop."""
        self._command, self._environment, self._grace, self._reading = command, environment, grace, reading
        self._workload = Workload(
            name,
            objective=reading.objective,
            mode=reading.mode,
            counterpart=reading.counterpart,
            total_steps=reading.total_steps,
            metrics=_described(reading),
            info={"read": " ".join(reading.options())[:200]},
        )
        self._reader = reader(reading)
        self._report = Report(self._workload, reading, self._reader)
        self._tail = Tail(Path(reading.file)) if reading.file else None
        self._streams: dict[int, Lines] = {}  # by the descriptor that they come from
        self._lost = self._faulty = False  # whether that was said
        self._control: tuple[int, ...] = ()  # the control file as it was seen last
        self._quiet = 0.0  # since when no line has said anything

    def run(self) -> int:
        """Start it and follow it to its end; the exit code to end with."""
        workload = self._workload
        if self._tail is not None:  # what is there now is of an earlier run
            for line in self._tail.look()[1]:
                self._reader.read(line)
            self._reader.settle()
        workload.start()  # before a script that has a Workload of its own
        try:
            script = Script(self._command, self._environment, followed=self._tail is None, grace=self._grace)
        except OSError as error:
            workload.log("error", f"{self._command[0]} cannot be started: {error.strerror}")
            workload.end(0, status="failed")
            workload.warn(f"{self._command[0]} cannot be started: {error.strerror}")
            return NOT_FOUND
        workload.command("stop", lambda _: script.stop())
        workload.announce()
        self._follow(script)
        self._report.ended()
        if workload.stopping:
            asked = f" with {script.asked.name}" if script.asked is not None else ""
            workload.log("info", f"the script was told to stop{asked} and {script.words}")
        workload.end(self._report.step, status=self._status(script))
        return script.code

    def _status(self, script: Script) -> Literal["completed", "stopped", "interrupted", "failed"]:
        if self._workload.stopping:
            return "stopped"
        if script.interrupted:
            return "interrupted"
        return "completed" if script.code == 0 else "failed"

    def _follow(self, script: Script) -> None:
        with selectors.DefaultSelector() as selector:
            for pipe, ours in script.outputs:
                selector.register(pipe, selectors.EVENT_READ, ours)
                self._streams[ours] = Lines()
            limit: float | None = None
            while True:
                over = script.over  # before the last look, or something could come in between
                if over and limit is None:
                    limit = time.monotonic() + LINGER
                came = selector.select(0 if over else PERIOD)
                for key, _ in came:
                    if not self._pump(key.fd, key.data):
                        selector.unregister(key.fileobj)
                self._look_at_file()
                script.tick()
                if not over:
                    self._look_at_control()
                elif not came or (limit is not None and time.monotonic() > limit):
                    break
        rest = self._tail.rest() if self._tail else [line for lines in self._streams.values() for line in lines.rest()]
        self._read(rest)

    def _pump(self, theirs: int, ours: int) -> bool:
        """Pass on what came, then read it. False at its end."""
        data = os.read(theirs, PIECE)
        self._pass_on(data, ours)
        self._read(self._streams[ours].feed(data))
        return bool(data)

    def _read(self, lines: Iterable[Line]) -> None:
        """A fault of our own is no reason to end a training: it goes on, unread if need be."""
        for line in lines:
            try:
                if self._report.line(line):
                    self._quiet = time.monotonic() + PERIOD
            except Exception as error:
                if not self._faulty:
                    self._faulty = True
                    what = f"a line could not be read ({type(error).__name__}: {error}): {line.text[:WIDTH]}"
                    self._workload.log("error", what)

    def _pass_on(self, data: bytes, ours: int) -> None:
        """Training goes on where nobody takes what it prints: a full disk, a pipe that was closed."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(ours, rest) :]
        except OSError as error:
            if not self._lost:
                self._lost = True
                self._workload.log("warning", f"what the script prints is lost: {error.strerror}")

    def _look_at_file(self) -> None:
        if self._tail is None:
            return
        anew, lines = self._tail.look()
        if anew:
            self._reader.anew()
        self._read(lines)

    def _look_at_control(self) -> None:
        """A script may print a line an hour: a stop does not wait for the next one."""
        workload = self._workload
        if time.monotonic() < self._quiet or workload.stopping or not workload.supervised or not workload.directory:
            return
        state: tuple[int, ...] = ()
        with contextlib.suppress(OSError):
            found = (workload.directory / "control.json").stat()
            state = (found.st_ino, found.st_mtime_ns, found.st_size)
        if state != self._control:
            self._control = state
            self._report.look()


def _described(reading: Reading) -> dict[str, str | Metric]:
    """Nothing is known of what is printed but where it stands."""
    where = "in what the script prints" if reading.file is None else f"in {reading.file}"
    names = (reading.objective, reading.counterpart)
    return {name: f"{name}, as it stands {where}" for name in names if name is not None}
