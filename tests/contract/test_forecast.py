"""The yardstick of probation: where a series was going, read with the least hope."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.base.wire import to_json
from trainmgr.contract.forecast import DAMPING, Forecast, noise, predict, slope


def of(values: list[float], mode: str = "min", **more: Any) -> Forecast:
    return predict(values, **{"evals": len(values), "mode": mode, "best": min(values, default=None), "scale": None,
                              **more})  # fmt: skip


def test_an_improving_trend_is_damped() -> None:
    found = of([5.0, 4.8, 4.6, 4.4, 4.2])
    assert (found.level, found.damping, found.evals) == (pytest.approx(4.2), DAMPING, 5)
    assert found.slope == pytest.approx(-0.2)
    assert found.at(1) == pytest.approx(4.2 - 0.2 * DAMPING)
    assert found.at(100) == pytest.approx(4.2 - 0.2 * DAMPING / (1 - DAMPING))


def test_a_worsening_trend_goes_on() -> None:
    found = of([4.0, 4.1, 4.2, 4.3, 4.4])
    assert found.damping == 1.0
    assert found.at(10) == pytest.approx(4.4 + 10 * 0.1)


def test_a_trend_that_the_lines_do_not_agree_on_is_none() -> None:
    for values in ([4.0], [4.0, 3.0], [4.0, 5.0, 6.0, 3.0, 3.0], [3.0, 3.0, 4.5, 4.0, 3.9], [5.0, 4.0, 3.0, 3.1]):
        assert of(values).slope == 0.0
    assert of([4.0, 3.0]).level == 3.0


def test_a_last_value_that_is_better_does_not_end_a_worsening_trend() -> None:
    found = of([4.0, 4.2, 4.4, 4.6, 4.55])
    assert found.damping == 1.0
    assert found.slope == pytest.approx(0.15)


@pytest.mark.parametrize("ratio", [0.4, 0.6, 0.8])
def test_a_curve_that_flattens_is_expected_to_flatten_on_and_is_no_noise(ratio: float) -> None:
    found = of([4.0 + 3.0 * ratio**i for i in range(6)])
    for n in range(1, 6):
        assert found.at(n) == pytest.approx(4.0 + 3.0 * ratio ** (5 + n))
    assert found.noise is not None
    assert found.noise < 0.61 * 3.0 * ratio**4


def test_the_level_is_the_worse_of_the_last_value_and_the_end_of_the_line() -> None:
    assert of([4.0, 4.0, 4.0, 4.0, 3.0]).level == pytest.approx(3.4)
    assert of([4.0, 4.0, 4.0, 4.0, 5.0]).level == 5.0


def test_without_a_finite_last_value_there_is_no_forecast() -> None:
    for values in ([], [math.nan], [4.0, 4.0, math.inf], [math.nan, -math.inf]):
        found = of(values)
        assert found.level is None
        assert found.at(1) is None
    assert of([4.0, math.nan, 3.9]).level == 3.9


def test_the_scale_and_the_margin() -> None:
    assert of([0.25, 0.5]).scale == 0.5
    assert of([-0.5, 0.1], best=-0.5).scale == 0.5
    assert of([0.5], scale=2.0).scale == 2.0
    quiet, loud = of([4.0] * 6), of([4.0, 5.0] * 3)
    assert quiet.margin(0.03, 3.0) == pytest.approx(0.12)
    assert loud.noise is not None
    assert loud.margin(0.03, 3.0) == pytest.approx(3 * loud.noise)


def test_noise_is_a_standard_deviation() -> None:
    rng = random.Random(1)
    found = [noise([3.0 * i + rng.gauss(0.0, 0.5) for i in range(12)]) for _ in range(400)]
    assert sum(x for x in found if x is not None) / len(found) == pytest.approx(0.5, rel=0.1)
    assert noise([1.0, 2.0, 1.0]) is None


def test_slope_is_the_least_squares_line() -> None:
    assert slope([1.0, 3.0, 5.0]) == 2.0
    assert slope([1.0, 2.0]) is None


@given(st.lists(st.floats(), max_size=20), st.integers(1, 12))
def test_more_is_worse_or_less_is_worse_alike_and_all_of_it_can_be_written(values: list[float], n: int) -> None:
    down, up = of(values, best=None), of([-value for value in values], "max", best=None)
    a, b = down.at(n), up.at(n)
    assert (a is None) == (b is None)
    assert a is None or b is None or a == -b or math.isnan(a)
    assert (down.noise, down.scale, down.damping) == (up.noise, up.scale, up.damping)
    assert Forecast.model_validate_json(to_json(down)).scale == down.scale
