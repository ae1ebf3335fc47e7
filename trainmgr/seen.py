"""What brief runs of a script showed `trainmgr check`, before anybody judges it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainmgr import protocol
from trainmgr.interventions import Drift
from trainmgr.process import Exit
from trainmgr.protocol import Command
from trainmgr.run_state import RunState
from trainmgr.telemetry import Item
from trainmgr.wire import Value

KEPT = "check"  # the name of the checkpoint that is asked for
COMPARED = "load() put back"  # how the library begins what it says of a load that it has compared
ENOUGH = 3  # figures that two runs must have in common
CLOCKS = ("time", "sec", "speed", "per_s", "/s", "fps", "memory", "eta")  # in names of figures that always differ


@dataclass(frozen=True)
class Sent:
    """A revision that the script was told."""

    params: dict[str, Value]
    command: Command | None
    t: float
    """Seconds since 1970."""
    after: int
    """Records of telemetry before it."""
    at_step: int | None = None
    """The step that it was for; None: as soon as possible."""

    @property
    def words(self) -> str:
        what = [*self.params, *([f"{self.command.name} {self.command.to or ''}".strip()] if self.command else [])]
        return ", ".join(what)


@dataclass
class Rollback:
    """A rollback that was asked for."""

    revision: int
    to: str


@dataclass
class Seen:
    """Everything that two brief runs of a script showed."""

    script: str
    items: list[Item]
    state: RunState
    evals: list[protocol.Eval]
    """Those after the first step."""
    answers: dict[int, protocol.Applied | protocol.Refused]
    sent: dict[int, Sent]
    drifts: list[Drift]
    """What moved by itself or was overwritten, the first time of each parameter."""
    rollbacks: list[Rollback]
    kept: int | None
    """The revision that asked for a checkpoint named KEPT."""
    checkpoints: list[str]
    """Files in the run directory."""
    over: bool
    """Whether the run was over by itself, before the script was ended from outside."""
    exit: Exit | None
    output: list[str]
    other: list[Item] | None = None
    """What it reported with the other seed; None where it was not tried."""

    def done(self) -> list[protocol.Applied]:
        """The rollbacks that were carried out."""
        answers = [self.answers.get(rollback.revision) for rollback in self.rollbacks]
        return [answer for answer in answers if isinstance(answer, protocol.Applied)]

    @property
    def compared(self) -> bool:
        """Whether the library has seen, by what is saved before and after a load, that it did something."""
        return any(isinstance(item, protocol.Log) and item.message.startswith(COMPARED) for item in self.items)


def kept_path(items: Iterable[Item]) -> str | None:
    """The path of the checkpoint that was asked for by the name KEPT, where one was reported."""
    paths = [item.path for item in items if isinstance(item, protocol.Checkpoint)]
    return next((path for path in reversed(paths) if PurePosixPath(path).stem == KEPT), None)


def alike(one: list[Item], other: list[Item], objective: str) -> str | None:
    """What was the same in two runs, in words; "" where something differed, None where there is too little to say.

    All figures that both have at the same steps count, but for those of clocks: a share of few episodes may be the
    same by chance, where the loss is not.
    """

    def figures(items: list[Item]) -> dict[tuple[str, int], float]:
        records = [item for item in items if isinstance(item, protocol.Step | protocol.Eval) and item.step > 0]
        return {(name, item.step): v for item in records for name, v in item.metrics.items() if math.isfinite(v)}

    a, b = figures(one), figures(other)
    both = [key for key in a if key in b and not any(word in key[0].lower() for word in CLOCKS)]
    if any(a[key] != b[key] for key in both):
        return ""
    if len(both) < ENOUGH:
        return None
    name, step = max(both, key=lambda key: (key[0] == objective, key[1]))
    return f"{name} at step {step}: {a[name, step]:.17g}"
