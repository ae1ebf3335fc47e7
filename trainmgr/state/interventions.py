"""What was changed while a run went on, what came of it, and what changed without anybody asking. Values, no code."""

from __future__ import annotations

from dataclasses import dataclass, field

from trainmgr.base.wire import Value
from trainmgr.contract import protocol


@dataclass
class Intervention:
    """A change that the workload applied, and what the objective did afterwards, until the next change."""

    revision: int
    step: int
    boundary: str
    changes: dict[str, tuple[Value, Value]]
    """Name to (old, new); of a plan, to where it has come."""
    command: protocol.Command | None
    before: float | None
    """The objective at the evaluation before it."""
    after: list[tuple[int, float]] = field(default_factory=list)
    """(step, objective) of the evaluations since, OUTCOME_EVALS at most."""
    closed: str | None = None
    """Why measuring ended: "measured", "next change" or "end"; None while it goes on."""
    lost: dict[str, tuple[int, Value]] = field(default_factory=dict)
    """Of its changes, those that something else overwrote: the step at which that was found, and the value there."""


@dataclass(frozen=True)
class Moves:
    """What of a revision is due to plans, by parameter."""

    begin: frozenset[str] = frozenset()
    """Those whose plan begins with it."""
    go_on: frozenset[str] = frozenset()
    """Those that it takes a part of the way: no change of its own."""


NOTHING = Moves()


@dataclass(frozen=True)
class Drift:
    """A parameter that was found at a value which no override gave it."""

    step: int
    name: str
    expected: Value
    found: Value
    restart: bool
    """Whether a restart explains it."""
    set_at: int | None = None
    """The step at which an override had set it; None where none had."""
