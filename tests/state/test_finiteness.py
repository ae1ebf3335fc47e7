"""What values that are not finite say: not measured yet, skipped for once, or lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from factories import applied, evaluation, fold, start, step
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.contract import events
from trainmgr.contract.policy import Policy
from trainmgr.contract.protocol import Resumed
from trainmgr.managers.rules import RulesManager
from trainmgr.readers import proof, replay
from trainmgr.state import finiteness
from trainmgr.state.finiteness import GRADIENT, LOSS, Reports
from trainmgr.state.run_state import RunState
from trainmgr.testing import supervise, write_child

VALUES = st.lists(st.sampled_from([1.0, math.nan, math.inf, -math.inf]), max_size=40)


def reported(values: Sequence[float], patience: int = LOSS) -> Reports:
    reports = Reports(patience)
    for value in values:
        reports.add(value)
    return reports


def trained(**metrics: Sequence[float]) -> RunState:
    """A run of which only these metrics of training are known, one value a step."""
    rows = zip(*metrics.values(), strict=True)
    return fold([start(), *(step(i, **dict(zip(metrics, row, strict=True))) for i, row in enumerate(rows))])


@given(VALUES, st.integers(1, 9))
def test_only_what_was_finite_is_lost_and_only_what_is_not_finite_now(values: list[float], patience: int) -> None:
    reports = reported(values, patience)
    last = [math.isfinite(value) for value in values[-patience:]]
    if reports.lost:
        assert any(map(math.isfinite, values))
        assert len(last) == patience
        assert not any(last)
    assert reports.unmeasured == (len(values) >= patience and not any(map(math.isfinite, values)))


@given(VALUES)
def test_single_values_between_finite_ones_are_never_a_loss_that_is_lost(values: list[float]) -> None:
    reports = Reports(LOSS)
    for value in values:
        for each in (value, 1.0):
            reports.add(each)
            assert not reports.lost


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_is_lost_at_the_second_value_in_a_row_and_a_gradient_norm_at_the_eighth(bad: float) -> None:
    assert trained(loss=[1.0, bad]).finiteness.lost == {}
    assert trained(loss=[1.0, bad, bad]).finiteness.lost == {"loss": 2}
    norms = [1.0] + [bad] * (GRADIENT - 1)
    assert trained(grad_norm=norms).finiteness.lost == {}
    assert trained(grad_norm=[*norms, bad]).finiteness.lost == {"grad_norm": GRADIENT}
    assert trained(**{"train/Loss": [1.0, bad, bad]}).finiteness.lost == {"train/Loss": 2}


def test_a_loss_scaler_that_finds_its_scale_loses_nothing() -> None:
    norms = [math.inf] * 20 + [1.0] * 30 + [math.inf] + [1.0] * 30 + [math.inf] * 3 + [1.0]
    for until in range(1, len(norms) + 1):
        assert trained(loss=[1.0] * until, grad_norm=norms[:until]).finiteness.lost == {}


def test_what_is_measured_at_every_sixteenth_step_only_is_not_lost_between() -> None:
    """As a norm that is known only where gradients were accumulated, or the loss of a part that is trained in turn."""
    values = [1.0 if i % 16 == 15 else math.nan for i in range(200)]
    for until in range(1, len(values) + 1):
        assert trained(grad_norm=values[:until], part_loss=values[:until]).finiteness.lost == {}
    assert trained(loss=[*values, *[math.nan] * 10]).finiteness.lost == {"loss": 18}


def test_a_loss_that_is_still_finite_speaks_for_the_weights() -> None:
    """As where batches have no sample of one task; weights that are lost spare no loss."""
    part, whole = [1.0, math.nan, math.nan, math.nan], [1.0, 1.0, 1.0, 1.0]
    assert trained(part_loss=part, loss=whole).finiteness.lost == {}
    assert trained(part_loss=part, loss=[1.0, 1.0, math.nan, math.nan]).finiteness.lost == {"part_loss": 3, "loss": 2}
    assert trained(part_loss=part[:3], loss=[1.0, 1.0, math.nan]).finiteness.lost == {"part_loss": 2}
    rare = fold([start(), step(0, loss=1.0, rare_loss=1.0), *(step(i, loss=math.nan) for i in range(5))])
    assert rare.finiteness.lost == {"loss": 5}  # what was reported before says nothing


def test_a_part_that_is_never_measured_is_not_a_loss_that_is_not() -> None:
    never = [math.nan] * 9
    assert trained(aux_loss=never, loss=[1.0] * 9).finiteness.unmeasured == {}
    assert trained(aux_loss=never, loss=never).finiteness.unmeasured == {"aux_loss": 9, "loss": 9}
    assert trained(grad_norm=never, loss=[1.0] * 9).finiteness.unmeasured == {"grad_norm": 9}


def test_other_metrics_have_reasons_of_their_own() -> None:
    bad = [1.0] + [math.nan] * 50
    assert trained(explained_variance=bad, ep_return=bad, accuracy=bad).finiteness.lost == {}


@pytest.mark.parametrize(("objectives", "lost", "unmeasured"), [
    ([], {}, {}), ([math.nan], {}, {"val": 1}), ([math.nan] * 3, {}, {"val": 3}), ([math.nan, 2.0], {}, {}),
    ([2.0, math.nan], {"val": 1}, {}), ([math.nan, 2.0, math.inf], {"val": 1}, {}), ([2.0, math.nan, 2.0], {}, {}),
    ([math.nan, math.nan, 2.0, math.nan], {"val": 1}, {}),
])  # fmt: skip
def test_the_objective_is_lost_at_once_and_never_before_it_was_there(
    objectives: list[float], lost: dict[str, int], unmeasured: dict[str, int]
) -> None:
    state = fold([start(), *(evaluation(10 * i, value) for i, value in enumerate(objectives, start=1))])
    assert (state.finiteness.lost, state.finiteness.unmeasured) == (lost, unmeasured)


def test_the_objective_counts_at_evaluations_only() -> None:
    state = fold([start(), evaluation(1, 2.0), step(2, val=math.nan), evaluation(3, 2.0)])
    assert state.finiteness.lost == {}


def test_a_rollback_begins_anew_and_what_fails_again_is_lost_again() -> None:
    bad = [step(i, loss=math.nan) for i in range(30)]
    state = fold([start(), step(0, loss=1.0), evaluation(1, 2.0), *bad, evaluation(30, math.nan)])
    assert state.finiteness.lost == {"loss": 30, "val": 1}
    fold([applied(31, 1, {"lr": (3e-3, 1e-3)})], state)
    assert state.finiteness.lost == {"loss": 30, "val": 1}  # other values, the same weights
    fold([applied(31, 2, command="rollback")], state)
    assert state.finiteness.lost == {}
    fold([step(32, loss=1.0), *bad[:2]], state)
    assert state.finiteness.lost == {"loss": 2}  # what it took until the rollback is no habit


def test_a_restart_may_wait_for_its_first_episode_and_is_known_to_have_had_a_loss() -> None:
    state = fold([start(), step(1, loss=1.0), evaluation(1, 2.0), step(2, loss=math.nan), evaluation(2, math.nan)])
    fold([start(resumed=Resumed(path="checkpoints/x", step=1)), evaluation(2, math.nan)], state)
    assert (state.finiteness.lost, state.finiteness.unmeasured) == ({}, {"val": 1})
    fold([step(2, loss=math.nan), step(3, loss=math.nan)], state)
    assert state.finiteness.lost == {"loss": 2}


def test_ever_new_names_do_not_add_up() -> None:
    state = fold([start(), step(0, **{"loss" * 99: 1.0}), *(step(i, **{f"loss{i}": 1.0}) for i in range(1000))])
    assert "loss0" in state.finiteness.steps
    assert len(state.finiteness.steps) == finiteness.KEPT


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_objective_that_is_measured_later_speaks_for_the_weights(bad: float) -> None:
    """As where an auxiliary loss is switched off and reported as NaN from there."""
    records = [start(), step(0, aux_loss=1.0, grad_norm=1.0), evaluation(1, 2.0)]
    gone = [step(i, aux_loss=bad, grad_norm=bad) for i in range(2, 12)]
    state = fold([*records, *gone])
    assert state.finiteness.lost == {"aux_loss": 10, "grad_norm": 10}  # nobody knows yet
    fold([evaluation(12, 1.5, train=bad), *gone, evaluation(24, 1.5, train=bad), *gone], state)
    assert state.finiteness.lost == {}
    fold([evaluation(36, bad)], state)
    assert state.finiteness.lost == {"val": 1}  # it is lost itself


def test_an_objective_that_never_moves_speaks_for_nothing_where_it_was_not_known_before() -> None:
    """An accuracy is finite whatever the weights are."""
    state = fold([start(), step(0, loss=1.0), *(step(i, loss=math.nan) for i in range(1, 9))])
    fold([evaluation(10, 0.1), step(11, loss=math.nan), evaluation(20, 0.1)], state)
    assert state.finiteness.lost == {"loss": 9}
    fold([evaluation(30, 0.2)], state)
    assert state.finiteness.lost == {}


@pytest.mark.parametrize("objective", [2.0, math.nan])
def test_the_counterpart_alone_never_diverges(objective: float) -> None:
    rows = [evaluation(1, 2.0, train=1.0), *(evaluation(i, objective, train=math.nan) for i in range(2, 9))]
    state = fold([start(), *rows])
    assert state.finiteness.lost == ({} if objective == 2.0 else {"train": 7, "val": 7})
    assert fold([start(), rows[0], *(evaluation(i, train=math.nan) for i in range(2, 9))]).finiteness.lost == {}


def test_a_habit_is_learnt_although_there_was_a_rollback_in_it() -> None:
    state = fold([start(), step(0, loss=1.0), *(step(i, loss=math.nan) for i in range(1, 4))])
    assert state.finiteness.lost == {"loss": 3}
    more = [step(i, loss=math.nan) for i in range(4, 16)]
    fold([applied(4, 1, command="rollback"), *more, step(16, loss=1.0)], state)
    fold([step(i, loss=math.nan) for i in range(17, 32)], state)
    assert state.finiteness.lost == {}  # 15 of 16 are its habit
    fold([step(32, loss=math.nan)], state)
    assert state.finiteness.lost == {"loss": 16}


@pytest.mark.parametrize(("name", "patience"), [
    ("loss", LOSS), ("train/Loss", LOSS), ("valLoss", LOSS), ("loss2", LOSS), ("aux_losses", LOSS), ("nll", LOSS),
    ("NLLLoss", LOSS), ("grad_norm", GRADIENT), ("gradNorm", GRADIENT), ("train.gradient-norm", GRADIENT),
    ("gradnorm", GRADIENT), ("lossGrad", GRADIENT),
    ("degradation", None), ("upgrade", None), ("glossary", None), ("undergraduates", None), ("blossom", None),
    ("Gradio", None), ("", None), ("x", None),
])  # fmt: skip
def test_names_are_read_by_their_parts(name: str, patience: int | None) -> None:
    state = fold([start(), step(1, **{name: 1.0})])
    assert {n: r.patience for n, r in state.finiteness.steps.items()} == ({name: patience} if patience else {})


# -- real children under the rules -------------------------------------------------------------------------------------

CHILD = """
import math

