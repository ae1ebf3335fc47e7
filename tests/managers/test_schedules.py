"""The classics as managers: their curves, and that the guard never has anything to object to."""

from __future__ import annotations

import math
from typing import Any

import pytest
from factories import TOTAL, applied, curve, dropout, evaluation, everything, fold, kind, lr, start, step, view
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.errors import UserError
from trainmgr.contract.policy import Actions, Limits, ParameterLimits, Policy
from trainmgr.deciding import guard
from trainmgr.managers.schedules import COSINE_END, EARLY_STOPPING, PLATEAU, SCHEDULES, Schedule
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState

FREE = lr(low=1e-9, high=1.0, value=0.1, max_ratio=None, min_ratio=None)
RESTLESS = Policy(limits=Limits(cooldown_evals=0))


def decide(name: str, state: RunState, policy: Policy = RESTLESS, ledger: Ledger | None = None) -> Any:
    return Schedule(name).decide(view(state, policy, ledger))


def course(name: str) -> list[float]:
    """The learning rate over a run whose every step asks the schedule."""
    state, rates = fold([start(FREE, dropout())]), []
    for at in range(TOTAL + 1):
        fold([step(at, loss=1.0)], state)
        now = state.recipe["lr"]
        changes = decide(name, state)["changes"]
        if "lr" in changes:
            fold([applied(at, at + 1, {"lr": (now, changes["lr"])})], state)
        rates.append(float(state.recipe["lr"]))
    return rates


def test_cosine() -> None:
    rates = course("cosine")
    assert rates[0] == 0.1
    assert rates[500] == pytest.approx(0.0505, rel=0.03)
    assert rates[-1] == pytest.approx(0.1 * COSINE_END, rel=0.03)
    assert rates == sorted(rates, reverse=True)


def test_warm_restarts() -> None:
    rates = course("warm-restarts")
    up = [at for at in range(1, TOTAL + 1) if rates[at] > rates[at - 1]]
    assert up == [100, 300, 700]
    assert {rates[at] for at in up} == {0.1}
    assert all(rates[at - 1] == pytest.approx(0.1 * COSINE_END, rel=0.1) for at in up)


def test_one_change_goes_no_further_than_it_may() -> None:
    state = fold([start(lr()), step(TOTAL)])
    assert decide("cosine", state)["changes"] == {"lr": 3e-4}


def test_plateau_waits_for_the_best_and_for_the_last_change() -> None:
    factor, patience = PLATEAU
    assert decide("plateau", curve([2.0, *[2.1] * (patience - 1)], FREE))["action"] == "keep"
    state = curve([2.0, *[2.1] * patience], FREE)
    assert decide("plateau", state)["changes"] == {"lr": pytest.approx(0.1 * factor)}
    fold([applied(state.step, 1, {"lr": (0.1, 0.01)})], state)
    for _ in range(patience):
        assert decide("plateau", state)["action"] == "keep"
        fold([evaluation(state.step + 1, 2.1)], state)
    assert decide("plateau", state)["changes"] == {"lr": pytest.approx(0.01 * factor)}
    lowest = curve([2.0, *[2.1] * patience], lr(value=1e-5))
    assert decide("plateau", lowest)["evidence"] == "the learning rate is at its lowest"


def test_early_stopping() -> None:
    assert decide("early-stopping", curve([2.0, *[2.1] * (EARLY_STOPPING - 1)]))["action"] == "keep"
    answer = decide("early-stopping", curve([2.0, *[2.1] * EARLY_STOPPING]))
    assert (answer["action"], answer["to"]) == ("stop", "best")
    assert decide("early-stopping", curve([2.0, *[2.1] * EARLY_STOPPING], best=False))["to"] is None
    forbidden = Policy(actions=Actions(stop=False))
    assert decide("early-stopping", curve([2.0, *[2.1] * EARLY_STOPPING]), forbidden)["action"] == "keep"


@pytest.mark.parametrize("name", SCHEDULES)
def test_values_that_are_no_rates_are_left_alone(name: str) -> None:
    """A learning rate that is zero, NaN or a choice; no learning rate at all."""
    for found in (0.0, "NaN"):
        state = fold([start(lr()), *(evaluation(i, 2.0, params={"lr": found}) for i in range(9)), step(600)])
        assert guard.read(decide(name, state))[1] is None
    for parameter in (dropout(), kind(group="optimizer", scale="log")):
        assert decide(name, curve([2.0] * 9, parameter))["changes"] == {}


def test_unknown_schedule() -> None:
    with pytest.raises(UserError, match="there are: cosine"):
        Schedule("cosinus")


@examples(150)
@given(
    st.sampled_from(sorted(SCHEDULES)), st.lists(st.floats(0.1, 9.0) | st.floats(), max_size=14),
    st.lists(st.floats(0.1, 9.0) | st.just(math.nan), max_size=14), st.floats(1e-5, 5e-3), st.integers(1, 90),
    st.booleans(), st.builds(Limits, cooldown_evals=st.integers(0, 2), max_interventions=st.none() | st.integers(0, 2)),
    st.sampled_from(["min", "max"]), st.floats(1e-5, 5e-3), st.booleans(),
)  # fmt: skip
def test_the_guard_never_objects(
    name: str, values: list[float], train: list[float], rate: float, every: int, best: bool, limits: Limits, mode: str,
    changed: float, frozen: bool,
) -> None:  # fmt: skip
    state = curve(values, lr(value=rate), *everything()[1:], train=train, mode=mode, best=best, every=every)
    if changed > 1e-3:
        fold([applied(state.step, 1, {"lr": (rate, changed)}, "rollback"), *map(evaluation, [state.step] * 2)], state)
    policy = Policy(limits=limits, parameters={"lr": ParameterLimits(frozen=True)} if frozen else {})
    raw = decide(name, state, policy)
    judgment = judge(raw, state, policy)
    assert [(check.name, check.reason) for check in judgment.checks if not check.ok] == []
    assert judgment.result == "accepted"


@pytest.mark.parametrize("name", ["cosine", "warm-restarts"])
def test_a_schedule_over_the_run_stays_where_it_is_once_the_plan_is_overrun(name: str) -> None:
    state = fold([start(FREE), step(10), evaluation(10, 1.0), evaluation(TOTAL + 1, 1.0), step(20)])
    said = decide(name, state)
    assert (said["action"], said["evidence"]) == ("keep", f"the run has gone beyond the {TOTAL} steps planned")
