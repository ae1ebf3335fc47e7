"""What a person sees: drawn from records, bounded in size, and safe against what a workload writes."""

from __future__ import annotations

import io
import math
import queue
from itertools import pairwise
from typing import Any

import pytest
from factories import applied, evaluation, fold, lr, start
from factories.profiles import examples
from factories.situations import situation
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainmgr.contract import events, protocol
from trainmgr.contract.action_space import Parameter
from trainmgr.deciding import control
from trainmgr.state.interventions import Intervention
from trainmgr.state.ledger import Ledger
from trainmgr.state.run_state import RunState
from trainmgr.terminal import display, screen, words

POINTS = st.lists(
    st.tuples(st.integers(0, 10**9), st.floats(-1e300, 1e300)), max_size=30, unique_by=lambda point: point[0]
).map(sorted)


def rendered(renderable: object, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@examples(100)
@given(POINTS, POINTS, st.integers(1, 120), st.integers(1, 20))
def test_a_plot_has_its_size_whatever_the_curve(
    values: list[tuple[int, float]], second: list[tuple[int, float]], width: int, height: int
) -> None:
    lines = screen.plot(values, second, [5, 10**12], width, height).plain.split("\n")
    if values or second:
        assert len(lines) == height + 1
        assert max(map(len, lines)) <= width + 10 + 10


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-320, 1e300])
def test_a_flat_curve_lies_in_the_middle(value: float) -> None:
    rows = screen.plot([(0, value), (10, value)], [], [], 20, 5).plain.split("\n")[:5]
    assert [any(c >= "\u2800" for c in row) for row in rows] == [False, False, True, False, False]
    assert float(rows[2].split()[0]) == pytest.approx(value, rel=1e-3)


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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (61.4, "1:01"),
        (3725, "1:02:05"),
        (-3, "0:00"),
        (-math.inf, "0:00"),
        (math.inf, "inf h"),
        (math.nan, "nan h"),
        (1e308, "2.78e+304 h"),
        (1e9 - 1, "277777:46:39"),
    ],
)
def test_the_clock(seconds: float, text: str) -> None:
    assert words.clock(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (1.23456, "1.235"), (math.nan, "nan"), (1e-5, "1e-05")])
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_a_workload_cannot_style_the_screen() -> None:
    """Markup, control sequences and line breaks of a log record are shown as text."""
    state = RunState()
    state.texts = [("warning", "[red]not red[/] \x1b[2J gone?")]
    text = rendered(screen.render(situation(state)))
    assert "[red]not red[/]" in text
    assert "\x1b[2J" not in text


def test_the_live_view_says_at_once_what_cannot_be_used_and_says_it_once() -> None:
    console, state = Console(file=io.StringIO(), width=300, force_terminal=False), RunState()
    view = screen.LiveView(console)
    assert isinstance(console.file, io.StringIO)
    for reason in ("not JSON: \x1b[2J[red]", "too long"):
        item = protocol.Unreadable(kind="garbage", quote="", reason=reason)
        state.fold(item)
        view.record(item, state)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("1 line of telemetry could not be read: line 1: not JSON: ?[2J[red]. schemas/telemetry.json")


@pytest.mark.parametrize(
    ("command", "changes", "text"),
    [
        (("rollback", "best"), {"lr": (0.3, 0.1)}, "in effect at step 7: roll back to best; lr 0.3 → 0.1"),
        (("stop", None), {}, "in effect at step 7: stop"),
        (None, {"lr": (0.3, 0.1)}, "in effect at step 7: lr 0.3 → 0.1"),
        (None, {}, "in effect at step 7: no change was needed"),
    ],
)
def test_what_came_into_effect_is_named(command: tuple[str, str] | None, changes: dict[str, Any], text: str) -> None:
    done = protocol.Command.model_validate({"id": "c", "name": command[0], "to": command[1]}) if command else None
    state = RunState()
    state.interventions = [Intervention(revision, 7, "step", changes, done, None) for revision in (2, 3)]
    event = events.Acknowledged(
        decision="d1", revision=3 if command else 9, telemetry_offset=0, result="applied", step=7, boundary="step",
        changes=changes, reason="",
    )  # fmt: skip
    assert display.event_in_words(event, situation(state)) == text


RULING = events.Verdict(
    decision="d1", telemetry_offset=0, telemetry_sha256="", age_seconds=0.0, result="accepted", action="adjust",
    diagnosis="plateau", changes={"lr": 0.1}, command=None, expected=None, evidence="flat", checks=[],
)  # fmt: skip


def test_without_a_terminal_nobody_is_asked_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\n"))
    out, answers = io.StringIO(), []
    lines = display.Lines(out)
    for _ in range(2):
        lines.ask(RULING, answers.append)
    assert answers == [None, None]
    assert out.getvalue().count("Nobody can be asked") == 1
    assert "Apply?" not in out.getvalue()


def test_at_a_terminal_the_question_is_asked_and_the_answer_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def readline(self, *_: Any) -> str:
            return typed.get(timeout=10)

    typed: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
    monkeypatch.setattr("sys.stdin", Terminal())
    out = io.StringIO()
    lines = display.Lines(out)
    for line in ("y\n", "no\n", ""):
        lines.ask(RULING, answers.put)
        assert answers.empty()
        typed.put(line)
        assert answers.get(timeout=10) is {"y\n": True, "no\n": False, "": None}[line]
    assert out.getvalue().count("Apply? plateau: lr = 0.1  (flat)  [y/N]") == 3


