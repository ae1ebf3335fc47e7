"""The `rules` manager on synthetic telemetry: every state here is folded from records, none is made up."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from factories import situations
from factories.profiles import examples
from factories.ruled import DROP, LEARNING, LR, MEAN, Run, overfitted
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract import protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Policy
from trainmgr.contract.proposal import Plan
from trainmgr.deciding import snapshot
from trainmgr.managers import prompt, reading
from trainmgr.state.ledger import Ledger

# -- overfitting -------------------------------------------------------------------------------------------------------


def test_overfitting_rolls_back_slows_down_and_regularizes() -> None:
    proposal = overfitted().obey()
    assert (proposal.diagnosis, proposal.action, proposal.to) == ("overfitting", "rollback", "best")
    assert proposal.changes == {"rate": 1.2e-3, "drop": 0.2, "decay": 1.8, "mean": pytest.approx(1 - 1 / 60, rel=1e-5)}
    assert "4.8 at step 540" in proposal.evidence


def test_an_objective_to_be_maximized_is_treated_the_same() -> None:
    assert overfitted(mode="max").obey().changes == overfitted().obey().changes


def test_without_a_counterpart_and_without_a_way_back_the_changes_alone() -> None:
    run = overfitted(counterpart=None, commands=())
    proposal = run.obey()
    assert (proposal.diagnosis, proposal.action) == ("worsening", "adjust")
    assert set(proposal.changes) == {"rate", "mean"}


def test_without_a_counterpart_nobody_knows_that_it_is_overfitting_and_the_rules_do_not_say_so() -> None:
    """Slower helps against both; it is regularized where slower was tried, and the objective rose again."""
    run = overfitted(counterpart=None)
    first = run.obey()
    assert (first.diagnosis, first.action, first.to) == ("worsening", "rollback", "best")
    assert set(first.changes) == {"rate", "mean"}
    assert first.evidence == (
        "goal 5.7, best 4.8 at step 540 (+18.8%, 3 evaluations ago); no counterpart on training data is declared, so "
        "overfitting cannot be told from lost ground"
    )
    run.curve([5.1, 5.4, 5.7], None)
    again = run.obey()
    assert (again.diagnosis, set(again.changes)) == ("worsening", {"rate", "drop", "decay"})


def test_where_nothing_can_be_slowed_down_a_rise_is_regularized_at_once() -> None:
    assert set(overfitted(counterpart=None, space=[DROP]).obey().changes) == {"drop"}


def test_a_counterpart_that_was_not_measured_is_no_sign_of_overfitting_either() -> None:
    proposal = Run().curve([*LEARNING, 5.1, 5.4, 5.7], None).obey()
    assert proposal.diagnosis == "worsening"
    assert "; the gap to training data is not known, now or at the best, so" in proposal.evidence


def test_a_best_of_long_ago_was_overfitted_from_where_the_gap_is_wide() -> None:
    wide, narrow = (Run(space=[], total=None).curve(LEARNING).curve([5.7] * 90, gap) for gap in (2.0, 0.3))
    assert 540 not in [row[0] for row in situations.view(wide.state, wide.policy).evaluations.rows]
    assert (wide.ask().diagnosis, narrow.ask().diagnosis) == ("overfitting", "worsening")


def test_overfitting_early_in_the_run_begins_it_anew() -> None:
    proposal = overfitted(total=60_000).obey()
    assert (proposal.diagnosis, proposal.action, proposal.to) == ("overfitting", "rollback", "initial")
    assert proposal.changes == {"rate": 6e-4, "drop": 0.2, "decay": 1.8, "mean": pytest.approx(1 - 1 / 60, rel=1e-5)}
    assert overfitted(total=60_000, commands=()).obey().action == "adjust"


ON_PROBATION = Policy.model_validate({"probation": {"enabled": True}})


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("nobody knows that it is overfitting", {"counterpart": None, "diagnosis": "worsening"}),
        ("whether it is early is not known", {"total": None}),
        ("it would be judged as harm", {"policy": ON_PROBATION}),
        ("one change does not slow it down enough", {"space": [LR.model_copy(update={"min_ratio": 0.9}), DROP]}),
        ("nothing would slow down", {"space": [DROP]}),
        (
            "the start was that of a warm-up",
            {"space": [LR.model_copy(update={"value": 1e-5, "routine": True}), DROP]},
        ),
    ],
)
def test_otherwise_overfitting_goes_back_to_the_best(what: str, options: dict[str, Any]) -> None:
    diagnosis = options.pop("diagnosis", "overfitting")
    run = overfitted(**{"total": 60_000, **options})
    if "warm-up" in what:
        run.write(
            protocol.Eval, event="eval", step=run.step, metrics={"goal": 5.8, "train": 3.2}, params={"rate": 4e-3}
        )
    assert (run.obey().diagnosis, run.log[-1][1].to) == (diagnosis, "best"), what


def test_a_rise_of_training_itself_early_in_the_run_does_not_begin_it_anew() -> None:
    run = Run(total=60_000).curve(LEARNING)
    for loss in (5.1, 5.4, 5.7):
        run.evaluate(loss, loss - 0.51)  # a gap that is wider by a hair
    assert run.obey().to == "best"


def test_what_the_workload_refused_is_not_asked_for_again() -> None:
    run = overfitted(total=60_000)
    assert run.ask().to == "initial"
    ledger = Ledger(rejections=["refused by the workload: there is no checkpoint 'initial' yet"])
    raw = run.manager.decide(situations.view(run.state, run.policy, ledger))
    assert raw["to"] == "best"


def test_averages_that_grew_before_do_not_keep_a_run_from_beginning_anew() -> None:
    run = Run(space=[LR, DROP, MEAN.model_copy(update={"value": 0.95})], total=60_000)
    for loss in LEARNING:
        run.evaluate(loss, loss - 0.5).obey()
    for i, loss in enumerate((5.1, 5.4, 5.7)):
        run.evaluate(loss, 4.0 - i / 5).obey()
    assert {"mean"} == set(run.log[0][1].changes)
    assert run.log[-1][1].to == "initial"


@pytest.mark.parametrize("first", [0, 60])
def test_the_way_back_from_the_initial_weights_is_no_overfitting_no_plateau_and_no_divergence(first: int) -> None:
    run = Run(total=60_000)
    run.step += first  # the initial weights were evaluated, or they were not
    run.curve(LEARNING)
    for i, loss in enumerate((5.1, 5.4, 5.7)):
        run.evaluate(loss, 4.0 - i / 5)
    run.obey()
    for i in range(30):
        run.evaluate(12.0 - i / 4 + (i % 5) / 3, 11.5 - i / 4).obey()  # up now and then
    assert [p.to for _, p in run.log] == ["initial"]
    proposal = run.evaluate(4.7, 4.0).obey()  # a new best at last
    assert (proposal.diagnosis, set(proposal.changes)) == ("routine", {"mean"})
    run.curve([7.0] * 4, 3.0)
    assert (run.obey().diagnosis, run.log[-1][1].to) == ("overfitting", "best")


def test_the_learning_rate_falls_on_the_way_back_too() -> None:
    run = overfitted(total=7200)
    run.obey()
    for i in range(100):
        run.evaluate(7.8 - i * 0.038, 7.6 - i * 0.038).obey()  # not back before the rate falls
    assert {p.action for _, p in run.log[1:]} == {"adjust"}
    assert {p.diagnosis for _, p in run.log[1:]} == {"routine"}


@pytest.mark.parametrize("slope", [0.0, 1e-3])
def test_a_way_back_that_leads_nowhere_is_left(slope: float) -> None:
    run = overfitted(total=60_000)
    run.obey()
    for i in range(100):
        run.evaluate(7.0 - slope * i, 4.0).obey()
    assert [(p.diagnosis, p.to) for _, p in run.log[:2]] == [("overfitting", "initial"), ("overfitting", "best")]
    evaluations = (run.log[1][0] - run.log[0][0]) / run.spacing
    assert evaluations == (14 if not slope else 81)  # no best of its own in 12; 12 at a rate of 0.15


def test_averages_grow_with_the_run() -> None:
    run = Run(space=[MEAN.model_copy(update={"value": 0.95})], total=None)
    for i in range(100):
        run.evaluate(9.0 - i / 100, 8.9 - i / 100).obey()
    steps = [step for step, _ in run.log]
    assert steps[0] == 240  # when 48 steps are more than twice as many as 20
    assert all(2 <= b / a < 2.5 for a, b in pairwise(steps))
    assert run.state.recipe["mean"] == pytest.approx(1 - 1 / (0.2 * steps[-1]), rel=1e-5)


def test_an_average_grows_only_where_one_change_reaches_far_enough() -> None:
    space = [
        MEAN.model_copy(update={"value": 0.95, "max_delta": 0.001}),
        MEAN.model_copy(update={"name": "rate of it", "value": 0.95, "off": None}),
    ]
    run = Run(space=space, total=None)
    for i in range(100):
        run.evaluate(9.0 - i / 100, 8.9 - i / 100).obey()
    assert run.log == []


def test_averages_do_not_take_the_last_interventions() -> None:
    policy = Policy.model_validate({"limits": {"max_interventions": 4}})
    run = Run(space=[MEAN.model_copy(update={"value": 0.95})], total=None, policy=policy).curve(LEARNING)
    for spent, action in ((1, "adjust"), (2, "keep")):
        taken = situations.view(run.state, run.policy, Ledger(accepted=spent))
        assert run.manager.decide(taken)["action"] == action


def test_a_regularizer_on_a_logarithmic_scale_moves_on_it() -> None:
    decay = Parameter(name="decay", type="float", low=1e-6, high=1.0, scale="log", value=1e-2, group="regularization")
    proposal = overfitted(space=[decay]).obey()
    assert proposal.changes["decay"] == pytest.approx(10 ** (-2 + 0.2 * 6), rel=1e-5)


def test_one_bad_evaluation_is_not_overfitting() -> None:
    assert Run().curve(LEARNING).evaluate(5.7, 4.0).obey().action == "keep"


def test_noise_alone_is_not_overfitting() -> None:
    noise = (0.3, -0.3, 0.1, 0.35, -0.2, 0.0, -0.35, 0.3, -0.1, 0.25, -0.3)
    run = Run(total=None).curve([9.0, 7.0, 6.0, 5.0])
    for x in noise * 8:
        run.evaluate(5.0 + x, 4.5 + x / 2).obey()
    assert {p.diagnosis for _, p in run.log} <= {"plateau", "over-regularization", "routine"}
    assert len([p for _, p in run.log if p.diagnosis != "routine"]) <= 88 / run.policy.rules.plateau_evals


def test_a_change_is_measured_before_the_next() -> None:
    run = overfitted()
    run.obey()
    assert run.evaluate(5.9, 3.9).obey().action == "keep"
    assert run.evaluate(5.9, 3.9).obey().diagnosis == "overfitting"


def test_a_rise_of_training_itself_is_no_overfitting() -> None:
    run = Run().curve(LEARNING)
    for loss in (5.1, 5.4, 5.7):
        run.evaluate(loss, loss - 0.4)
    proposal = run.obey()
    assert (proposal.diagnosis, proposal.action, set(proposal.changes)) == ("instability", "rollback", {"rate"})


def test_when_every_response_is_used_up_it_keeps_and_says_so() -> None:
    run = Run(space=[LR.model_copy(update={"value": 4e-3})], total=None).curve(LEARNING)
    floor = 4e-3 * run.policy.rules.lr_floor
    for _ in range(40):
        run.evaluate(6.0, 3.0).obey()
    assert run.state.recipe["rate"] == pytest.approx(floor)
    assert len(run.log) == 3  # 1.2e-3, 3.6e-4, 2e-4
    assert (run.ask().action, run.ask().diagnosis) == ("keep", "overfitting")


def test_what_rests_or_is_frozen_is_left_alone() -> None:
    policy = Policy.model_validate({"parameters": {"drop": {"frozen": True}}, "limits": {"cooldown_evals": 6}})
    run = overfitted(policy=policy)
    assert "drop" not in run.obey().changes
    for _ in range(3):
        run.evaluate(5.9, 3.0)
    assert run.obey().action == "keep"


# -- divergence and instability ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_answered_at_once(value: float) -> None:
    proposal = Run().curve(LEARNING).evaluate(value, 4.0).obey()
    assert (proposal.diagnosis, proposal.action, proposal.changes) == ("divergence", "rollback", {"rate": 1.2e-3})


def test_an_objective_that_was_never_finite_is_not_measured_yet() -> None:
    """A mean return is NaN until the first episode has ended."""
    run = Run(mode="max", counterpart=None, total=None)
    for _ in range(run.policy.rules.plateau_evals - 1):
        proposal = run.evaluate(math.nan).obey()
        assert (proposal.diagnosis, proposal.action) == ("healthy", "keep")
        assert proposal.evidence == "goal nan, not measured yet"
    unclear = run.evaluate(math.nan).obey()
    assert (unclear.diagnosis, unclear.action) == ("unclear", "keep")
    assert unclear.evidence.startswith("goal not finite in any of 12 evaluations")
    assert run.evaluate(-5.0).obey().diagnosis == "healthy"
    assert run.evaluate(math.nan).obey().diagnosis == "divergence"
    assert [p.diagnosis for _, p in run.log] == ["divergence"]


def test_a_loss_scaler_that_finds_its_scale_is_left_alone() -> None:
    run = Run(total=None, space=[LR])
    for i in range(10):
        norms = (math.inf,) * 3 + (1.0,) * 7 if i in (0, 5) else (1.0,) * 10
        assert run.evaluate(5.0 - i / 10, 4.9 - i / 10, norms=norms).obey().diagnosis == "healthy"
    norms = (*(1.0,) * 2, *(math.inf,) * 8)
    assert run.evaluate(3.9, 3.8, norms=norms).obey().diagnosis == "healthy"  # the objective says that all is well
    for norm in (1.0, *(math.inf,) * 9):  # more than it ever took
        run.write(protocol.Step, event="step", step=run.step + 1, metrics={"grad_norm": norm})
    proposal = run.obey()
    assert (proposal.diagnosis, proposal.action) == ("divergence", "rollback")
    assert proposal.evidence.startswith("grad_norm no longer finite (9 values); goal 3.9")


@pytest.mark.parametrize("goal", [4.0, math.nan])
def test_a_loss_that_never_was_finite_is_named_and_there_is_no_way_back(goal: float) -> None:
    run = Run(total=None)
    for step in range(1, 4):
        run.write(protocol.Step, event="step", step=step, metrics={"loss": math.nan})
        proposal = run.evaluate(goal, goal).obey()
    assert (proposal.diagnosis, proposal.action) == ("unclear", "keep")
    assert proposal.evidence.startswith("loss never finite so far; goal")


def test_what_was_never_finite_does_not_hide_what_can_be_helped() -> None:
    run = overfitted()
    for step in (1, 2):
        run.write(protocol.Step, event="step", step=run.step + step, metrics={"aux_loss": math.nan})
    assert run.evaluate(5.9, 3.3).obey().diagnosis == "overfitting"


def test_training_worse_than_at_the_beginning_is_divergence() -> None:
    proposal = Run().curve(LEARNING).evaluate(12.0, 11.0).obey()
    assert (proposal.diagnosis, proposal.action) == ("divergence", "rollback")


def test_training_at_its_beginning_is_not_divergence_for_noise() -> None:
    run = Run(space=[LR], total=None)
    for loss in (5.0, 4.9, 5.1, 4.95, 5.05, 4.9, 5.1, 5.0, 5.05):
        run.evaluate(loss, loss - 0.1)
    assert run.state.evaluations[-1].metrics["train"] > 4.9  # than at the first evaluation
    assert run.obey().action == "keep"


def test_divergence_that_nothing_helps_against_is_named_and_kept() -> None:
    run = Run(space=[DROP], commands=()).curve(LEARNING).evaluate(math.nan, math.nan)
    assert (run.obey().action, run.ask().diagnosis) == ("keep", "divergence")


def test_many_outlying_gradient_norms_are_instability() -> None:
    run = Run().curve(LEARNING).evaluate(4.79, 4.29, norms=(1.0,) * 9 + (50.0,))
    proposal = run.obey()
    assert (proposal.diagnosis, proposal.action, proposal.changes) == ("instability", "adjust", {"rate": 1.2e-3})
    assert run.evaluate(4.78, 4.28, norms=(1.0,) * 9 + (50.0,)).obey().action == "keep"  # measured first


# -- plateau -----------------------------------------------------------------------------------------------------------


def plateau(gap: float | None, **options: Any) -> Run:
    run = Run(**options).curve(LEARNING, gap)
    return run.curve([LEARNING[-1] + 0.001] * run.policy.rules.plateau_evals, gap)


def test_a_plateau_without_a_gap_to_look_at_is_left_more_slowly() -> None:
    proposal = plateau(None, counterpart=None, space=[LR, DROP]).obey()
    assert (proposal.diagnosis, proposal.action, proposal.changes) == ("plateau", "adjust", {"rate": 1.2e-3})


def test_a_plateau_with_a_wide_gap_is_regularized() -> None:
    proposal = plateau(1.0).obey()
    assert (proposal.diagnosis, set(proposal.changes)) == ("plateau", {"drop", "decay", "mean"})


def test_a_regularization_that_brought_no_new_best_is_taken_back_once_and_not_repeated() -> None:
    run = Run(total=None, policy=Policy.model_validate({"rules": {"average": 0}})).curve(LEARNING, 1.0)
    for _ in range(200):
        run.evaluate(4.81, 3.81).obey()
    tight, back, *others = [p for _, p in run.log]
    assert (tight.diagnosis, tight.changes["drop"], tight.changes["decay"]) == ("plateau", 0.2, 1.8)
    assert (back.diagnosis, back.action, back.to) == ("over-regularization", "rollback", "best")
    assert back.changes == {"rate": 1.2e-3, "drop": 0.1, "decay": 1.2}
    assert [set(p.changes) for p in others] == [{"rate"}] * 2  # down to its floor


def test_a_plateau_with_a_narrow_gap_takes_back_what_was_tightened() -> None:
    run = overfitted(total=None, policy=Policy.model_validate({"rules": {"average": 0}}))
    run.obey()
    run.curve([4.8] * 14, 0.01)
    proposal = run.obey()
    assert (proposal.diagnosis, proposal.changes) == ("over-regularization", {"drop": 0.1, "decay": 1.2})


def test_over_regularization_goes_back_to_the_start_and_no_further() -> None:
    space = [LR, DROP.model_copy(update={"value": 0.1})]
    assert "drop" not in plateau(0.01, space=space).obey().changes


def test_a_rate_at_its_floor_rises_where_nothing_overfits() -> None:
    run = Run(space=[LR], total=None).curve(LEARNING)
    diagnoses = []
    for _ in range(80):
        diagnoses.append(run.evaluate(4.81, 4.8).obey().diagnosis)
    assert "underfitting" in diagnoses
    assert 2e-4 <= float(run.state.recipe["rate"]) <= 4e-3


# -- the end, floors, cadence ------------------------------------------------------------------------------------------


def test_the_run_ends_on_its_best() -> None:
    proposal = overfitted(total=13 * 60).obey()  # the 13th evaluation is at step 720
    assert (proposal.diagnosis, proposal.action, proposal.to) == ("routine", "stop", "best")


def test_without_a_stop_the_run_ends_near_its_best() -> None:
    proposal = overfitted(total=13 * 60, commands=("rollback",)).obey()
    assert (proposal.diagnosis, proposal.action, proposal.to) == ("routine", "rollback", "best")


def test_the_rate_falls_in_a_line_at_the_end() -> None:
    run, rates = Run(total=6000), [4e-3]
    for i in range(100):
        run.evaluate(5.0 - i / 100, 4.9 - i / 100).obey()
        rates += [float(run.state.recipe["rate"])] if run.step >= 4500 else []
    ((step, proposal),) = run.log  # one plan
    assert (step, proposal.diagnosis, proposal.changes) == (4500, "routine", {"mean": 0.983333})
    assert proposal.plans == {"rate": Plan(to=4e-5, by_step=6000)}
    assert rates == pytest.approx([4e-3 - (4e-3 - 4e-5) * i / 25 for i in range(26)])


def test_a_rate_that_another_rule_changed_meanwhile_is_annealed_anew() -> None:
    run = Run(total=6000)
    for i in range(80):
        run.evaluate(5.0 - i / 100, 4.9 - i / 100).obey()
    while run.log[-1][1].diagnosis == "routine":
        run.evaluate(run.state.evaluations[-1].metrics["goal"] + 0.2, 3.0).obey()
    assert run.log[-1][1].changes["rate"] < 3e-3  # type: ignore[operator]
    run.curve([4.0, 3.9, 3.8]).obey()
    step, proposal = run.log[-1]
    assert step == run.step
    assert proposal.plans == {"rate": Plan(to=4e-5, by_step=6000)}


def test_a_plateau_at_the_end_is_left_to_the_annealing() -> None:
    run = Run(space=[LR.model_copy(update={"low": 3.5e-3})], total=6000).curve(LEARNING)
    while run.step < 5940:
        run.evaluate(4.8, 4.79).obey()
    assert {p.diagnosis for step, p in run.log if step < 4500} == {"plateau", "underfitting"}
    assert {p.diagnosis for step, p in run.log if step >= 4500} <= {"routine"}


def test_without_a_planned_end_nothing_is_annealed() -> None:
    run = Run(total=None)
    for i in range(100):
        run.evaluate(5.0 - i / 100, 4.9 - i / 100).obey()
    assert run.log == []


def test_a_long_run_is_not_frozen_by_a_cut_at_every_boundary() -> None:
    """Each change lets the objective fall a little further before it rises again."""
    run, best = Run(total=12_000), 5.0
    for i in range(199):
        age = i if not run.log else (run.step - run.log[-1][0]) // run.spacing
        loss = best * (1 + 0.004 * abs(age - 6))
        run.evaluate(loss, loss - 1.0).obey()
        best -= 0.002
    early = [p for step, p in run.log if step < 9000]
    cuts = [p for p in early if "rate" in p.changes]
    assert len(early) < 150 / 4
    assert 1 <= len(cuts) <= 3  # from the start to the floor
    assert float(run.state.recipe["rate"]) >= 4e-3 * run.policy.rules.anneal_to


# -- whatever happens --------------------------------------------------------------------------------------------------


floats = st.floats(-20, 20) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0])


def awkward(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers that six digits do not hold."""
    return st.integers(0, 97).map(lambda i: low + (high - low) * i / 97)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    low = draw(awkward(1e-6, 1.0))
    high = low + draw(awkward(1e-3, 5.0))
    off = draw(st.sampled_from([None, 0.0]))
    return Parameter(
        name="p",
        type="float",
        low=low,
        high=high,
        scale=draw(st.sampled_from(["log", "linear"])),
        value=draw(awkward(low, high) | st.just(low if off is None else off)),
        max_ratio=draw(st.none() | awkward(1.01, 3.0)),
        min_ratio=draw(st.none() | awkward(0.05, 0.99)),
        max_delta=draw(st.none() | awkward(1e-3, 2.0)),
        group=draw(st.sampled_from(["optimizer", "regularization", "averaging", "other"])),
        off=off,
    )


