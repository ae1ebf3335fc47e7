"""The rules of reinforcement learning on synthetic telemetry: every state here is folded from records."""

from __future__ import annotations

import math
from typing import Any

import pytest
from factories import applied, fold, start, view
from factories.episodes import METRICS, TOTAL, number, run, space
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Exploration, Policy
from trainmgr.contract.proposal import Plan, Proposal
from trainmgr.managers import exploration, reading
from trainmgr.managers.rules import RulesManager
from trainmgr.state.run_state import RunState

LIMITS = Exploration()


def decide(state: RunState, policy: Policy | None = None) -> Proposal:
    policy = policy or Policy()
    return Proposal.model_validate(RulesManager(policy).decide(view(state, policy)))


FROZEN = [(0.0, 0.1)]
LEARNING = [(0.1, 0.2), (0.3, 0.2), (0.5, 0.2), (0.7, 0.15)]


def test_the_figures_are_those_of_the_roles() -> None:
    now = exploration.episodes(view(run((0.2, 0.1), (0.6, 0.3), (0.5, 0.125), shift=0.3, noise=0.4)))
    assert now == exploration.Episodes(0.5, 0.125, 0.6, 0.3, 0.4)
    assert now.idle == 0.375
    assert str(now) == "success 0.50, unsafe 0.12, neither 0.38, policy step 0.3 of its limit, action noise 0.40"


def test_a_new_best_is_no_step_down() -> None:
    assert reading.figures(view(run(*LEARNING))) == "val 0.55, best 0.55 at step 40 (+0.0%, 0 evaluations ago)"


@pytest.mark.parametrize("missing", ["w", "x"])
def test_without_shares_of_success_and_harm_it_is_no_exploration(missing: str) -> None:
    metrics = {name: info for name, info in METRICS.items() if name != missing}
    assert exploration.episodes(view(run(*FROZEN, metrics=metrics))) is None


def test_shares_that_are_not_finite_say_nothing() -> None:
    assert exploration.episodes(view(run((math.nan, 0.1), scores=[0.0]))) is None


def test_as_long_as_no_episode_has_ended_the_supervised_rules_do_not_judge_either() -> None:
    rows = [(0.9, 0.05), (math.nan, math.nan), (math.nan, math.nan), (math.nan, math.nan)]
    got = decide(run(*rows, scores=[0.8, 0.2, 0.2, 0.2], metrics={name: METRICS[name] for name in "wx"}))
    assert (got.diagnosis, got.action) == ("healthy", "keep")


def test_without_the_other_roles_only_what_needs_them_is_left_out() -> None:
    metrics = {name: METRICS[name] for name in "wx"}
    assert decide(run(*FROZEN, metrics=metrics)).action == "keep"


def test_frozen_learns_faster_in_larger_steps_for_more_reward() -> None:
    got = decide(run(*FROZEN))
    assert (got.diagnosis, got.action, got.to) == ("exploration-collapse", "adjust", None)
    assert set(got.changes) == {"a", "b", "c", "d", "e", "f"}
    assert got.changes["a"] == pytest.approx(1.5e-4)  # as far as one change reaches
    assert got.changes["b"] == pytest.approx(1e-5 * 300**LIMITS.rate, rel=1e-5)
    assert got.changes["c"] == pytest.approx(0.03 + LIMITS.trust * 0.27, rel=1e-5)
    assert got.changes["d"] == 6
    assert got.changes["e"] == pytest.approx(1 + LIMITS.penalty * 49, rel=1e-5)
    assert got.changes["f"] == pytest.approx(2.5 + LIMITS.reward * 7.5, rel=1e-5)
    assert got.evidence.startswith("success 0.00, unsafe 0.10, neither 0.90, policy step 0.01 of its limit")


def test_a_policy_that_moves_as_far_as_it_may_is_not_frozen() -> None:
    assert decide(run(*FROZEN, shift=0.3)).action == "keep"


UNSAFE = {"noise": 0.9, "shift": 0.5, "parameters": space(3e-3, 0.3, 8, 1.0, 10.0, 0.08)}


def test_unsafe_and_early_begins_again_with_care() -> None:
    got = decide(run((0.2, 0.4), **UNSAFE))
    assert (got.diagnosis, got.action, got.to) == ("unsafe-exploration", "rollback", "initial")
    assert got.changes["a"] == 7.5e-4  # as far as one change reaches
    assert (got.changes["d"], got.changes["g"]) == (7, 0.02)
    assert got.changes["e"] == pytest.approx(1 + LIMITS.penalty * 49, rel=1e-5)
    assert "f" not in got.changes


@pytest.mark.parametrize("rows", [[(0.85, 0.1), (0.2, 0.4)], [(0.2, 0.4)] * 14])
def test_unsafe_does_not_throw_away_what_was_learned(rows: list[tuple[float, float]]) -> None:
    got = decide(run(*rows, **UNSAFE, scores=[0.0] * len(rows)))
    assert (got.diagnosis, got.action) == ("unsafe-exploration", "adjust")


