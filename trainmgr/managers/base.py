"""The protocols of all managers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from trainmgr.contract import events
from trainmgr.deciding.snapshot import Snapshot
from trainmgr.state.budget import Spent

Exchange = events.Request | events.Reply | events.BudgetSpent | events.Failure


@dataclass(frozen=True)
class Answer:
    """An answer that came from somebody else than the manager that was asked."""

    raw: Any
    by: str
    instead: str = ""
    """Why it is not the one who was asked first that answers, where he was asked."""


class Manager(Protocol):
    """Given a snapshot, answers with a proposal.

    Called in a worker thread, never more than once at a time; may take minutes. What it returns is checked like a
    stranger's: it may be anything. Raises ManagerError when it has no answer.
    """

    name: str
    deterministic: bool
    """Whether the same snapshots always get the same answers, so that a replay can ask again."""

    def decide(self, snapshot: Snapshot) -> Any:
        """A proposal as JSON values (``Proposal.model_dump``), or an Answer with one."""
        ...


@runtime_checkable
class Repeating(Manager, Protocol):
    """A manager that has something to get done, and may not be asked often enough for it."""

    def left_out(self) -> str:
        """At the end of the run: what was not done, in a line; "" where nothing is left."""
        ...


@runtime_checkable
class Consultant(Manager, Protocol):
    """A manager that asks somebody outside, at a cost."""

    def open(self) -> None:
        """Get ready, before anything is started. What that costs is told with the first decision. Raises UserError when
        it cannot work."""
        ...

    def preflight(self) -> str:
        """Who is asked, and the most that a run can cost, in a line; before it, one for each thing to be aware of."""
        ...

    def begin(self, decision: str, spent: Spent, tell: Callable[[Exchange], None]) -> None:
        """Before each decision: what was spent so far, and who puts the calls on record."""
        ...

    def close(self) -> None:
        """Give everything back; a call under way ends without an answer. Safe in any thread, and more than once."""
        ...
