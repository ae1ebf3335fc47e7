"""What comes to the supervisor's queue, from any thread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainmgr.base.process import Exit
from trainmgr.managers.base import Exchange


@dataclass(frozen=True)
class Told:
    """A manager has sent a request, or got a reply."""

    exchange: Exchange


@dataclass(frozen=True)
class Answered:
    """A manager has answered, or not: then ``error`` says why."""

    decision: str
    raw: Any
    by: str
    seconds: float
    error: str | None
    instead: str = ""


@dataclass(frozen=True)
class Approved:
    """What the person says to a decision; None where nobody answered."""

    decision: str
    answer: bool | None


@dataclass(frozen=True)
class Ended:
    """The child is gone."""

    exit: Exit


@dataclass(frozen=True)
class Interrupt:
    """The operator wants the end: ``by`` Ctrl-C, say."""

    by: str


@dataclass(frozen=True)
class Signalled:
    """A signal came that asks nothing of us."""

    number: int


@dataclass(frozen=True)
class Look:
    """Telemetry may have grown."""


Message = Told | Answered | Approved | Ended | Interrupt | Signalled | Look