@pytest.mark.parametrize(("unsafe", "noise"), [(0.1, 0.9), (0.4, 0.6)])
def test_harm_alone_or_noise_alone_is_not_unsafe_exploration(unsafe: float, noise: float) -> None:
    assert decide(run((0.2, unsafe), noise=noise, shift=0.5)).diagnosis == "healthy"


def test_slow_learns_faster_and_nothing_else() -> None:
    got = decide(run(*LEARNING, parameters=space(harm=8.0, bonus=8.0)))
    assert (got.diagnosis, set(got.changes)) == ("underfitting", {"a", "b"})
    assert decide(run(*LEARNING, (0.9, 0.05), parameters=space(harm=8.0, bonus=8.0, entropy=0.0))).action == "keep"


def test_entropy_is_no_longer_wanted_once_episodes_succeed() -> None:
    got = decide(run((0.75, 0.12), shift=0.5, parameters=space(entropy=0.02)))
    assert (got.diagnosis, got.changes) == ("routine", {"g": 0.005})


def test_what_was_lost_is_taken_back_with_smaller_steps() -> None:
    scores = [0.1, 0.3, 0.5, 0.6, 0.2, 0.1]
    rows = [(0.8, 0.1)] * 6
    parameters = space(1e-3, entropy=0.0)
    got = decide(run(*rows, shift=0.5, parameters=parameters, scores=scores))
    assert (got.diagnosis, got.action, got.to) == ("instability", "rollback", "best")
    assert got.changes == {"a": 5e-4, "b": 5e-4}
    once = decide(run(*rows, shift=0.5, parameters=parameters, scores=[0.1, 0.3, 0.5, 0.6, 0.6, 0.1]))
    assert once.action == "keep"


def test_in_the_last_part_the_rates_fall_in_a_straight_line() -> None:
    state = run(*[(0.9, 0.05)] * 21, shift=0.5, parameters=space(1e-3, entropy=0.0), scores=[i / 30 for i in range(21)])
    got = decide(state)
    assert (got.diagnosis, got.action) == ("routine", "adjust")
    lowest = {name: state.space.parameters[name].low for name in "ab"}
    assert got.plans == {name: Plan(to=low or 0.0, by_step=TOTAL) for name, low in lowest.items()}
    assert got.changes == {}
    assert got.evidence.startswith("290 steps are left; success 0.90")


@pytest.mark.parametrize(("last", "action"), [(0.8, "adjust"), (0.5, "stop")])
def test_it_ends_on_the_best_where_that_was_no_luck(last: float, action: str) -> None:
    scores = [0.85 if i % 2 else 0.8 for i in range(48)] + [last]
    got = decide(run(*[(0.9, 0.05)] * 49, shift=0.5, parameters=space(1e-3, entropy=0.0), scores=scores))
    assert got.action == action


def test_what_rests_is_left_alone() -> None:
    state = fold([applied(10, 1, {"a": (3e-5, 1.5e-4), "d": (3, 6)})], run(*FROZEN))
    assert not {"a", "d"} & set(decide(state).changes)


def test_supervised_rules_do_not_judge_exploration() -> None:
    """A score that falls for some evaluations is no overfitting, and is not called one."""
    rows = [(0.9, 0.05), (0.8, 0.06), (0.8, 0.08), (0.8, 0.07)]
    got = decide(run(*rows, shift=0.5, parameters=space(entropy=0.0)))
    assert (got.action, got.diagnosis) == ("keep", "healthy")


@pytest.mark.parametrize(("place", "scale", "expected"), [
    (0.0, "log", 1e-5), (1.0, "log", 1e-1), (0.5, "log", 1e-3), (0.5, "linear", 0.050005),
])  # fmt: skip
def test_a_place_of_a_range(place: float, scale: Any, expected: float) -> None:
    row = view(fold([start(number("a", 1e-3, 1e-5, 1e-1, "optimizer", scale=scale))])).recipe[0]
    assert reading.at(row, place) == pytest.approx(expected)


SHARES = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: (pair[0], pair[1] * (1 - pair[0])))


@examples(150)
@given(st.lists(SHARES, min_size=1, max_size=30), st.floats(0, 2), st.floats(0, 1.2),
       st.builds(space, st.floats(1e-5, 3e-3), st.floats(0.03, 0.3), st.integers(1, 8), st.floats(1, 50),
                 st.floats(2.5, 10), st.floats(0, 0.1)))  # fmt: skip
def test_whatever_is_measured_the_guard_accepts_the_answer(
    rows: list[tuple[float, float]], shift: float, noise: float, parameters: list[Parameter]
) -> None:
    state, policy = run(*rows, shift=shift, noise=noise, parameters=parameters), Policy()
    raw = RulesManager(policy).decide(view(state, policy))
    judgment = judge(raw, state, policy)
    assert judgment.result == "accepted", [check for check in judgment.checks if not check.ok]
