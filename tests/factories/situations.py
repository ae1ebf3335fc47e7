"""A moment to decide on: what a manager sees of it, whether it is asked, and what is said to its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from factories.records import FREE, TOTAL, fold, start
from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy
from trainmgr.contract.run_file import EDITION, Manifest, RunMode
from trainmgr.deciding import allowed, asking, guard, snapshot
from trainmgr.deciding import decision as decisions
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Mark, Situation

NOTHING_READ = Mark(0, "")


def manifest(policy: Policy | None = None, *, manager: str = "rules", mode: RunMode = "auto") -> Manifest:
    """What a run was started with."""
    return Manifest(
        version="0", id="r", created=0.0, command=[], script="x", arguments=[], directory=".", seed=1, git=None,
        python="3", packages={}, machine={}, manager=manager, mode=mode, policy=policy or Policy(),
        edition=EDITION,
    )  # fmt: skip


def situation(
    state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, mark: Mark = NOTHING_READ,
    **started: Any,
) -> Situation:  # fmt: skip
    """Both folds as they are; a ledger without a beginning gets one, of a run of the rules if nothing else is said."""
    ledger = ledger or Ledger()
    if ledger.started is None:
        ledger = replace(ledger, started=events.RunStarted(manifest=manifest(policy, **started)))
    elif policy is not None:
        known = ledger.started.manifest.model_copy(update={"policy": policy})
        ledger = replace(ledger, started=events.RunStarted(manifest=known))
    return Situation(state, ledger, mark)


def view(
    state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, why: str = "evaluation"
) -> snapshot.Snapshot:
    """What a manager is shown; without a policy one under which a stop is offered at any time."""
    return snapshot.take(situation(state, policy or FREE, ledger), why)


def available(
    state: RunState, policy: Policy | None = None, ledger: Ledger | None = None
) -> tuple[list[str], dict[str, str]]:
    """The actions there are, and why there are no others."""
    actions, no = allowed.actions(situation(state, policy or FREE, ledger))
    return list(actions), no


def trigger(state: RunState, policy: Policy | None = None, ledger: Ledger | None = None) -> str | None:
    """Why a manager is asked now; None where it is not."""
    return asking.trigger(situation(state, policy, ledger, manager="scripted"))


def judge(
    raw: Any, state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, *,
    decision: str = "d1", based_on: int | None = None, age: float = 0.0,
) -> guard.Judgment:  # fmt: skip
    """What the guard says to an answer that rests on the last step, if on no other."""
    based_on_step = state.step if based_on is None else based_on
    return guard.judge(raw, situation(state, policy, ledger), decision=decision, based_on_step=based_on_step,
                       age_seconds=age)  # fmt: skip


def verdict(
    raw: Any, state: RunState, policy: Policy | None = None, ledger: Ledger | None = None, *,
    mark: Mark = NOTHING_READ, decision: str = "d1", based_on: int | None = None, age: float = 0.0,
) -> events.Verdict:  # fmt: skip
    """The same as it goes on record."""
    asked = replace(ledger or Ledger(), waiting=decision, last_step=state.step if based_on is None else based_on)
    return decisions.verdict(raw, situation(state, policy, asked, mark), age_seconds=age)


def override(
    ruling: events.Verdict, policy: Policy | None = None, ledger: Ledger | None = None, *, at: int, based_on: int,
    total_steps: int | None = TOTAL, commands: tuple[str, ...] = (),
) -> events.OverrideIssued | None:  # fmt: skip
    """What follows from a verdict at the step ``at``."""
    state = fold([start(total_steps=total_steps, commands=list(commands))])
    now = situation(state, policy, replace(ledger or Ledger(), last_step=based_on))
    return decisions.override(ruling, now, protocol.Issued(t=0.0, step=at))