@examples(150)
@given(
    curve=st.lists(st.tuples(floats, st.none() | floats, st.sampled_from([1.0, 100.0])), min_size=1, max_size=40),
    space=st.lists(parameters(), max_size=4),
    mode=st.sampled_from(["min", "max"]),
    total=st.none() | st.integers(1, 400),
    commands=st.sampled_from([(), ("rollback",), ("rollback", "stop")]),
    cooldown=st.integers(0, 3),
)
def test_whatever_the_curve_what_the_rules_propose_is_allowed(
    curve: list[tuple[float, float | None, float]],
    space: list[Parameter],
    mode: protocol.Mode,
    total: int | None,
    commands: tuple[str, ...],
    cooldown: int,
) -> None:
    named = [p.model_copy(update={"name": f"p{i}"}) for i, p in enumerate(space)]
    policy = Policy.model_validate({"limits": {"cooldown_evals": cooldown}})
    run = Run(space=named, mode=mode, total=total, spacing=10, commands=commands, policy=policy)
    for objective, train, norm in curve:
        run.evaluate(objective, train, norms=(1.0,) * 9 + (norm,)).obey()  # obey asserts it


def test_a_plan_that_was_overrun_is_no_plan() -> None:
    """As where the total forgot to count something: neither annealing nor a last chance, and no steps below zero."""
    run = Run(total=200)
    run.curve(LEARNING)
    for rise in (0.2, 0.4):
        said = run.evaluate(4.8 + rise, 4.0).ask()
        assert "left" not in said.evidence
        assert said.action != "stop"
        assert said.diagnosis != "routine"