recipe, evals = {{"lr": 0.1}}, 0
with Workload("child", objective="goal", mode="{mode}") as w:
    w.float("lr", get=lambda: recipe["lr"], set=lambda v: recipe.update(lr=v), low=1e-5, high=1.0, scale="log",
            group="optimizer", max_ratio=4, min_ratio=0.05)
    w.command("rollback", lambda to: None)
    for step in range({steps}):
        w.step(step, {metrics})
        if step % 10 == 9:
            w.checkpoint(step, "checkpoints/none", best=True)
            w.eval(step, {{"goal": {goal}}})
            evals += 1
            until(lambda: settled(evals))
"""
SCALED = '{"loss": 2 - step / 200, "grad_norm": math.inf if step in (1, 2, 3, 65) else 1.0}'
WAITING = '{"loss": 1.0, "explained_variance": math.nan}'
BROKEN = '{"loss": 2 - step / 200 if step < 50 else math.nan}'


def under_the_rules(tmp_path: Path, steps: int = 100, **child: str) -> list[events.Verdict]:
    """What the rules said; all of it is proven and replayed."""
    script = write_child(tmp_path, CHILD.format(steps=steps, **child))
    paths, closing, heard = supervise(tmp_path, script, RulesManager(Policy()), policy=Policy())
    assert closing.exit_code == 0, paths.stderr.read_text()
    assert [str(finding) for finding in proof.prove(paths).findings] == []
    assert replay.rebuild(paths).differences == []
    return heard.of(events.Verdict)


def test_an_overflow_of_the_loss_scaler_costs_nothing(tmp_path: Path) -> None:
    said = under_the_rules(tmp_path, metrics=SCALED, goal="2 - step / 200", mode="min")
    assert {(verdict.diagnosis, verdict.action) for verdict in said} == {("healthy", "keep")}


def test_a_return_that_is_nan_until_the_first_episode_ends_costs_nothing(tmp_path: Path) -> None:
    said = under_the_rules(tmp_path, metrics=WAITING, goal="math.nan if step < 45 else step", mode="max")
    assert {(verdict.diagnosis, verdict.action) for verdict in said} == {("healthy", "keep")}


def test_a_loss_that_was_finite_is_answered_as_before(tmp_path: Path) -> None:
    said = under_the_rules(tmp_path, metrics=BROKEN, goal="2 - step / 200 if step < 50 else math.nan", mode="min")
    first = next(verdict for verdict in said if verdict.action != "keep")
    assert (first.diagnosis, first.action, first.changes["lr"]) == ("divergence", "rollback", pytest.approx(0.03))


@pytest.mark.parametrize("metrics", [
    '{"nll": 2 - step / 200, "aux_loss": 0.3 if step < 45 else math.nan}',
    '{"nll": 2 - step / 200, "degradation": 0.3 if step < 45 else math.nan}',
])  # fmt: skip
def test_what_is_switched_off_costs_nothing(tmp_path: Path, metrics: str) -> None:
    said = under_the_rules(tmp_path, metrics=metrics, goal="2 - step / 200", mode="min")
    assert {(verdict.diagnosis, verdict.action) for verdict in said} == {("healthy", "keep")}
