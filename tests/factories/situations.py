"""A moment to decide on: what a manager sees of it, and what is said to its answer."""

from __future__ import annotations

from factories.records import FREE
from trainmgr.contract.policy import Policy
from trainmgr.deciding import snapshot
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState


def view(state: RunState, policy: Policy | None = None, ledger: Ledger | None = None) -> snapshot.Snapshot:
    return snapshot.take(state, ledger or Ledger(), policy or FREE, "evaluation")
