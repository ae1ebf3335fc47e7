"""Patterns of lines, and the numbers in them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmgr.sources import figures
from trainmgr.sources.pattern import Pattern, SourceError

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_./@%-]{0,12}", fullmatch=True)
LITERAL = st.text(st.sampled_from("abcxyz:=>#~!"), min_size=1, max_size=6)
NUMBER = st.one_of(
    st.integers(-(10**12), 10**12).map(str),
    st.integers(0, 10**9).map(lambda number: f"{number:,}"),
    st.floats(allow_nan=False, width=32).map(repr),
    st.floats(-1e6, 1e6).map(lambda number: f"{number:.4f}"),
    st.floats(-1e6, 1e6).map(lambda number: f"{number:10.3e}"),
    st.sampled_from(["nan", "inf", "-inf", "NaN", "Infinity"]),
)


def read(pattern: str, line: str) -> dict[str, float]:
    return Pattern(pattern).read(line)


@given(st.lists(st.tuples(LITERAL, NAMES, NUMBER), min_size=1, max_size=4, unique_by=lambda part: part[1]))
def test_what_was_printed_by_a_pattern_is_read_by_it(parts: list[tuple[str, str, str]]) -> None:
    pattern = " ".join(f"{literal} {{{name}}}" for literal, name, _ in parts)
    line = "  ".join(f"{literal} {number}" for literal, _, number in parts)
    expected = {name: float(number.replace(",", "")) for _, name, number in parts}
    assert {name: repr(float(value)) for name, value in read(pattern, f"12:00 {line} .").items()} == {
        name: repr(value) for name, value in expected.items()
    }


@given(st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.integers(0, 10**9).map(lambda n: f"{n:,}"))
def test_no_part_of_a_number_is_ever_taken_for_one(number: str) -> None:
    assert read("is.*{x}", f"x is {number}") == {"x": float(number.replace(",", ""))}


@given(st.text(max_size=40), st.text(max_size=80))
def test_whatever_is_typed_is_a_pattern_or_an_error_in_words(pattern: str, line: str) -> None:
    try:
        found = Pattern(pattern)
    except SourceError as error:
        said = str(error)
    else:
        said = "--read"
        assert set(found.read(line)) <= set(found.names)
    assert "--read" in said


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        ("step {step} .* val {val_loss}", "step 100 loss 0.5 val 0.25", {"step": 100, "val_loss": 0.25}),
        ("step {step} .* val {val_loss}", "INFO step  1,200 val -1.5e-3 |", {"step": 1200, "val_loss": -0.0015}),
        ("{step}/{total}", " 12/100 [00:01]", {"step": 12, "total": 100}),
        (r"\({a},{b}\)", "(100,200)", {"a": 100, "b": 200}),
        ("epoch-{epoch}", "epoch-3", {"epoch": 3}),
        ("'loss': {loss}.*'epoch': {epoch}", "{'loss': 0.5, 'epoch': 1.0}", {"loss": 0.5, "epoch": 1.0}),
        ("loss {loss}", "loss tensor(0.5, device='cuda:0')", {"loss": 0.5}),
        ("loss {loss}", "loss np.float64(0.5)", {"loss": 0.5}),
        ("loss=[^ ]* {x} b{1,2} {y}", "loss=0.1 3 bb 4", {"x": 3, "y": 4}),
        ("a *{x}", "a3", {"x": 3}),
        ("val/{val/loss}", "val/0.5", {"val/loss": 0.5}),
        (r"\{{x}\}", "{4}", {"x": 4}),
        ("(?:train|fit) {x}", "fit 4", {"x": 4}),
        ("train {x}|valid {y}", "valid 4", {"y": 4}),
        ("loss {loss}", "loss 0,53", {}),  # a comma of other countries is not guessed at
        ("loss {loss}", "loss 10,2000", {}),
        ("loss {loss}", "loss information", {}),
        ("version {x}", "version 1.2.3", {}),
        ("Loss {loss}", "loss 1", {}),
    ],
)
def test_examples(pattern: str, line: str, found: dict[str, float]) -> None:
    assert read(pattern, line) == found


def test_what_is_not_finite_is_a_number_too() -> None:
    assert math.isnan(read("loss {loss}", "loss nan")["loss"])
    assert read("loss {loss} {x}", "loss -inf  Infinity") == {"loss": -math.inf, "x": math.inf}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "names no number"),
        ("step", "'step {step} loss {loss}'"),
        ("{a}{b}", "nothing between {a} and {b}"),
        ("{a} {a}", "{a} twice"),
        ("({a}", "no regular expression"),
        ("{val loss}", "'{val loss}', which names no number"),
        ("{'loss': {loss}", r"a brace that stands for itself is \{"),
        ("{a", "names no number"),
    ],
)
def test_what_is_no_pattern_is_said_with_the_way_out(pattern: str, said: str) -> None:
    with pytest.raises(SourceError, match=r".*") as found:
        Pattern(pattern)
    assert said in str(found.value)


def test_a_number_counts_steps_if_it_is_whole() -> None:
    assert figures.whole(12.0) == 12
    assert [figures.whole(number) for number in (None, -1, 0.5, math.nan, math.inf, 2.0**60)] == [None] * 6
