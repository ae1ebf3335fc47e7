"""What a script reports that cannot be used as it is: counted by kind, with the first of each. Pure and bounded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from trainmgr.base.paths import usable
from trainmgr.base.wire import MAX_NAME, quoted, short
from trainmgr.contract import protocol

TEXT = 200  # characters

Kind = Literal[
    "unreadable", "unknown", "left out", "spelling", "name", "back", "beyond", "apart", "gap", "path", "status", "end",
    "warning",
]  # fmt: skip

_WORDS: dict[Kind, tuple[str, str, str]] = {  # of one, of several, and what to do
    "unreadable": (
        "1 line of telemetry could not be read",
        "{} lines of telemetry could not be read",
        "schemas/telemetry.json says what a line holds; `trainmgr check SCRIPT` names what is wrong.",
    ),
    "unknown": (
        "1 record is of an event that is not known",
        "{} records are of events that are not known",
        "schemas/telemetry.json names the events.",
    ),
    "left out": (
        "1 entry of a record was left out",
        "{} entries of records were left out",
        "Report numbers only, each under a name of its own.",
    ),
    "spelling": (
        "1 number that JSON does not have was read all the same",
        "{} numbers that JSON does not have were read all the same",
        'Write "NaN", "Infinity" and "-Infinity", in quotes.',
    ),
    "name": (
        "1 value has a name that is not followed",
        "{} values have names that are not followed",
        f"Followed are 64 names of at most {MAX_NAME} characters.",
    ),
    "back": (
        "the step went back once",
        "the step went back {} times",
        "Count the steps of the whole run, not of each epoch; `load()` must not put the counter back in a rollback.",
    ),
    "beyond": (
        "1 step or evaluation is beyond the steps planned, so how many are left is not known",
        "{} steps or evaluations are beyond the steps planned, so how many are left is not known",
        "`total_steps` counts what the step counts, and all of it.",
    ),
    "apart": (
        "1 evaluation is at a step far beyond the training",
        "{} evaluations are at steps far beyond the training",
        "Give an evaluation the step of the training that it follows, in the same unit.",
    ),
    "gap": (
        "1 record is missing or came twice",
        "{} records are missing or came twice",
        "One process alone reports, and counts seq from 0, one up for each record.",
    ),
    "path": (
        "1 checkpoint has a path that cannot be used",
        "{} checkpoints have paths that cannot be used",
        "A path is relative to the run directory and leads nowhere out of it. No other is gone on from after a crash.",
    ),
    "status": (
        "the status at the end is unknown",
        "{} times the status at the end was unknown",
        "It is completed, stopped, interrupted or failed. Any other is ignored, and the exit code tells.",
    ),
    "end": (
        "the run went on after its end",
        "the run went on after its end {} times",
        "Only the process that trains reports the end: a fork of it leaves with os._exit().",
    ),
    "warning": ("the script warned once", "the script warned {} times", ""),
}
LACKING: tuple[Kind, ...] = (
    "unknown",
    "left out",
    "spelling",
    "name",
    "back",
    "beyond",
    "apart",
    "path",
    "status",
    "end",
)
"""The record was read, and something about it is not as it should be."""


@dataclass(frozen=True)
class Notice:
    """How often something of a kind was met, and the first of it: its line, and what it was."""

    count: int
    first: str


@dataclass
class Notices:
    """The fold over telemetry that a `RunState` keeps of it."""

    kinds: dict[Kind, Notice] = field(default_factory=dict)
    lost: int = 0
    """Evaluations since the last one with the objective that could not be read, or not their objective."""
    lost_why: str = ""
    """The line of the first of them, and what is wrong with it."""
    stepped: int | None = None
    """The last training step, or the one resumed from; None before the first."""
    reached: int | None = None
    """The same at the last evaluation."""
    planned: int | None = None
    """Training steps that the script has announced; None where it has not."""

    def note(self, kind: Kind, line: int, text: str, count: int = 1) -> None:
        """Count something that was found in this line."""
        known = self.kinds.get(kind, Notice(0, f"line {line}: {short(text, TEXT)}"))
        self.kinds[kind] = Notice(known.count + count, known.first)

    def unreadable(self, item: protocol.Unreadable, line: int) -> None:
        self.note("unknown" if item.kind == "unknown" else "unreadable", line, item.reason)
        if item.kind == "garbage" and item.event == "eval":
            self._lose(line, item.reason)

    def record(self, record: protocol.Telemetry, line: int) -> None:
        """Look at a record that could be read."""
        for flaw in record.flaws:
            self.note(flaw.kind, line, flaw.reason)
        match record:
            case protocol.Step():
                step = record.step
                if self.stepped is not None and step < self.stepped:
                    self.note("back", line, f"from {self.stepped:,} to {step:,}")
                    self.reached = None  # the evaluations go back with it
                self.stepped = step
                if self.planned is not None and step > self.planned:
                    self.note("beyond", line, f"step {step:,} of {self.planned:,}")
            case protocol.Eval():
                if self.planned is not None and record.step > self.planned:
                    self.note("beyond", line, f"an evaluation at step {record.step:,} of {self.planned:,}")
                trained = (self.stepped or 0) - (self.reached or 0)  # since the one before: training may report rarely
                if self.reached is not None and self.stepped is not None and 0 < trained < record.step - self.stepped:
                    text = f"step {record.step:,}, and the last step of training is {self.stepped:,}"
                    self.note("apart", line, text)
                if self.reached is not None and record.step < self.reached:
                    text = f"an evaluation at step {record.step:,}; the one before it came after step {self.reached:,}"
                    self.note("back", line, text)
                self.reached = self.stepped
            case protocol.Checkpoint() if not usable(record.path):
                self.note("path", line, quoted(record.path))
            case protocol.Log() if record.level.lower() in ("warning", "warn"):
                self.note("warning", line, record.message)
            case protocol.Start():
                self.planned = record.total_steps
                self.stepped = self.reached = record.resumed.step if record.resumed else None
                self.measured()
            case _:
                pass

    def gap(self, record: protocol.Telemetry, expected: int, line: int) -> None:
        """The record does not have the seq that was to come."""
        text = f"seq {record.seq:,} where {expected:,} was to come"
        self.note("gap", line, text, max(1, record.seq - expected))

    def went_on(self, record: protocol.Step | protocol.Eval, line: int) -> None:
        """Training goes on although its end was reported."""
        what = "an evaluation at step" if isinstance(record, protocol.Eval) else "step"
        self.note("end", line, f"{what} {record.step:,} came after it")

    def measured(self) -> None:
        """The objective is known again."""
        self.lost, self.lost_why = 0, ""

    def unmeasured(self, record: protocol.Eval, line: int) -> None:
        """An evaluation has no objective: perhaps it could not be read."""
        if record.flaws:
            self._lose(line, record.flaws[0].reason)

    def _lose(self, line: int, reason: str) -> None:
        self.lost += 1
        self.lost_why = self.lost_why or f"line {line}: {short(reason, TEXT)}"

    # -- in words ----------------------------------------------------------------------------------------------------

    def said(self, kind: Kind) -> tuple[str, str]:
        """How much of it there was with the first of it, and what to do."""
        notice, (one, several, advice) = self.kinds[kind], _WORDS[kind]
        if notice.count == 1:
            what = f"{one}: {notice.first}"
        else:
            what = f"{several.format(f'{notice.count:,}')}; the first: {notice.first}"
        return what if what.endswith("?") else what.rstrip(".") + ".", advice

    def in_words(self, among: tuple[Kind, ...] = tuple(_WORDS)) -> Iterator[str]:
        """All of them, each as `said`."""
        return (" ".join(self.said(kind)).rstrip() for kind in self.kinds if kind in among)