def test_a_rise_from_zero_without_a_scale_is_said_to_be_beyond_judgment() -> None:
    run = Run(space=[LR], counterpart=None)
    assert run.evaluate(0.0).obey().diagnosis == "healthy"
    for value in (0.5, 1.0):
        said = run.evaluate(value).obey()
        assert (said.diagnosis, said.action) == ("unclear", "keep")
        assert said.helpless.endswith("cannot be judged: declare scale=, the difference that counts as 100%")


def test_a_fall_of_what_is_to_rise_does_not_read_as_a_rise() -> None:
    run = Run(mode="max", counterpart=None)
    run.evaluate(-99.5)
    assert reading.figures(view(run)) == "goal 99.5, best 99.5 at step 0 (+0.0%, 0 evaluations ago)"
    assert reading.figures(view(run.evaluate(-80.0))) == "goal 80, best 99.5 at step 0 (-19.6%, 1 evaluation ago)"


def view(run: Run) -> snapshot.Snapshot:
    return situations.view(run.state, run.policy, run.ledger)


def bare(losses: list[float], gap: float | None = 0.5, **options: Any) -> Run:
    """A run of which nothing can be changed, as of a script that is only read."""
    run = Run(space=[], commands=("stop",), total=None, **options)
    return run.curve(LEARNING, None if gap is None else 0.5).curve(losses, gap)


