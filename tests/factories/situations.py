"""A moment to decide on: what a manager sees of it, whether it is asked, and what is said to its answer."""

from __future__ import annotations

from typing import Any

from factories.records import FREE, TOTAL
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy
from trainmgr.deciding import decision as decisions
from trainmgr.deciding import guard, snapshot
from trainmgr.deciding.decision import Mark
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState

NOTHING_READ = Mark(0, "")


def view(
    state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, why: str = "evaluation"
) -> snapshot.Snapshot:
    """What a manager is shown; without a policy one under which a stop is offered at any time."""
    return snapshot.take(state, ledger or Ledger(), policy or FREE, why)


def available(
    state: RunState, policy: Policy | None = None, ledger: Ledger | None = None
) -> tuple[list[str], dict[str, str]]:
    """The actions there are, and why there are no others."""
    return snapshot.available(state, ledger or Ledger(), policy or FREE)


def trigger(state: RunState, policy: Policy | None = None, ledger: Ledger | None = None) -> str | None:
    """Why a manager is asked now; None where it is not."""
    return decisions.trigger(state, ledger or Ledger(), policy or Policy())


def judge(
    raw: Any, state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, *,
    decision: str = "d1", based_on: int | None = None, age: float = 0.0,
) -> guard.Judgment:  # fmt: skip
    """What the guard says to an answer that rests on the last step, if on no other."""
    based_on_step = state.step if based_on is None else based_on
    return guard.judge(raw, state, ledger or Ledger(), policy or Policy(), decision=decision,
                       based_on_step=based_on_step, age_seconds=age)  # fmt: skip


def verdict(
    raw: Any, state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, *,
    mark: Mark = NOTHING_READ, decision: str = "d1", based_on: int | None = None, age: float = 0.0,
) -> events.Verdict:  # fmt: skip
    """The same as it goes on record."""
    based_on_step = state.step if based_on is None else based_on
    return decisions.verdict(raw, state, ledger or Ledger(), policy or Policy(), mark, decision=decision,
                             based_on_step=based_on_step, age_seconds=age)  # fmt: skip


def override(
    ruling: events.Verdict, policy: Policy, ledger: Ledger | None = None, *, at: int, based_on: int,
    total_steps: int | None = TOTAL, **more: Any,
) -> events.OverrideIssued | None:  # fmt: skip
    """What follows from a verdict at the step ``at``."""
    return decisions.override(ruling, ledger or Ledger(), policy, run="r", issued=protocol.Issued(t=0.0, step=at),
                              based_on_step=based_on, total_steps=total_steps, **more)  # fmt: skip
