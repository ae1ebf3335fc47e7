"""What harms is taken back, what proves itself stays, and what did neither goes back, too."""

from __future__ import annotations

import math

import pytest
from factories.watched import FLAT, KEEPS, RATE, Run, learned

from trainmgr.contract import events, protocol
from trainmgr.contract.policy import Policy, Probation

# -- harm --------------------------------------------------------------------------------------------------------------


def test_a_change_that_harms_is_taken_back_with_the_checkpoint() -> None:
    run = learned().change(lr=2e-3, dropout=0.3)
    assert run.measure(4.2).reversals == []  # once is not yet harm
    (back,) = run.measure(4.2).reversals
    assert (back.decisions, back.revisions, back.since, back.step) == (["d1"], [1], 60, 80)
    assert (back.forecast, back.measured) == (pytest.approx(4.0, abs=0.02), 4.2)
    assert 0.003 * 4.0 <= back.tolerance < 0.15  # by the noise, of which six evaluations say little
    assert back.parameters == {"lr": 1e-3, "dropout": 0.1}
    assert back.command == protocol.Command(id="probation2", name="rollback", to="best")
    assert (back.why, back.lost, back.lost_in_all, back.demoted) == ("harm", 50, 50, False)  # the best is of step 30
    assert back.trust == run.ledger.trust == {"lr": 0.5, "dropout": 0.5}
    assert run.state.recipe == {"lr": 1e-3, "dropout": 0.1}
    (override,) = [o for o in run.of(events.OverrideIssued) if o.origin == "probation"]
    assert (override.decision, override.control.command) == ("probation2", back.command)
    assert override.control.params == {"lr": 1e-3, "dropout": 0.1}
    assert (run.ledger.trials, run.ledger.due, run.ledger.carrying) == ([], None, None)
    assert run.ledger.taken_back == {1: "harm"}
    run.measure(4.0, 4.5, 4.6, 5.0)  # what was taken back is not watched, and what takes back is neither
    assert len(run.reversals) == 1


def test_the_forecast_is_on_record_with_the_acknowledgment() -> None:
    run = learned().change(lr=2e-3)
    (change,) = run.of(events.Acknowledged)
    assert change.forecast is not None
    assert (change.forecast.evals, change.forecast.slope) == (6, 0.0)
    assert change.forecast == run.ledger.trials[0].forecast


@pytest.mark.parametrize(("value", "taken_back"), [
    (4.05, False), (4.2, False), (4.9, True), (math.nan, True), (math.inf, True), (-math.inf, True), (3.0, False),
])  # fmt: skip
def test_a_catastrophe_does_not_wait(value: float, taken_back: bool) -> None:
    assert bool(learned().change(lr=2e-3).measure(value).reversals) is taken_back


def test_a_change_that_does_not_stop_what_went_wrong_before_is_not_its_cause() -> None:
    run = Run().measure(4.0, 4.1, 4.2, 4.3, 4.4, best=True).change(lr=9e-4).measure(4.5, 4.6, 4.7, 4.8)
    assert run.reversals == []
    (back,) = run.measure(4.9).reversals
    assert (back.why, back.forecast, back.lost, back.idle) == ("no proof", pytest.approx(4.9), 0, 50)


def test_a_change_is_not_put_back_for_want_of_proof_while_a_later_one_builds_on_it() -> None:
    """What a wider clip range is worth may show only with the higher learning rate that comes after it."""
    run = learned().change(dropout=0.3).measure(4.0, 4.0, 4.0).change(lr=1.1e-3).measure(4.0, 4.0, 4.0)
    assert run.reversals == []  # the first one is over
    run.measure(3.9, best=True).measure(3.8, best=True)
    assert [kept.decisions for kept in run.of(events.Kept)] == [["d1"], ["d2"]]
    assert run.reversals == []


def test_that_waits_for_as_long_again_at_most() -> None:
    run = learned().change(lr=1.1e-3).measure(4.0, 4.0, 4.0).change(dropout=0.3, judge_after=100)
    run.measure(*[4.0] * 6)
    assert run.reversals == []
    (back,) = run.measure(4.0).reversals
    assert (back.why, back.decisions) == ("no proof", ["d1"])


def test_what_a_later_change_replaced_is_not_waited_with() -> None:
    """Nothing would be put back: the later one answers for both."""
    run = learned().change(lr=1.1e-3).measure(4.0, 4.0).change(lr=1.2e-3).measure(4.0, 4.0, 4.0)
    assert [back.parameters for back in run.reversals] == [{}]


def test_what_stops_a_run_from_learning_is_harm_too() -> None:
    run = Run().measure(*(8.0 - 0.4 * i for i in range(8)), best=True).change(lr=2e-4)
    run.measure(5.15, 5.12, 5.1)
    assert len(run.reversals) == 1


def test_more_may_be_better() -> None:
    run = Run(mode="max").measure(*(10 - value for value in FLAT), best=True).change(lr=2e-3)
    assert run.measure(6.5, 6.6, 6.4, 6.5, 6.7).reversals == []
    assert len(run.of(events.Kept)) == 1
    run = Run(mode="max").measure(*(10 - value for value in FLAT), best=True).change(lr=2e-3)
    assert run.measure(5.7, 5.7).reversals[0].measured == 5.7


def test_a_declared_scale_is_what_counts() -> None:
    goal = protocol.Objective(metric="val", mode="max", scale=1.0)
    values = [0.01, 0.02, 0.0, 0.01, 0.02, 0.01]
    run = Run(objective=goal).measure(*values, best=True).change(lr=2e-3).measure(-0.015, -0.015)
    assert run.reversals == []
    assert Run(objective=goal).measure(*values, best=True).change(lr=2e-3).measure(-0.5).reversals


