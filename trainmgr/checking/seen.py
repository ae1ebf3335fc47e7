"""What brief runs of a script showed `trainmgr check`, before anybody judges it. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from trainmgr.base.process import Exit
from trainmgr.base.wire import Value
from trainmgr.contract import protocol
from trainmgr.contract.protocol import Command
from trainmgr.log.telemetry import Item
from trainmgr.state.interventions import Drift
from trainmgr.state.run_state import RunState

KEPT = "check"  # the name of the checkpoint that is asked for
COMPARED = "load() put back"  # how the library begins what it says of a load that it has compared
ENOUGH = 3  # figures that two runs must have in common
DIGITS = 9  # that a number has at least which nobody gets by chance
RATES = {  # words in names of figures that follow the count of steps
    *("lr", "rate", "eps", "epsilon", "beta", "temperature", "momentum", "decay", "progress"),
    *("epoch", "epochs", "step", "steps", "tokens", "samples", "frames"),
}
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
    again: list[Item] | None = None
    """What it reported with the first seed the second time; None where it was not tried."""
    deterministic: bool = False
    """Whether its author says that nothing in it is random."""

    def done(self) -> list[protocol.Applied]:
        """The rollbacks that were carried out."""
        answers = [self.answers.get(rollback.revision) for rollback in self.rollbacks]
        return [answer for answer in answers if isinstance(answer, protocol.Applied)]

    @property
    def alone(self) -> list[Item]:
        """What it reported before anything was done to it."""
        return self.items[: min((sent.after for sent in self.sent.values()), default=len(self.items))]

    @property
    def compared(self) -> bool:
        """Whether the library has seen, by what is saved before and after a load, that it did something."""
        return any(isinstance(item, protocol.Log) and item.message.startswith(COMPARED) for item in self.items)


def kept_path(items: Iterable[Item]) -> str | None:
    """The path of the checkpoint that was asked for by the name KEPT, where one was reported."""
    paths = [item.path for item in items if isinstance(item, protocol.Checkpoint)]
    return next((path for path in reversed(paths) if PurePosixPath(path).stem == KEPT), None)


def alike(one: list[Item], other: list[Item], objective: str, planned: Iterable[str] = ()) -> str | None:
    """What was the same in two runs, in words; "" where something differed, None where there is too little to say.

    All figures that both have at the same steps may differ, but for those of clocks. To be the same tells something
    only of what is measured: not of ``planned`` values and rates, nor of what never changes (a return that is 0 until
    something is learned), nor of a single round number (an accuracy of 0.1).
    """
    a, b = _figures(one), _figures(other)
    both = [key for key in a if key in b]
    if any(a[key] != b[key] for key in both):
        return ""
    values: dict[str, list[float]] = {}
    for name, step in both:
        values.setdefault(name, []).append(a[name, step])
    telling = {
        name
        for name, found in values.items()
        if (len(set(found)) > 1 or (len(found) == 1 and not _round(found[0])))
        and (name == objective or (name not in planned and RATES.isdisjoint(re.split(r"[^a-z]+", name.lower()))))
    }
    keys = [key for key in both if key[0] in telling]
    if len(keys) < ENOUGH:
        return None
    name, step = max(keys, key=lambda key: (key[0] == objective, key[1]))
    return f"{name} at step {step}: {a[name, step]:.17g}"


def unlike(one: list[Item], other: list[Item]) -> str | None:
    """What clearly differs in the first figures that two runs have in common, in words; None where nothing does.

    Only the first ones: later, a difference in the last digit may have grown, as devices make them.
    """
    a, b = _figures(one), _figures(other)
    first = min((step for name, step in a if (name, step) in b), default=None)
    for (name, step), value in a.items():
        if step == first and not math.isclose(value, b.get((name, step), value), rel_tol=1e-4, abs_tol=1e-9):
            return f"{name} at step {step} was {value:.9g}, then {b[name, step]:.9g}"
    return None


def _figures(items: list[Item]) -> dict[tuple[str, int], float]:
    """All by name and step, but for those of clocks."""
    records = [item for item in items if isinstance(item, protocol.Step | protocol.Eval) and item.step > 0]
    return {
        (name, item.step): value
        for item in records
        for name, value in item.metrics.items()
        if math.isfinite(value) and not any(word in name.lower() for word in CLOCKS)
    }


def _round(value: float) -> bool:
    """Whether two runs may well have the same one by chance."""
    return len(repr(value).strip("-0.").replace(".", "")) < DIGITS
