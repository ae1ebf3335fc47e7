"""What a person sees: drawn from records, bounded in size, and safe against what a workload writes."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from trainmgr import display, screen
from trainmgr.action_space import Parameter
from trainmgr.ledger import Ledger
from trainmgr.run_state import RunState

POINTS = st.lists(
    st.tuples(st.integers(0, 10**9), st.floats(-1e300, 1e300)), max_size=30, unique_by=lambda point: point[0]
).map(sorted)


def rendered(renderable: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@settings(deadline=None, max_examples=100)
@given(POINTS, POINTS, st.integers(1, 120), st.integers(1, 20))
def test_a_plot_has_its_size_whatever_the_curve(
    values: list[tuple[int, float]], second: list[tuple[int, float]], width: int, height: int
) -> None:
    lines = screen.plot(values, second, [5, 10**12], width, height).plain.split("\n")
    if values or second:
        assert len(lines) == height + 1
        assert max(map(len, lines)) <= width + 10 + 10


def test_a_line_is_unbroken() -> None:
    dots = screen.line([(0.0, 0.0), (3.0, 30.0), (10.0, 0.0)])
    assert all(abs(a - c) <= 1 and abs(b - d) <= 1 for (a, b), (c, d) in pairwise(dots))


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "●" + "─" * 15), (1.0, "─" * 15 + "●"), (-1.0, "off".center(16))],
)
def test_a_gauge_shows_where_a_value_lies(value: float, shown: str) -> None:
    parameter = Parameter(name="p", type="float", low=0.0, high=1.0, value=value, off=-1.0)
    assert screen.gauge(parameter).plain == shown


def test_a_logarithmic_gauge() -> None:
    parameter = Parameter(name="lr", type="float", low=1e-4, high=1.0, value=1e-2, scale="log")
    assert screen.gauge(parameter).plain.index("●") in (7, 8)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3725, "1:02:05"), (-3, "0:00")])
def test_the_clock(seconds: float, text: str) -> None:
    assert screen.clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.23456, "1.235"), (math.nan, "nan"), (1e-5, "1e-05")])
def test_numbers(value: float | None, text: str) -> None:
    assert display.number(value) == text


def test_a_workload_cannot_style_the_screen(manifest: object) -> None:
    """Markup, control sequences and line breaks of a log record are shown as text."""
    state = RunState()
    state.texts = [("warning", "[red]not red[/] \x1b[2J gone?")]
    text = rendered(screen.render(state, Ledger(), manifest))  # type: ignore[arg-type]
    assert "[red]not red[/]" in text
    assert "\x1b[2J" not in text