def test_nothing_but_a_lasting_catastrophe_stands_out_before_the_noise_is_known() -> None:
    assert Run().measure(4.0, 4.0, best=True).change(lr=2e-3).measure(4.2, 4.2, 4.2, 4.2).reversals == []
    run = Run().measure(4.0, best=True).change(lr=2e-3)
    assert run.measure(4.6).reversals == []
    assert run.measure(4.6).reversals
    assert Run().measure(4.0, best=True).change(lr=2e-3).measure(math.nan).reversals


@pytest.mark.parametrize("before", [[], [math.nan], [None]])
def test_without_a_forecast_nothing_is_blamed(before: list[float | None]) -> None:
    run = Run().measure(*before)
    run.change(lr=9e-4)
    assert run.measure(9.0, math.nan, 9.0, 9.0, 9.0).reversals == []
    assert [kept.forecast for kept in run.of(events.Kept)] == [None]


def test_after_a_value_that_was_not_finite_only_what_is_near_the_best_is_good() -> None:
    def after(*values: float | None) -> list[events.Reverted]:
        run = learned(commands=KEEPS).measure(math.nan).change("rollback", to="initial", lr=9e-4).measure(*values)
        assert len(run.of(events.Kept)) + len(run.reversals) <= 1
        return run.reversals

    assert after(9.0, 6.0, 5.0, 4.2, 4.05) == []
    for values in ([9.0] * 5, [4.0, 4.0, 4.0, 4.0, math.nan]):
        (back,) = after(*values)
        assert (back.why, back.command and back.command.to) == ("no proof", "best")  # not the broken weights of before
    assert after(None, None, None, None, None) == []  # nothing was measured yet


def test_evaluations_without_the_objective_are_no_measurement() -> None:
    assert learned().change(lr=2e-3).measure(4.2, None, None, 4.2).reversals[0].step == 100


# -- proof -------------------------------------------------------------------------------------------------------------


def test_a_new_best_is_proof() -> None:
    run = learned().change(lr=9e-4).measure(4.0, 3.9, 4.0, 4.0, 4.0)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_a_new_best_proves_the_recipe_that_it_was_measured_with() -> None:
    """And not that of before later changes, which nobody has tried."""
    run = learned().change(lr=2e-3).measure(4.0).change(dropout=0.3).measure(3.5).change(lr=1.5e-3)
    assert [kept.decisions for kept in run.measure(3.5, 3.5, 3.5, 3.5).of(events.Kept)] == [["d1"], ["d2"]]
    assert [trial.decisions for trial in run.ledger.trials] == [("d3",)]
    (back,) = run.measure(9.0).reversals
    assert (back.decisions, run.state.recipe) == (["d3"], {"lr": 2e-3, "dropout": 0.3})


def test_a_new_best_is_no_proof_where_learning_has_become_slow() -> None:
    falling = [8.0, 7.6, 7.24, 6.9, 6.6, 6.3, 6.0, 5.7]
    run = Run().measure(*falling, best=True).change(lr=1e-4)
    assert run.ledger.trials[0].forecast.at(5) == pytest.approx(4.9, abs=0.15)
    watch = run.policy.probation.model_copy(update={"tolerance": 0.2})  # so that it is no harm
    run.policy = run.policy.model_copy(update={"probation": watch})
    assert [back.why for back in run.measure(5.65, 5.6, 5.55, 5.5, 5.45).reversals] == ["no proof"]
    run = Run().measure(*falling, best=True).change(lr=9e-4).measure(5.5, 5.35, 5.2, 5.1, 5.0)
    assert len(run.of(events.Kept)) == 1


def test_a_new_best_within_the_noise_is_none() -> None:
    run = learned().change(lr=9e-4).measure(4.0, 3.975, 4.0, 4.0, 4.0)
    assert [back.why for back in run.reversals] == ["no proof"]


def test_to_stop_a_rise_near_the_best_is_proof() -> None:
    run = Run().measure(4.0, 4.02, 4.04, 4.06, 4.08, best=True).change(lr=9e-4).measure(*[4.08] * 5)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_to_stop_a_rise_far_from_the_best_is_promising_until_it_has_cost_too_much() -> None:
    """Standing still may be what keeps a run from getting through to where it is good."""
    run = Run().measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(*[6.0] * 10)
    assert (run.reversals, run.of(events.Kept), len(run.ledger.trials)) == ([], [], 1)
    (back,) = run.measure(6.0).reversals  # 110 of 1,000 steps since
    assert (back.why, back.lost, back.idle, back.demoted, back.command) == ("no proof", 0, 110, False, None)
    assert run.state.recipe["lr"] == 1e-3
    run = Run(total_steps=None).measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(*[6.0] * 9)
    assert run.reversals == []
    assert run.measure(6.0).reversals


def test_what_was_promising_may_become_good() -> None:
    run = Run().measure(4.0, 4.5, 5.0, 5.5, 6.0, best=True).change(lr=1e-4).measure(5.5, 5.0, 4.9, 4.8, 4.7, 4.4, 3.9)
    assert (run.reversals, len(run.of(events.Kept))) == ([], 1)


def test_trials_that_bring_nothing_have_a_budget_of_their_own_from_the_third_on() -> None:
    for budget in (0.0, 0.2):
        run = learned(RATE, total_steps=2000, policy=Policy(probation=Probation(idle_budget=budget)))
        for idle, wait in ((50, 10), (100, 20), (150, 40)):
            (*_, back) = run.change(lr=9e-4).measure(*[4.0] * 5).reversals
            assert (back.lost_in_all, back.idle_in_all, back.demoted) == (0, idle, not budget and idle > 100)
            run.measure(*[4.0] * wait)
