"""The figures derived from a run that say how it goes: rise, noise, slope, gap, outliers, divergence. Pure."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import Annotated, overload

from pydantic import Field

from trainmgr.base.wire import Number, Wire, short
from trainmgr.contract import forecast
from trainmgr.state.run_state import RunState

SLOPE_EVALS = 5
NOISE_EVALS = 12
DIGITS = 6  # significant digits
NAMES, NAME = 8, 48  # metrics that are named, and characters of a name


class Signals(Wire):
    """Derived figures. Objectives are as the workload reports them; `rise`, `slope` and `noise` are fractions of its
    scale (declared, else the absolute best), turned so that positive is worse."""

    latest: Number | None
    """Objective at the last evaluation that had it; null where the weights went back to others since."""
    best: Number | None
    best_step: int | None
    first: Number | None
    """Objective at the first evaluation."""
    evals_since_best: int
    evals_since_change: int | None
    """Evaluations since anything was changed; null before the first change."""
    rise: Number | None
    """(latest - best) / scale."""
    noise: Number | None
    """Standard deviation of one evaluation around its neighbours: median |second difference| x 1.4826 / sqrt 6 over the
    last 12 (a second difference of normal noise has 6 times its variance; 1.4826 makes a median deviation standard)."""
    slope: Number | None
    """Least-squares slope of the last 5 evaluations, per evaluation."""
    gap: Number | None
    """Objective minus its counterpart on training data."""
    gap_slope: Number | None
    """Least-squares slope of the gap over the last 5 evaluations, per evaluation, as a fraction of the scale."""
    counterpart: Number | None
    """The same metric on training data."""
    counterpart_best: Number | None
    """Its best value among the evaluations kept."""
    counterpart_first: Number | None
    grad_spikes: float
    """Share of the steps since the last evaluation whose gradient norm was over 10 running medians."""
    non_finite: int
    """Values in a row that are not finite, of the metrics that were finite and are not any more (`lost`)."""
    diverging: bool
    """Something is lost, or training itself got worse than it was at the first evaluation and the objective is not at
    its best."""
    lost: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    """Metrics that were finite and are not any more: the objective at once, losses and gradient norms after several
    reports in a row."""
    unmeasured: Annotated[list[str], Field(exclude_if=operator.not_)] = []
    """Of the same metrics, those that have not been finite yet."""
    stray: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """All other values since the evaluation before the last that were not finite: skipped steps, or not measured."""
    unseen: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Evaluations since the last one that had the objective: `latest` is so old, and nothing newer is known."""
    without: Annotated[int, Field(exclude_if=operator.not_)] = 0
    """Evaluations since the best that were without the objective; `evals_since_best` does not count them."""


def nothing(_: int) -> bool:
    """Of no step."""
    return False


def measure(state: RunState, gone: Callable[[int], bool] = nothing) -> Signals:
    """The derived figures of this moment, without evaluations of weights that are ``gone``, by their steps."""
    evaluations = [evaluation for evaluation in state.evaluations if not gone(evaluation.step)]
    values = [(e.step, v) for e in evaluations if (v := state.objective_of(e)) is not None]
    finite = [v for _, v in values if math.isfinite(v)]
    latest = values[-1][1] if values and not (state.unseen and state.rolled_back) else None
    best = state.best[1] if state.best else None
    declared = state.start.objective.scale if state.start else None
    scale = declared or (abs(best) if best else None)
    turn = -1.0 if state.start is not None and state.start.objective.mode == "max" else 1.0
    name = state.start.objective.counterpart if state.start else None
    train = [e.metrics[name] for e in evaluations if name in e.metrics] if name else []
    fine_train = [v for v in train if math.isfinite(v)]
    gaps = [v - e.metrics[name] for e in evaluations
            if name and name in e.metrics and (v := state.objective_of(e)) is not None]  # fmt: skip
    last = evaluations[-1] if evaluations else None
    changed = max(state.changed_at.values(), default=None)
    changes = [at for at in (changed, state.rollback_at) if at is not None]
    lost = state.finiteness.lost
    non_finite, seen = sum(lost.values()), state.non_finite + (last.non_finite if last else 0)
    return Signals(
        latest=rounded(latest),
        best=rounded(best),
        best_step=state.best[0] if state.best else None,
        first=rounded(state.first_objective),
        evals_since_best=state.evals_since_best,
        evals_since_change=state.evals - max(changes) if changes else None,
        rise=rounded(turn * (latest - best) / scale) if latest is not None and best is not None and scale else None,
        noise=rounded(_noise(finite[-NOISE_EVALS:], scale)),
        slope=rounded(_slope(finite[-SLOPE_EVALS:], scale, turn)),
        gap=rounded(gaps[-1]) if gaps else None,
        gap_slope=rounded(_slope([g for g in gaps if math.isfinite(g)][-SLOPE_EVALS:], scale, turn)),
        counterpart=rounded(train[-1]) if train else None,
        counterpart_best=rounded(min(fine_train, key=state.worse)) if fine_train else None,
        counterpart_first=rounded(state.first_counterpart),
        grad_spikes=last.spikes if last else 0.0,
        non_finite=non_finite,
        diverging=bool(lost) or _lower(state, train, turn),
        lost=_named(lost),
        unmeasured=_named(state.finiteness.unmeasured),
        stray=max(0, seen - non_finite),
        unseen=state.unseen if state.measured else 0,
        without=state.without,
    )


def _lower(state: RunState, train: list[float], turn: float) -> bool:
    """Whether training itself got worse than it was at the first evaluation, and the objective is not at its best."""
    if not train or state.first_counterpart is None or state.evals < 2 or (state.best and not state.evals_since_best):
        return False
    return turn * train[-1] > turn * state.first_counterpart  # NaN is not worse: see `lost`


def _named(metrics: Iterable[str]) -> list[str]:
    return [short(name, NAME) for name in list(metrics)[-NAMES:]]


def _noise(values: list[float], scale: float | None) -> float | None:
    found = forecast.noise(values)
    return found / scale if found is not None and scale else None


def _slope(values: list[float], scale: float | None, turn: float) -> float | None:
    found = forecast.slope(values)
    return turn * found / scale if found is not None and scale else None


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: None) -> None: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Six significant digits: enough to decide by, and short to show."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else value
