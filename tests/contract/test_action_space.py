"""What may be changed and how far at once: for any declaration, any value now and any wish."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from factories import JSON, augment, batch, dropout, ema, everything, kind, lr, parameters
from factories.profiles import examples
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainmgr.contract.action_space import ActionSpace, Parameter

MANY = examples(300)
LIMIT = st.none() | st.floats(-1e3, 1e3)


@MANY
@given(parameters())
def test_reach_is_never_empty_and_always_inside_the_bounds(parameter: Parameter) -> None:
    low, high = parameter.reach(parameter.value) or (None, None)
    assert parameter.low <= low <= high <= parameter.high
    if parameter.low <= parameter.value <= parameter.high:
        assert low <= parameter.value <= high


@MANY
@given(parameters(), st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
def test_what_was_clipped_passes_both_checks(parameter: Parameter, wanted: float) -> None:
    value = parameter.clip(wanted, parameter.value)
    assert type(value) is (int if parameter.type == "int" else type(value))
    assert parameter.objection(value) is None
    assert parameter.too_far(value, parameter.value) is None


@MANY
@given(parameters(), st.floats(-1e4, 1e4))
def test_one_change_keeps_to_ratio_and_difference(parameter: Parameter, wanted: float) -> None:
    now, value = parameter.value, parameter.clip(wanted, parameter.value)
    inside = parameter.low <= now <= parameter.high
    if not inside or value == parameter.off:
        return
    slack = 1 + 1e-9
    if parameter.max_delta is not None:
        assert abs(value - now) <= parameter.max_delta * slack + 1e-9
    if now and parameter.max_ratio is not None:
        assert abs(value) <= abs(now) * parameter.max_ratio * slack
    if now and parameter.min_ratio is not None:
        assert abs(value) >= abs(now) * parameter.min_ratio / slack


@MANY
@given(parameters(), LIMIT, LIMIT, st.none() | st.floats(1, 1e3), st.none() | st.floats(1e-3, 1),
       st.none() | st.floats(1e-3, 1e3), st.floats(-1e4, 1e4))  # fmt: skip
def test_narrowed_never_widens(
    parameter: Parameter, low: float, high: float, up: float, down: float, delta: float, wish: float
) -> None:
    narrow = parameter.narrowed(low, high, up, down, delta)
    if narrow.low > narrow.high:
        return  # Policy.narrow refuses it
    assert parameter.low <= narrow.low
    assert narrow.high <= parameter.high
    assert type(narrow.low) is type(parameter.low) or parameter.type == "float"
    value = narrow.clip(wish, parameter.value)
    if narrow.low <= parameter.value <= narrow.high:
        assert parameter.objection(value) is None
        assert parameter.too_far(value, parameter.value) is None
        wide, tight = parameter.reach(parameter.value), narrow.reach(parameter.value)
        assert wide[0] <= tight[0] * (1 + math.copysign(1e-9, tight[0])) + 1e-12
        assert tight[1] <= wide[1] + abs(wide[1]) * 1e-9 + 1e-12


BAD: list[tuple[Parameter, Any, str]] = [
    (lr(), math.nan, "not finite"), (lr(), math.inf, "not finite"), (lr(), -math.inf, "not finite"),
    (lr(), True, "not of type float"), (lr(), "0.001", "not of type float"), (lr(), None, "not of type float"),
    (lr(), [1e-3], "not of type float"), (lr(), 5.1e-3, r"outside \[1e-05, 0.005\]"), (lr(), 0, "outside"),
    (lr(), 10**400, "outside"), (batch(), 2.0, "not of type int"),
    (batch(), True, "not of type int"), (batch(), 65, r"outside \[1, 64\]"), (ema(), 0.5, r"outside .* or 0"),
    (augment(), 1, "not true or false"), (augment(), "true", "not true or false"), (kind(), "d", "one of a, b, c"),
    (kind(), 1, "one of a, b, c"), (kind(), "x" * 70_000, "one of"),
]  # fmt: skip


@pytest.mark.parametrize(("parameter", "value", "reason"), BAD)
def test_objection_names_the_reason(parameter: Parameter, value: Any, reason: str) -> None:
    objection = parameter.objection(value)
    assert objection is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(objection)
    assert len(objection) < 200


@examples(200)
@given(JSON)
def test_objection_never_raises(value: Any) -> None:
    for parameter in everything():
        assert parameter.objection(value) is None or parameter.name in parameter.objection(value)


@pytest.mark.parametrize(("parameter", "value"), [(lr(), 1e-5), (lr(), 5e-3), (batch(), 64), (ema(), 0.0), (ema(), 0),
                                                  (augment(), True), (kind(), "c"), (dropout(), 0)])  # fmt: skip
def test_what_is_allowed(parameter: Parameter, value: Any) -> None:
    assert parameter.objection(value) is None


def test_asymmetric_ratios_and_floating_point_slack() -> None:
    assert lr().reach(1e-3) == (1e-4, 2e-3)
    assert lr().too_far(3e-3 * 0.1, 3e-3) is None
    assert lr().too_far(2.9e-4, 3e-3) == "lr = 0.00029 is further than one change from 0.003 may go: [0.0003, 0.005]"
    assert lr(min_ratio=None).reach(1e-3) == (5e-4, 2e-3)
    assert lr(max_ratio=None).reach(1e-3) == (1e-4, 5e-3)


def test_off_is_reachable_from_everywhere_and_leads_everywhere() -> None:
    parameter = ema(max_delta=0.01)
    assert parameter.reach(0.0) == (0.9, 0.999)
    assert parameter.reach(0.95) == (0.94, 0.96)
    assert parameter.too_far(0.0, 0.95) is None
    assert parameter.clip(0.0, 0.95) == 0.0
    assert type(batch(off=0.0).clip(0.0, 16)) is int


def test_zero_can_be_left_under_a_ratio_limit() -> None:
    parameter = dropout(max_delta=None, max_ratio=2.0)
    assert parameter.reach(0.0) == (0.0, 0.001)
    assert dropout(low=-1.0, high=0.0, value=0.0, max_delta=None, max_ratio=2.0).reach(0.0) == (-0.002, 0.0)


def test_negative_values_keep_their_ratio() -> None:
    parameter = dropout(low=-10.0, high=10.0, max_delta=None, max_ratio=2.0, value=-1.0)
    assert parameter.reach(-1.0) == (-2.0, -0.5)


def test_a_value_outside_may_only_come_back() -> None:
    assert lr().reach(1.0) == (5e-3, 5e-3)
    assert lr().reach(1e-9) == (1e-5, 1e-5)
    assert lr().reach("NaN") == (1e-5, 5e-3)
    assert lr().too_far(1.0, "NaN") is not None


def test_whole_numbers_narrow_inwards() -> None:
    narrow = batch(low=-64).narrowed(low=2.5, high=7.9)
    assert (narrow.low, narrow.high) == (3, 7)
    assert batch(low=-64).narrowed(high=-2.5).high == -3


def test_a_policy_cannot_loosen_an_implied_ratio() -> None:
    assert lr(min_ratio=None).narrowed(min_ratio=0.01).reach(1e-3) == (5e-4, 2e-3)


@pytest.mark.parametrize("wrong", [
    {"low": None}, {"high": None}, {"low": 1.0, "high": 0.5}, {"low": 0.0}, {"value": "NaN"}, {"value": True},
    {"low": math.nan}, {"high": math.inf}, {"max_ratio": 0.5}, {"max_ratio": 0.0}, {"min_ratio": 2.0},
    {"max_delta": 0.0}, {"off": 1e-3}, {"off": math.nan}, {"name": ""}, {"name": "x" * 65}, {"name": "l\nr"},
    {"name": "lr\x1b[2J"}, {"name": "l\u200br"}, {"value": 10**400},
])  # fmt: skip
def test_a_declaration_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        lr(**wrong)


@pytest.mark.parametrize("make", [lambda: batch(low=0.5), lambda: batch(value=1.5), lambda: batch(off=0.5),
                                  lambda: augment(value=1), lambda: kind(choices=None), lambda: kind(choices=[]),
                                  lambda: kind(value=1)])  # fmt: skip
def test_types_must_fit(make: Any) -> None:
    with pytest.raises(ValidationError):
        make()


def test_action_spaces_are_equal_by_content() -> None:
    assert ActionSpace([lr()], ["stop"]) == ActionSpace([lr()], ["stop"])
    assert ActionSpace([lr()], ["stop"]) != ActionSpace([lr(value=1e-3)], ["stop"])


# -- trust ---------------------------------------------------------------------------------------------------------


def test_trust_narrows_one_change() -> None:
    wide, narrow = lr(value=1e-3).reach(1e-3), lr(value=1e-3).trusted(0.5).reach(1e-3)
    assert wide == (pytest.approx(1e-4), 2e-3)
    assert narrow == (pytest.approx(1e-3 * 0.1**0.5), pytest.approx(1e-3 * 2**0.5))
    assert dropout(value=0.3).trusted(0.5).reach(0.3) == (pytest.approx(0.2), pytest.approx(0.4))
    assert dropout(value=0.2, max_delta=None).trusted(0.5).reach(0.2) == (0.0, pytest.approx(0.45))
    free = lr(value=1e-3, max_ratio=None, min_ratio=None).trusted(0.25)
    assert free.reach(1e-3) == (pytest.approx(1e-3 / 500**0.25), pytest.approx(1e-3 * 500**0.25))


def test_a_whole_number_may_always_move_by_one() -> None:
    assert batch().trusted(0.0625).reach(16) == (15.0, 17.0)
    ratio = batch(max_delta=None, max_ratio=2.0, value=3).trusted(0.0625)
    assert (ratio.clip(9, 3), ratio.clip(0, 3)) == (4, 2)
    assert batch(max_delta=None).trusted(0.0625).clip(64, 16) == 19


def test_little_trust_switches_nothing_off() -> None:
    assert ema(value=0.95).trusted(0.75).off == 0.0
    assert ema(value=0.95).trusted(0.5).off is None
    assert ema().trusted(0.5) == ema()  # it is off; what it would be switched to has no size
    for parameter in (augment(), kind(), ema(), batch(value=16).model_copy(update={"value": "NaN"})):
        assert not parameter.sized
        assert parameter.trusted(0.1) == parameter


@MANY
@given(parameters(), st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_less_trust_reaches_less_and_never_more_than_was_declared(parameter: Parameter, a: float, b: float) -> None:
    reaches = [parameter.trusted(trust).reach(parameter.value) for trust in (min(a, b), max(a, b), 1.0)]
    for inner, outer in pairwise(reaches):
        assert inner is not None
        assert outer is not None
        slack = 1e-9 * max(map(abs, outer))
        assert outer[0] - slack <= inner[0] <= inner[1] <= outer[1] + slack
    Parameter.model_validate(parameter.trusted(a).model_dump())