def test_an_objective_that_is_not_measured_yet_is_shown_all_the_same() -> None:
    out, state = io.StringIO(), fold([start(mode="max")])
    lines = display.Lines(out)
    for at, value in ((10, math.nan), (20, 3.0), (30, math.nan)):
        fold([record := evaluation(at, value)], state)
        lines.record(record, state)
    fold([record := evaluation(40, loss=1.0)], state)
    lines.record(record, state)
    assert [line.split("  ")[-2:] for line in out.getvalue().splitlines()] == [
        ["10", "val nan"], ["val 3", "best"], ["30", "val nan"]
    ]  # fmt: skip


def test_no_time_is_left_that_nobody_knows_of() -> None:
    state = fold([start(total_steps=30), evaluation(640, 1.0)])
    assert screen.pace(state) == ("1 steps/s", "")
    assert "step 640, beyond the 30 planned" in rendered(screen.render(situation(state)))


@pytest.mark.parametrize(("asked", "changes", "text"), [
    ({"lr": 5e-4}, {}, "acknowledged at step 7, and nothing was changed: lr = 0.0005 was asked for, and 0.003 is in"),
    ({"lr": 5e-4}, {"lr": (3e-3, 3e-3)}, "acknowledged at step 7, and nothing was changed: lr = 0.0005 was asked for,"),
    ({"lr": 5e-4}, {"lr": (3e-3, 1e-3)}, "in effect at step 7: lr 0.003 → 0.001; lr = 0.0005 was asked for, and 0.001"),
    ({"lr": 5e-4}, {"lr": (3e-3, 5e-4)}, "in effect at step 7: lr 0.003 → 0.0005"),
    ({"lr": 3e-3}, {}, "in effect at step 7: no change was needed"),
])  # fmt: skip
@pytest.mark.parametrize("again", [False, True])
def test_what_was_asked_for_and_is_not_in_effect_is_not_said_as_done(
    asked: dict[str, Any], changes: dict[str, Any], text: str, again: bool
) -> None:
    state, ledger = fold([start(lr()), applied(7, 2 if again else 1, changes)]), Ledger()
    for revision in (1, 2)[: 1 + again]:
        content = control.next_control(
            ledger, "run", f"d{revision}", changes=asked, command=None, issued=protocol.Issued(t=0.0, step=1),
            based_on_step=1, valid_until_step=None, at_step=None,
        )  # fmt: skip
        ledger.fold(events.OverrideIssued(decision=f"d{revision}", origin="manager", control=content))
        event = events.Acknowledged(
            decision=f"d{revision}", revision=revision, telemetry_offset=0, result="applied", step=7, boundary="step",
            changes=changes, reason="",
        )  # fmt: skip
        ledger.fold(event)
    if again and changes and text.startswith("in effect"):  # asked for again, it is only said where nothing is changed
        text = text.partition(";")[0]
    said = display.event_in_words(event, situation(state, ledger=ledger)) or ""
    assert said.startswith(text)
    assert ("asked" in said) is ("asked" in text)


@pytest.mark.parametrize(("low", "high"), [
    (-1.7e308, 1.7e308), (0.0, 5e-324), (-5e-324, 5e-324), (1.6e308, 1.6e308), (-1.6e308, -1.6e308), (0.0, 1.7e308),
])  # fmt: skip
def test_a_plot_of_numbers_at_the_edge_has_its_scale(low: float, high: float) -> None:
    rows = screen.plot([(0, low), (2**53 - 1, high)], [], [2**53 - 1], 20, 5).plain.split("\n")
    scale = [float(row.split()[0]) for row in rows[:5]]
    assert scale == sorted(scale, reverse=True)
    assert scale[0] == pytest.approx(high, rel=0.2)
    assert scale[4] == pytest.approx(low, rel=0.2)
    assert "▲" in rows[5]


@pytest.mark.parametrize(("low", "high", "value", "at"), [
    (-1.7e308, 1.7e308, 0.0, 8), (-1.7e308, 1.7e308, 1.7e308, 15), (1.0, 1.0, 1.0, 0), (0.0, 5e-324, 5e-324, 0),
])  # fmt: skip
def test_a_gauge_of_numbers_at_the_edge(low: float, high: float, value: float, at: int) -> None:
    parameter = Parameter(name="p", type="float", low=low, high=high, value=value)
    assert screen.gauge(parameter).plain == "─" * at + "●" + "─" * (15 - at)


@pytest.mark.parametrize("t", [1e308, -1e308, 0.0])
def test_a_pace_that_no_clock_gives_is_not_shown(t: float) -> None:
    state = fold([start(), evaluation(10, 1.0)])
    state.first_time, state.last_time = -1e308, t
    assert screen.pace(state) == (("", "") if t else ("1e-307 steps/s", ""))
    state.first_time, state.last_time = 0.0, 5e-324
    assert screen.pace(state) == ("", "")
