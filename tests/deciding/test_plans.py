"""A plan is one decision: its parts stay inside what one change may do, and end where they were to."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from factories import applied, batch, dropout, ema, evaluation, kind, lr, parameters, refused, start, step
from factories.profiles import examples
from factories.watched import TOTAL, Run
from hypothesis import assume, given
from hypothesis import strategies as st

from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Limits, ParameterLimits, Policy, Probation
from trainmgr.contract.proposal import PLANS, Plan
from trainmgr.deciding import guard, plans, snapshot
from trainmgr.state.ledger import KEPT

FREE = Policy(probation=Probation(enabled=False))
RATE = lr(value=2e-3)


def answer(**planned: Any) -> dict[str, Any]:
    values = {name: {"to": to, "by_step": by} for name, (to, by) in planned.items()}
    return {"diagnosis": "routine", "evidence": "", "action": "adjust", "plans": values}


def objections(judgment: guard.Judgment) -> str:
    return "; ".join(check.reason for check in judgment.checks if not check.ok)


def begun(*parameters: Parameter, evals: int = 3, policy: Policy = FREE, **more: Any) -> Run:
    return Run(*(parameters or (RATE, dropout(value=0.1))), policy=policy, manager="rules", **more).measure(
        *(4.0 - i / 100 for i in range(evals))
    )


def parts(run: Run) -> list[events.OverrideIssued]:
    return [event for event in run.of(events.OverrideIssued) if event.origin == "plan"]


def way(run: Run, name: str = "lr") -> list[float]:
    """The values that were asked for, from the first part on."""
    return [event.control.params[name] for event in run.of(events.OverrideIssued)]  # type: ignore[misc]


# -- the way -----------------------------------------------------------------------------------------------------------


@given(parameters(), st.data())
@examples(200)
def test_every_part_is_one_that_a_change_may_be_and_the_last_is_the_target(parameter: Parameter, data: Any) -> None:
    assume(parameter.value != parameter.off)
    assert parameter.low is not None
    assert parameter.high is not None
    sizes = st.integers if parameter.type == "int" else st.floats
    to = data.draw(sizes(parameter.low, parameter.high))  # type: ignore[operator]
    by_step, shape = data.draw(st.integers(41, 200)), data.draw(st.sampled_from(["linear", "cosine"]))
    run = begun(parameter, evals=4)
    raw = {**answer(), "plans": {"p": {"to": to, "by_step": by_step, "shape": shape}}}
    assume(run.judge(raw).result != "rejected")
    old = parameter.value
    run.answer(raw)
    seen: list[Any] = [old, *way(run, "p")]
    for _ in range(30):
        run.measure(4.0)
        seen.append(run.state.recipe["p"])
    for before, value in pairwise(seen):
        assert type(value) is (int if parameter.type == "int" else float)
        assert parameter.objection(value) is None
        now = parameter.model_copy(update={"value": before})
        assert value == before or now.too_far(value, before) is None
        assert abs(to - value) <= abs(to - before)  # never away from it
    assert len(parts(run)) <= 30
    if parameter.max_ratio is None and parameter.min_ratio is None and parameter.max_delta is None:
        assert seen[-1] == to
        assert run.ledger.plans.underway == {}
    if run.ledger.plans.underway == {}:
        assert run.state.recipe["p"] == to


def test_a_straight_way_goes_in_equal_parts_and_a_cosine_is_gentle_at_both_ends() -> None:
    straight = begun().plan("lr", 2e-4, 230).measure(*[4.0] * 25)
    assert way(straight) == pytest.approx([2e-3 - 1.8e-3 * i / 20 for i in range(1, 21)])
    assert straight.state.recipe["lr"] == 2e-4
    gentle = begun().plan("lr", 2e-4, 230, "cosine").measure(*[4.0] * 25)
    rates = way(gentle)
    assert rates[9] == pytest.approx(1.1e-3)
    least = 0.9e-3 * (1 - math.cos(math.pi / 20))
    assert [2e-3 - rates[0], rates[-2] - rates[-1]] == pytest.approx([least, least], rel=1e-3)
    assert gentle.state.recipe["lr"] == 2e-4


def test_a_target_may_be_far_and_what_one_change_does_not_reach_is_made_up_for() -> None:
    run = begun(lr(value=1e-3, max_ratio=1.5)).plan("lr", 4e-3, 50).measure(*[4.0] * 5)
    assert way(run) == pytest.approx([1.5e-3, 2.25e-3, 3.375e-3, 4e-3], rel=1e-5)
    assert run.ledger.plans.underway == {}


def test_the_reach_that_a_policy_leaves_holds_for_each_part() -> None:
    policy = FREE.model_copy(update={"parameters": {"lr": ParameterLimits(max_delta=1e-4)}})
    run = begun(policy=policy).plan("lr", 2e-4, 60).measure(*[4.0] * 20)
    assert way(run) == pytest.approx([2e-3 - 1e-4 * i for i in range(1, 19)])


def test_the_first_part_may_leave_a_whole_number_where_it_is() -> None:
    run = begun(batch()).plan("batch", 20, 830)
    assert way(run, "batch") == [16]
    assert [i.changes for i in run.state.interventions] == [{"batch": (16, 16)}]
    run.measure(*[4.0] * 90)
    assert way(run, "batch") == [16, 17, 18, 19, 20]
    assert [i.changes for i in run.state.interventions] == [{"batch": (16, 20)}]


def test_as_long_as_nobody_knows_how_far_evaluations_are_apart_nothing_moves() -> None:
    run = Run(RATE, policy=FREE, manager="rules")
    run.fold(evaluation(0, 4.0))
    run.plan("lr", 2e-4, 100)
    assert way(run) == [2e-3]
    run.measure(4.0)
    assert way(run) == pytest.approx([2e-3, 2e-3 - 1.8e-3 / 5])


def test_with_a_coarser_boundary_it_is_issued_one_evaluation_earlier() -> None:
    run = begun(lr(value=2e-3, boundary="eval")).plan("lr", 2e-4, 130)
    assert way(run) == pytest.approx([2e-3 - 1.8e-3 * 2 / 10])


def test_each_part_has_its_exact_step_where_changes_have_one() -> None:
    policy = FREE.model_copy(update={"limits": Limits(lead_steps=3)})
    run = begun(policy=policy).plan("lr", 2e-4, 230).measure(4.0, 4.0)
    assert [event.control.at_step for event in run.of(events.OverrideIssued)] == [33, 43, 53]


# -- what may be planned -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planned", "why"),
    [
        ({"nothing": (1.0, 90)}, "nothing: no such parameter"),
        ({"lr": (1.0, 90)}, "lr = 1 is outside [1e-05, 0.005]"),
        ({"lr": (1e-4, 30)}, "by step 30, and the workload is at step 30"),
        ({"lr": (1e-4, TOTAL + 1)}, "by step 1001, and 1000 steps are planned"),
        ({"lr": (2e-3, 90)}, "lr is at 0.002 already"),
        ({"kind": (1, 90)}, "kind is a choice"),
        ({"ema": (0.99, 90)}, "ema is off: it has to be switched on at once"),
        ({"mean": (0.0, 90)}, "mean is switched off at once, not little by little"),
        ({"batch": (20.5, 90)}, "not of type int"),
        ({"moved": (1e-4, 90)}, "the script itself moves moved"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_words(planned: Any, why: str) -> None:
    space = [RATE, kind(), ema(), ema(name="mean", value=0.95), batch(), lr(name="moved", scheduled=True)]
    judgment = begun(*space).judge(answer(**planned))
    assert judgment.result == "rejected"
    assert why in objections(judgment)


def test_a_plan_goes_with_adjust_and_rollback_only_and_not_with_a_change_of_the_same() -> None:
    run, planned = begun(), answer(lr=(1e-4, 90))
    assert run.judge(planned).result == "accepted"
    for action in ("keep", "stop"):
        assert f"{action} with plans" in objections(run.judge({**planned, "action": action}))
    both = run.judge({**planned, "changes": {"lr": 1e-3}})
    assert "lr is in changes and in plans" in objections(both)
    assert "under way already" in objections(run.answer(planned).measure(4.0).judge(planned))
    many = {f"p{i}": (1.0, 90) for i in range(PLANS + 1)}
    assert run.judge(answer(**many)).result == "rejected"


def test_a_target_beyond_the_bounds_is_clipped_only_where_the_policy_says_so() -> None:
    clip = FREE.model_copy(update={"limits": Limits(clip=True)})
    judgment = begun(policy=clip).judge(answer(lr=(1e-9, 90)))
    assert (judgment.result, judgment.plans["lr"].to) == ("clipped", 1e-5)
    assert begun().judge(answer(lr=(1e-9, 90))).result == "rejected"


def test_what_rests_cannot_be_planned_and_a_plan_under_way_does_not_rest() -> None:
    run = begun().change(lr=1e-3)
    assert "lr rests" in objections(run.judge(answer(lr=(1e-4, 90))))
    run.measure(4.0).plan("lr", 1e-4, 230).measure(4.0, 4.0)
    assert run.judge(answer(lr=(2e-4, 300))).result == "accepted"


def test_a_rate_is_not_planned_upwards_while_the_objective_diverges_and_waits_where_it_was() -> None:
    run = begun(lr(value=1e-3)).plan("lr", 4e-3, 230).measure(4.0)
    before = len(parts(run))
    run.fold(step(run.at + 1, loss=1.0))
    run.measure(math.nan, math.nan)
    assert run.now.signals.diverging
    assert len(parts(run)) == before
    assert "may not rise" in objections(run.judge(answer(lr=(4.5e-3, 300))))
    run.measure(4.0, 3.9)
    assert not run.now.signals.diverging
    assert run.state.recipe["lr"] == pytest.approx(1e-3 + 3e-3 * (run.at + 10 - 30) / 200)


# -- one intervention --------------------------------------------------------------------------------------------------


def test_parts_are_no_changes_of_their_own() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(*[4.0] * 9)
    assert len(parts(run)) == 9
    (item,) = run.state.interventions
    assert item.changes == {"lr": (2e-3, run.state.recipe["lr"])}
    assert run.state.intervention_count == 1
    assert run.now.signals.evals_since_change == 9
    assert run.why() == "evaluation"
    assert len(run.of(events.Outcome)) == 1
    view = snapshot.take(run.now, "evaluation")
    (past,) = view.interventions
    assert past.decision == "d1"
    row = next(row for row in view.recipe if row.name == "lr")
    assert row.plan == Plan(to=2e-4, by_step=230)
    assert not row.resting
    run.measure(*[4.0] * 20)
    assert next(row for row in snapshot.take(run.now, "x").recipe if row.name == "lr").plan is None


def test_an_account_tells_a_plan_once_and_none_of_its_parts() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(*[4.0] * 9)
    assert len(parts(run)) > 5
    account = snapshot.take(run.now, "evaluation").account
    assert account is not None
    (told,) = account.changes
    assert told.plans == {"lr": Plan(to=2e-4, by_step=230)}


def test_a_long_plan_does_not_make_the_ledger_forget_or_grow() -> None:
    run = begun().change(dropout=0.2).measure(4.0).plan("lr", 2e-4, 990).measure(*[4.0] * 90)
    assert len(parts(run)) > 2 * KEPT
    assert [past.decision for past in snapshot.take(run.now, "x").interventions] == ["d1", "d2"]
    for kept in (run.ledger.revisions, run.ledger.origins, run.ledger.plans.moves):
        assert len(kept) <= KEPT


def test_a_change_that_supersedes_a_part_takes_it_over_and_is_still_a_change_of_its_own_alone() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0)
    run.obeys = False
    run.measure(4.0)
    waiting = parts(run)[-1].control
    assert run.ledger.outstanding == waiting
    assert run.why() == "evaluation"  # a part holds nothing up
    run.obeys = True
    run.change(dropout=0.2)
    assert run.state.recipe == {"lr": waiting.params["lr"], "dropout": 0.2}
    assert [i.changes.keys() for i in run.state.interventions] == [{"lr"}, {"dropout"}]
    assert run.state.changed_at["lr"] == 3
    assert run.ledger.plans.underway.keys() == {"lr"}
    run.measure(4.0)
    assert way(run)[-1] < waiting.params["lr"]  # type: ignore[operator]


def test_a_plan_goes_on_when_another_change_is_taken_back() -> None:
    run = watched(challenge_evals=0)
    run.plan("lr", 2e-4, 400).measure(4.0).change(dropout=0.2)
    run.obeys = False
    (*_, waiting) = parts(run.measure(4.0))
    (back,) = run.measure(math.nan).reversals
    assert (back.why, back.decisions) == ("harm", ["d2"])
    assert back.parameters == {"lr": waiting.control.params["lr"], "dropout": 0.1}
    run.obeys = True
    run.obey()
    assert run.ledger.plans.underway.keys() == {"lr"}
    before = run.state.recipe["lr"]
    run.measure(4.0)
    assert run.state.recipe["lr"] < before  # type: ignore[operator]


# -- how it ends -------------------------------------------------------------------------------------------------------


def test_it_is_revoked_by_any_change_of_its_parameter_even_to_where_it_is() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0)
    stay = run.state.recipe["lr"]
    run.change(lr=stay)
    assert run.ledger.plans.underway == {}
    assert run.measure(4.0, 4.0).state.recipe["lr"] == stay
    assert "in effect already" in objections(run.judge({**answer(), "plans": {}, "changes": {"lr": stay}}))


def test_another_plan_takes_its_place_and_what_does_not_name_it_leaves_it() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0).change(dropout=0.2).measure(4.0).plan("lr", 4e-3, 500)
    assert {name: found.decision for name, found in run.ledger.plans.underway.items()} == {"lr": "d3"}
    run.answer({"diagnosis": "unclear", "evidence": "", "action": "keep"})
    assert run.ledger.plans.underway.keys() == {"lr"}


def test_a_part_that_the_workload_refuses_ends_it_and_the_log_says_so() -> None:
    run = begun().plan("lr", 2e-4, 230)
    run.obeys = False
    run.measure(4.0)
    assert run.ledger.outstanding is not None
    run.fold(refused(run.at, run.ledger.outstanding.revision))
    (ended,) = run.of(events.PlanEnded)
    assert (ended.decision, ended.name, ended.why) == ("d1", "lr", "the workload refused a part of it: too late")
    assert run.ledger.plans.underway == {}
    assert run.ledger.refused == 0  # no answer of the manager was


def test_what_works_at_first_is_watched_to_its_end() -> None:
    run = watched().plan("lr", 1e-4, 200).measure(3.9, 3.8, 3.7, 3.6, 3.5, 3.4, best=True)
    assert run.of(events.Kept) == []
    run.measure(9.0, 9.0)
    assert [event.why for event in run.reversals] == ["harm"]
    assert watched().plan("lr", 1e-4, 120).measure(3.9, 3.8, 3.7, 3.6, 3.5, 3.4, best=True).of(events.Kept) != []


def test_a_part_that_came_too_late_for_its_step_is_made_up_for() -> None:
    policy = FREE.model_copy(update={"limits": Limits(lead_steps=1)})
    run = begun(policy=policy).plan("lr", 2e-4, 230)
    run.obeys = False
    run.measure(4.0)
    assert run.ledger.outstanding is not None
    run.fold(refused(run.at + 4, run.ledger.outstanding.revision))
    assert run.of(events.PlanEnded) == []
    run.obeys = True
    run.measure(4.0)
    assert run.state.recipe["lr"] == pytest.approx(2e-3 - 1.8e-3 * 3 / 20)


def test_what_the_script_overwrites_or_moves_by_itself_ends_it() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0, 4.0)
    run.at += 10
    run.fold(evaluation(run.at, 4.0, params={"lr": 1e-3}))
    (ended,) = run.of(events.PlanEnded)
    assert ended.why == f"something in the script overwrote it: it was 0.001 at step {run.at}"
    moving = begun().plan("lr", 2e-4, 230)
    moves = {"lr": protocol.Moving(value=1e-3)}
    moving.fold(evaluation(moving.at + 10, 4.0).model_copy(update={"moving": moves}))
    assert "the script itself moves lr" in moving.of(events.PlanEnded)[0].why


def test_a_rollback_restores_weights_and_a_plan_goes_on() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0)
    run.fold(applied(run.at, 99, command="rollback", to="best"))
    run.measure(4.0, 4.0)
    assert run.state.recipe["lr"] == pytest.approx(2e-3 - 1.8e-3 * 4 / 20)


def test_after_a_restart_it_goes_on_and_never_back() -> None:
    run = begun().plan("lr", 2e-4, 230).measure(4.0, 4.0, 4.0)
    rate = run.state.recipe["lr"]
    run.tell(events.Restarted(attempt=1, exit="crashed", resume="c", telemetry_offset=0))
    run.fold(start(lr(value=rate), dropout(value=0.1), resumed=protocol.Resumed(path="c", step=40)))
    run.at = 40
    run.measure(4.0)
    assert run.state.recipe["lr"] == rate
    run.measure(4.0, 4.0)
    assert run.state.recipe["lr"] == pytest.approx(2e-3 - 1.8e-3 * 5 / 20)


# -- on trial ----------------------------------------------------------------------------------------------------------


def watched(**watch: Any) -> Run:
    return Run(policy=Policy(probation=Probation(**watch))).measure(*[4.0] * 6, best=True)


def test_a_plan_is_one_trial_that_cannot_have_brought_nothing_before_its_end() -> None:
    run = watched(challenge_evals=0).plan("lr", 1e-4, 200)
    for _ in range(9):
        run.measure(4.0)
        assert len(run.ledger.trials) == 1
        assert run.ledger.trials[0].until == 200
    assert run.reversals == []
    run.measure(*[4.0] * 6)
    assert [event.why for event in run.reversals] == ["no proof"]
    assert run.state.recipe["lr"] == 1e-3


def test_harm_takes_the_whole_of_it_back_and_ends_it() -> None:
    run = watched().plan("lr", 1e-4, 200).measure(4.0, 9.0, 9.0, 9.0)
    (back,) = run.reversals
    assert (back.why, back.decisions, back.parameters["lr"]) == ("harm", ["d1"], 1e-3)
    assert run.ledger.plans.underway == {}
    assert run.measure(4.0, 4.0).state.recipe["lr"] == 1e-3


def test_nothing_goes_on_while_something_else_has_to_be_done_first() -> None:
    run = begun().plan("lr", 2e-4, 230)
    for wanted in ("ending", "demoted"):
        other = begun().plan("lr", 2e-4, 230)
        setattr(other.ledger, wanted, True)
        assert len(parts(other.measure(4.0, 4.0))) == 0
    run.obeys = False
    run.measure(4.0, 4.0)  # the first of these is not answered yet
    assert len(parts(run)) == 1
    assert plans.next_parts(run.now) == {}
