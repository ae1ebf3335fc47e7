"""A situation is one moment: what is derived of it is derived once, and the policy is the one on record."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from factories import curve, lr
from factories.situations import situation

from trainmgr.base.errors import RecordError
from trainmgr.contract.policy import Actions, Policy
from trainmgr.deciding import asking, decision, guard
from trainmgr.state import situation as situations
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation

ASKS = Policy(actions=Actions(stop_settled_evals=0, rollback_min_rise=0.1))
"""Under which rise, alarms and the space are all looked at."""
ANSWER = {"diagnosis": "plateau", "evidence": "", "action": "adjust", "changes": {"lr": 2e-3}}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often signals were measured, and the policy narrowed the space."""
    calls = {"measure": 0, "narrow": 0}
    measure, narrow = situations.measure, Policy.narrow

    def measured(state: RunState, *undone: Any) -> Any:
        calls["measure"] += 1
        return measure(state, *undone)

    def narrowed(policy: Policy, *what: Any) -> Any:
        calls["narrow"] += 1
        return narrow(policy, *what)

    monkeypatch.setattr(situations, "measure", measured)
    monkeypatch.setattr(Policy, "narrow", narrowed)
    return calls


def test_to_ask_measures_and_narrows_once(counted: dict[str, int]) -> None:
    now = situation(curve([2.0, 1.9, 1.8, 2.5], lr()), ASKS)
    why = asking.trigger(now)
    assert why is not None
    decision.take_snapshot(now, why)
    assert counted == {"measure": 1, "narrow": 1}


def test_to_judge_measures_and_narrows_once(counted: dict[str, int]) -> None:
    now = situation(curve([2.0, 1.9, 1.8, 2.5], lr()), ASKS)
    assert guard.judge(ANSWER, now, decision="d1", based_on_step=40, age_seconds=0.0).result == "accepted"
    assert counted == {"measure": 1, "narrow": 1}


def test_the_policy_is_the_one_on_record() -> None:
    now = situation(curve([2.0]), ASKS)
    assert now.policy is now.manifest.policy is ASKS
    with pytest.raises(RecordError, match="does not begin with the start of a run"):
        _ = Situation(RunState(), Ledger()).policy


def test_before_its_start_a_workload_lets_nobody_change_anything() -> None:
    """And a policy that speaks of parameters does not contradict it yet."""
    policy = Policy.model_validate({"parameters": {"momentum": {"frozen": True}}})
    assert situation(RunState(), policy).space.parameters == {}


def test_it_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        situation(curve([2.0])).mark = situations.Mark(1, "")  # type: ignore[misc]
