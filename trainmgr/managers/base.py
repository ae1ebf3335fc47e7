"""The one protocol of all managers."""

from __future__ import annotations

from typing import Any, Protocol

from trainmgr.snapshot import Snapshot


class Manager(Protocol):
    """Given a snapshot, answers with a proposal.

    Called in a worker thread, never more than once at a time; may take minutes. What it returns is checked like a
    stranger's: it may be anything. Raises ManagerError when it has no answer.
    """

    name: str
    deterministic: bool
    """Whether the same snapshots always get the same answers, so that a replay can ask again."""

    def decide(self, snapshot: Snapshot) -> Any:
        """A proposal as JSON values (``Proposal.model_dump``)."""
        ...
