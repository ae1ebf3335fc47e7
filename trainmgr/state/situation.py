"""A run at one moment: what telemetry and the log say, and how much of them was read. Everything that is decided rests
on one of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from trainmgr.base.errors import RecordError
from trainmgr.contract.action_space import ActionSpace
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import Manifest
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.signals import Signals, measure


@dataclass(frozen=True)
class Mark:
    """A place in telemetry.jsonl: so many bytes, with this SHA-256."""

    offset: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class Situation:
    """Both folds at one moment. They go on and this does not: take a new one after every record and every event.

    What is derived of them is derived once, however many ask for it.
    """

    state: RunState
    """The fold over telemetry, up to the mark."""
    ledger: Ledger
    """The fold over the log."""
    mark: Mark = Mark()

    @property
    def manifest(self) -> Manifest:
        """What the run was started with. Raises RecordError where the log does not begin with it."""
        if self.ledger.started is None:
            raise RecordError("audit.jsonl does not begin with the start of a run.")
        return self.ledger.started.manifest

    @property
    def policy(self) -> Policy:
        """What the operator allows: the only one there is. Raises RecordError as ``manifest`` does."""
        return self.manifest.policy

    @cached_property
    def signals(self) -> Signals:
        """The derived figures; since edition 2 without what was measured of weights that we took back ourselves."""
        started = self.ledger.started
        since_2 = started is not None and started.manifest.edition > 1
        return measure(self.state, self.ledger.changes.undone) if since_2 else measure(self.state)

    @cached_property
    def declared(self) -> ActionSpace:
        """What the workload lets anyone change, at the values now in effect; empty before its start."""
        return self.state.space

    @cached_property
    def space(self) -> ActionSpace:
        """What is left of that: narrowed by the policy, and by the trust in changes of each parameter.

        Raises PolicyError where the policy does not fit what the workload declares.
        """
        return self.policy.narrow(self.declared, self.ledger.trust) if self.state.start else self.declared