def test_what_only_gets_worse_is_stopped_where_nothing_else_can_be_done() -> None:
    patience = Policy().rules.plateau_evals
    rising = [5.0 + 0.1 * step for step in range(patience)]
    proposal = bare(rising, 1.0).obey()
    assert (proposal.diagnosis, proposal.action, proposal.to) == ("overfitting", "stop", None)
    assert bare(rising[:-1], 1.0).ask().action == "keep"
    assert bare(rising, None, counterpart=None).obey().diagnosis == "worsening"
    proposal = bare([math.nan] * patience, None).obey()
    assert (proposal.diagnosis, proposal.action) == ("divergence", "stop")


def test_a_language_model_is_offered_a_stop_and_nothing_else() -> None:
    run = bare([5.0] * 8)
    text = prompt.render(situations.view(run.state, run.policy, run.ledger), 5000).user
    assert "Allowed now: keep, stop." in text
    assert "there is no parameter that may be changed" in text


def test_a_plateau_is_no_reason_to_stop_and_neither_is_what_could_be_helped() -> None:
    assert bare([LEARNING[-1] + 0.001] * 40).ask().diagnosis == "plateau"
    assert bare([LEARNING[-1] + 0.001] * 40).ask().action == "keep"
    rising = [5.0 + 0.1 * step for step in range(40)]
    assert Run(space=[DROP], commands=("stop",), total=None).curve([*LEARNING, *rising], 1.0).ask().action != "stop"
    assert bare(rising, policy=Policy.model_validate({"actions": {"stop": False}})).ask().action == "keep"
