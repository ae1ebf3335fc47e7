"""The rules for a loss with several terms, on synthetic telemetry and in a short run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pinn
import pytest
from factories import applied, checkpoint, evaluation, fold, lr, start, step, view
from factories.profiles import examples
from factories.situations import judge
from hypothesis import given
from hypothesis import strategies as st
from scripts import WAITING

from trainmgr.base.paths import RunPaths
from trainmgr.contract import protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.contract.policy import Imbalance, Policy, Rules, Staleness
from trainmgr.contract.proposal import Diagnosis, Proposal
from trainmgr.contract.protocol import MetricInfo, Objective
from trainmgr.log import history
from trainmgr.log.telemetry import Feed
from trainmgr.managers import imbalance
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import proof, replay
from trainmgr.running import launch
from trainmgr.state.ledger import Decision, Ledger
from trainmgr.state.run_state import RunState
from trainmgr.testing import Recorder, write_child

LIMITS = Imbalance()
EVERY = 10
Norms = tuple[float, float, float]


def weight(name: str, value: float = 1.0, **more: Any) -> Parameter:
    """Names say nothing on purpose."""
    return Parameter(**{"name": name, "type": "float", "low": 1e-3, "high": 1e4, "scale": "log", "max_ratio": 10.0,
                        "min_ratio": 0.1, "value": value, "group": "loss weight", **more})  # fmt: skip


SPACE = [lr(), weight("a"), weight("b"), weight("c")]
METRICS = {name: MetricInfo(role="loss gradient", depends=[of]) for name, of in zip("xyz", "abc", strict=True)}
DROWNED: Norms = (2000.0, 4.0, 16.0)
BALANCED: Norms = (2000.0, 1000.0, 700.0)


def begun(space: list[Parameter] | None = None, metrics: dict[str, MetricInfo] | None = None, **more: Any) -> RunState:
    told = {"objective": Objective(metric="val", mode="min"), "metrics": METRICS if metrics is None else metrics}
    return fold([start(*(space or SPACE), **{**told, **more})])


def measured(state: RunState, *rows: Norms, val: float | list[float] = 0.5, **more: float) -> RunState:
    """``state`` with one more evaluation for each row."""
    values = val if isinstance(val, list) else [val] * len(rows)
    for norms, value in zip(rows, values, strict=True):
        at, best = state.step + EVERY, state.best
        named = dict(zip("xyz", norms, strict=True))
        fold([step(at, loss=1.0), evaluation(at, value, **named, **more)], state)
        if state.best != best:
            fold([checkpoint(at)], state)
    return state


def decide(state: RunState, ledger: Ledger | None = None, policy: Policy | None = None) -> Proposal:
    policy = policy or Policy()
    return Proposal.model_validate(RulesManager(policy).decide(view(state, policy, ledger)))


class Run:
    """A run whose workload does what the rules say."""

    def __init__(self, state: RunState) -> None:
        self.state, self.ledger, self.revision = state, Ledger(), 0

    def obey(self) -> Proposal:
        proposal = decide(self.state, self.ledger)
        if proposal.action != "keep":
            self.change(proposal.diagnosis, proposal.changes, "rollback" if proposal.action == "rollback" else None)
        return proposal

    def change(self, diagnosis: Diagnosis, changes: dict[str, Any], command: str | None = None) -> Run:
        self.revision += 1
        name = f"d{self.revision}"
        self.ledger.revisions[self.revision] = name
        self.ledger.decisions[name] = Decision(name, diagnosis, None, "")
        pairs = {parameter: (self.state.recipe[parameter], new) for parameter, new in changes.items()}
        fold([applied(self.state.step, self.revision, pairs, command)], self.state)
        return self

    def measure(self, *rows: Norms, val: float | list[float] = 0.5, **more: float) -> Run:
        measured(self.state, *rows, val=val, **more)
        return self


# -- what is seen ------------------------------------------------------------------------------------------------------


def test_the_norms_are_those_of_the_role() -> None:
    now = imbalance.terms(view(measured(begun(), DROWNED, (8000.0, 1.0, 4.0))))
    assert now is not None
    assert now.weights == {"x": "a", "y": "b", "z": "c"}
    assert now.mean(1) == pytest.approx({"x": 8000, "y": 1, "z": 4})
    assert now.mean(3) == pytest.approx({"x": 4000, "y": 2, "z": 8})
    assert (now.ratio(1), now.ratio(2)) == (pytest.approx(8000), pytest.approx(2000))
    assert str(now) == "gradient norms by weight: a 8e+03, b 1, c 4; largest over smallest 500, 8e+03"


def test_a_loss_with_one_term_has_no_balance() -> None:
    assert imbalance.terms(view(measured(begun(metrics={"x": METRICS["x"]}), DROWNED))) is None
    assert imbalance.terms(view(measured(begun(metrics={}), DROWNED))) is None


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_an_evaluation_with_a_norm_that_says_nothing_is_left_out(bad: float) -> None:
    now = imbalance.terms(view(measured(begun(), DROWNED, (2000.0, bad, 16.0))))
    assert now is not None
    assert len(now.rows) == 1


# -- when, and what ----------------------------------------------------------------------------------------------------


def test_small_gradients_get_more_weight_as_far_as_one_change_reaches() -> None:
    got = decide(measured(begun(), *[DROWNED] * LIMITS.patience))
    assert (got.diagnosis, got.action) == ("loss-imbalance", "adjust")
    assert got.changes == {"b": 10.0, "c": 10.0}
    assert got.evidence.startswith("gradient norms by weight: a 2e+03, b 4, c 16; largest over smallest 500, 500, 500;")


def test_no_further_than_their_share_of_the_largest() -> None:
    got = decide(measured(begun(), *[(2000.0, 4.0, LIMITS.share * 2000 / 3)] * LIMITS.patience))
    assert got.changes == {"b": 10.0, "c": pytest.approx(3.0, rel=1e-5)}
    assert "c" not in decide(measured(begun(), *[(2000.0, 4.0, LIMITS.share * 2100)] * LIMITS.patience)).changes


def test_it_takes_several_evaluations_and_means_smooth_what_scatters() -> None:
    assert decide(measured(begun(), *[DROWNED] * (LIMITS.patience - 1))).action == "keep"
    calm = [BALANCED] * (LIMITS.patience - 1)
    assert decide(measured(begun(), *calm, DROWNED)).diagnosis == "healthy"
    wild = [(2000.0, 2000 / ratio, 2000.0) for ratio in (60.0, 1000.0, 90.0)]
    assert decide(measured(begun(), *wild)).diagnosis == "loss-imbalance"


def test_once_begun_it_goes_on_at_every_evaluation_until_it_is_done() -> None:
    run = Run(measured(begun(), *[DROWNED] * LIMITS.patience))
    assert run.obey().changes == {"b": 10.0, "c": 10.0}
    assert run.obey().action == "keep"  # nothing is known of the new balance
    run.measure((20000.0, 40.0, 160.0))
    assert run.obey().changes == {"b": pytest.approx(100.0), "c": pytest.approx(100.0)}
    run.measure((20000.0, 400.0, 1600.0))
    wanted = LIMITS.share * 20000
    assert run.obey().changes == {
        "b": pytest.approx(100 * wanted / 400, rel=1e-5), "c": pytest.approx(100 * wanted / 1600, rel=1e-5),
    }  # fmt: skip
    for _ in range(LIMITS.patience):
        assert run.measure(BALANCED).obey().action == "keep"
    tilted = (2000.0, 2000 / (LIMITS.trigger - 1), 700.0)
    for _ in range(LIMITS.patience):  # unequal again, but not by as much as begins it
        assert run.measure(tilted).obey().action == "keep"
    assert run.measure(*[DROWNED] * LIMITS.patience).obey().diagnosis == "loss-imbalance"


def test_once_balanced_it_is_done_although_norms_scatter() -> None:
    run = Run(measured(begun(), *[DROWNED] * LIMITS.patience))
    run.obey()
    assert run.measure((2000.0, 2000 / (LIMITS.balanced - 1), 700.0)).obey().action == "keep"
    assert run.measure((2000.0, 2000 / (LIMITS.balanced + 5), 700.0)).obey().action == "keep"


def test_on_a_plateau_less_of_it_is_mended_before_the_learning_rate_falls() -> None:
    tilted, flat = (2000.0, 2000 / (LIMITS.balanced + 10), 700.0), Rules().plateau_evals
    run = Run(measured(begun(), *[tilted] * flat, val=[0.5] + [0.6] * (flat - 1)))
    assert run.obey().action == "keep"
    got = run.measure(tilted, val=0.6).obey()
    assert got.diagnosis == "loss-imbalance"
    assert got.changes == {"b": pytest.approx(LIMITS.share * (LIMITS.balanced + 10), rel=1e-5)}
    for _ in range(flat - 1):
        assert run.measure(BALANCED, val=0.6).obey().action == "keep"
    assert run.measure(BALANCED, val=0.6).obey().diagnosis == "plateau"


def test_somebody_elses_change_of_a_weight_does_not_begin_it() -> None:
    run = Run(measured(begun(), BALANCED)).change("unclear", {"b": 5.0}).measure((2000.0, 40.0, 700.0))
    assert run.obey().action == "keep"


def test_a_weight_that_moves_by_itself_is_left_alone() -> None:
    state = measured(begun(), *[DROWNED] * LIMITS.patience)
    fold([evaluation(state.step + EVERY, 0.5, {"b": 1.2}, **dict(zip("xyz", DROWNED, strict=True)))], state)
    got = decide(state)
    assert (got.diagnosis, got.changes) == ("loss-imbalance", {"c": 10.0})
    fold([evaluation(state.step + EVERY, 0.5, {"c": 1.1}, **dict(zip("xyz", DROWNED, strict=True)))], state)
    assert (decide(state).diagnosis, decide(state).action) == ("loss-imbalance", "keep")


def test_a_weight_that_was_put_where_it_is_does_not_move_by_itself() -> None:
    run = Run(measured(begun(), BALANCED)).change("unclear", {"b": 5.0}).measure(*[DROWNED] * LIMITS.patience)
    assert run.obey().changes == {"b": 50.0, "c": 10.0}


@pytest.mark.parametrize("parameters", [
    [lr(), weight("a"), weight("b", 1e4), weight("c", group="")],  # at its bound, and no weight of a term
    [lr()],
])  # fmt: skip
def test_where_nothing_can_be_raised_it_is_said_and_left(parameters: list[Parameter]) -> None:
    got = decide(measured(begun(parameters), *[DROWNED] * LIMITS.patience))
    assert (got.diagnosis, got.action) == ("loss-imbalance", "keep")


# -- the other rules ---------------------------------------------------------------------------------------------------

RISE = [0.5, 0.6, 0.7, 0.8]


def test_a_rise_is_not_put_down_to_overfitting_where_terms_are_weighed_and_no_gap_is_measured() -> None:
    assert decide(measured(begun(), *[BALANCED] * 4, val=RISE)).diagnosis == "healthy"
    assert decide(measured(begun(metrics={}), *[BALANCED] * 4, val=RISE)).diagnosis == "worsening"


def test_a_rise_after_balancing_has_time_to_pass() -> None:
    goal = Objective(metric="val", mode="min", counterpart="train")
    run = Run(measured(begun(objective=goal), *[DROWNED] * LIMITS.patience, train=0.4))
    assert run.obey().diagnosis == "loss-imbalance"
    for _ in range(LIMITS.grace - 1):
        assert run.measure(BALANCED, val=0.9, train=0.4).obey().action == "keep"
    got = run.measure(BALANCED, val=0.9, train=0.4).obey()
    assert (got.diagnosis, got.action) == ("overfitting", "rollback")


@pytest.mark.parametrize(
    ("norms", "found"), [(BALANCED, "instability"), ((2000.0, 2000 / (LIMITS.balanced + 1), 700.0), "healthy")]
)
def test_outlying_gradients_of_terms_out_of_balance_are_no_instability(norms: Norms, found: str) -> None:
    state = measured(begun(), *[norms] * 3)
    fold([step(state.step + i, grad_norm=1.0 if i < 9 else 100.0) for i in range(1, 11)], state)
    at = state.step
    fold([evaluation(at, 0.5, **dict(zip("xyz", norms, strict=True)))], state)
    assert decide(state).diagnosis == found


@pytest.mark.parametrize("norms", [BALANCED, DROWNED])
def test_at_the_end_the_learning_rate_falls_and_nothing_is_weighed_any_more(norms: Norms) -> None:
    got = decide(measured(begun(total_steps=100), *[norms] * 8, val=[1 - i / 10 for i in range(8)]))
    assert (got.diagnosis, {*got.changes, *got.plans}) == ("routine", {"lr"})


# -- whatever happens --------------------------------------------------------------------------------------------------

NORMS = st.tuples(*[st.floats(0, 1e300) | st.sampled_from([math.nan, math.inf, 5e-324])] * 3)
WEIGHTS = st.builds(weight, st.sampled_from(["a", "b", "c", "d"]), st.floats(1e-3, 1e4),
                    max_ratio=st.none() | st.floats(1.001, 100), scale=st.sampled_from(["log", "linear"]))  # fmt: skip


@examples(150)
@given(
    st.lists(NORMS, min_size=1, max_size=30),
    st.lists(st.floats(-20, 20) | st.just(math.nan), min_size=30, max_size=30),
    st.lists(WEIGHTS, max_size=4, unique_by=lambda parameter: parameter.name),
)
def test_whatever_is_measured_the_guard_accepts_the_answer(
    rows: list[Norms], values: list[float], weights: list[Parameter]
) -> None:
    state, policy = begun([lr(), *weights], total_steps=400), Policy()
    for norms, value in zip(rows, values, strict=False):
        measured(state, norms, val=value)
        raw = RulesManager(policy).decide(view(state, policy))
        judgment = judge(raw, state, policy)
        assert judgment.result == "accepted", [check for check in judgment.checks if not check.ok]
        changes = {name: (state.recipe[name], new) for name, new in judgment.changes.items()}
        if changes:
            fold([applied(state.step, state.acknowledged + 1, changes)], state)


# -- a real run --------------------------------------------------------------------------------------------------------


def trained(folder: Path, policy: Policy, *more: str) -> RunPaths:
    """A run of 120 steps under the rules, which training waits for."""
    request = launch.Request(
        script=write_child(folder, WAITING), seed=3, manager="rules", runs_dir=folder, policy=policy,
        arguments=[pinn.__file__, "--profile", "tiny", "--steps", "120", *more],
    )  # fmt: skip
    paths, closing = launch.launch(request, lambda *_: Recorder())
    assert closing.exit_code == 0, paths.stderr.read_text()
    assert [str(f) for f in proof.prove(paths).findings] == []
    assert replay.rebuild(paths, RulesManager(policy)).differences == []
    return paths


SLOW = Staleness(max_age_steps=1000)  # slow machines may answer late


def test_a_short_run_is_balanced_and_proves_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boundary and initial values begin with a hundredth of their weight. Only what is robust is asserted."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    paths = trained(tmp_path, Policy(staleness=SLOW), "--weight-boundary", "0.01", "--weight-initial", "0.01")
    found = [d.diagnosis for d in history.latest(paths).ledger.decisions.values()]
    assert found.count("loss-imbalance") >= 2
    evaluations = [r for r in Feed(paths.telemetry).records() if isinstance(r, protocol.Eval)]
    ratios = [r.metrics["grad_imbalance"] for r in evaluations]
    assert min(ratios[LIMITS.patience :]) < ratios[0] / 100
    last = evaluations[-1].params
    assert last["weight_residual"] == 1.0
    assert all(float(last[f"weight_{name}"]) >= 0.1 for name in ("boundary", "initial"))


def test_weights_that_balance_themselves_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    eager = Imbalance(trigger=1.01, balanced=1.0, share=1.0)
    paths = trained(tmp_path, Policy(staleness=SLOW, imbalance=eager), "--weighting", "gradnorm")
    applied = [r for r in Feed(paths.telemetry).records() if isinstance(r, protocol.Applied)]
    assert not {name for r in applied for name in r.changes} & set(pinn.WEIGHTS)
