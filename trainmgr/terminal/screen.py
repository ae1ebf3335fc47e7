"""The run on a terminal: progress, curves, the recipe within its bounds, the interventions with their reasons.

``render`` draws a state; the live view draws it again and again, ``show`` once, ``replay --watch`` at its own pace.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainmgr.base.foreign import on_terminal
from trainmgr.contract import events
from trainmgr.contract.action_space import Parameter
from trainmgr.log.telemetry import Item
from trainmgr.state.run_state import RunState
from trainmgr.state.situation import Situation
from trainmgr.terminal import display, words
from trainmgr.terminal.markup import marked, quoted

FRAMES = 4  # per second
GAUGE = 16  # characters
SHOWN = 6  # interventions
SAID = (
    events.Failure | events.Restarted | events.Stalled | events.Operator | events.Signalled | events.PlanEnded
)  # fmt: skip
"""What is worth a line above the view."""
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # Unicode braille, rows from above


def render(now: Situation, height: int = 8, width: int = 100) -> Group:
    """Everything at once."""
    parts, state = [_head(now)], now.state
    if state.evaluations and state.start is not None:  # else nobody knows which of the metrics is the objective
        parts.append(_curves(state, height, max(30, width - 26)))
    if state.start is not None and state.start.action_space:
        parts.append(_recipe(state))
    parts.append(_interventions(now))
    return Group(*parts)


def _head(now: Situation) -> RenderableType:
    state, manifest, total = now.state, now.manifest, now.state.total_steps
    line = Table.grid(padding=(0, 2))
    parts = (f"manager {manifest.manager}", f"mode {manifest.mode}")
    title = Text(on_terminal(manifest.id), style="bold")
    line.add_row(title, *(Text(on_terminal(part)) for part in parts), _status(now))
    grid = Table.grid(padding=(0, 2))
    speed, left = pace(state)
    if total and state.overrun:
        grid.add_row(f"step {state.step:,}, beyond the {total:,} planned", speed)
    elif total:
        bar = ProgressBar(total=total, completed=min(state.step, total), width=40)
        grid.add_row(bar, f"step {state.step:,} of {total:,}", speed, left)
    else:
        grid.add_row(f"step {state.step:,}", speed)
    more = [Text(text, style="dim") for text in (display.spent_in_words(now.ledger),) if text]
    if watched := display.watched_in_words(now):
        more.append(Text(on_terminal(watched), style="yellow" if now.ledger.reversals else "dim"))
    return Group(line, grid, *more)


def _status(now: Situation) -> Text:
    ledger = now.ledger
    if ledger.ended is not None:
        status = ledger.ended.closing.status
        return Text(status, style="green" if status in ("completed", "stopped") else "red")
    if ledger.carrying is not None:
        if isinstance(ledger.carrying, events.Challenged):
            return Text("trying the recipe of the start", style="yellow")
        return Text("taking changes back" if isinstance(ledger.carrying, events.Reverted) else "ending", style="yellow")
    if ledger.waiting is not None:
        return Text("deciding", style="cyan")
    if ledger.outstanding is not None:
        return Text("change on its way", style="cyan")
    return Text("training" if now.state.start else "starting", style="dim")


def pace(state: RunState) -> tuple[str, str]:
    """Steps per second, and the time left, in words; empty where they are not known."""
    if state.first_time is None or state.last_time is None or state.last_time <= state.first_time or not state.step:
        return "", ""
    speed = state.step / (state.last_time - state.first_time)
    if not 0 < speed < math.inf:  # times that no clock has
        return "", ""
    if state.steps_left is None or not state.total_steps or state.end is not None:
        return f"{speed:.3g} steps/s", ""
    left = state.steps_left / speed
    return f"{speed:.3g} steps/s", f"{words.clock(left)} left" if left < words.LONG else ""


def _curves(state: RunState, height: int, width: int) -> RenderableType:
    assert state.start is not None
    objective = state.start.objective
    values = [(e.step, v) for e in state.evaluations if (v := state.objective_of(e)) is not None and math.isfinite(v)]
    name = objective.counterpart
    train = [
        (e.step, e.metrics[name]) for e in state.evaluations if name and math.isfinite(e.metrics.get(name, math.nan))
    ]
    best = f"best {words.number(state.best[1])} at step {state.best[0]:,}" if state.best else ""
    title = f"{quoted(objective.metric)} {words.number(state.latest)}   {best}"
    marks = [i.step for i in state.interventions]
    chart = plot(values, train, marks, width, height)
    legend = f"[bold]●[/] {quoted(objective.metric)}" + (f"  [dim]● {quoted(name)}[/]" if name and train else "")
    legend += "  [yellow]▲[/] change" if marks else ""
    return Panel(chart, title=marked(title), subtitle=marked(legend), title_align="left", subtitle_align="left",
                 border_style="dim")  # fmt: skip


def plot(
    values: list[tuple[int, float]], second: list[tuple[int, float]], marks: list[int], width: int, height: int
) -> Text:
    """Two curves over steps in braille dots, 2 x 4 a character, with a scale at the left and marks below."""
    both = [*values, *second]
    if not both:
        return Text("")
    low, high = min(v for _, v in both), max(v for _, v in both)
    first, last = min(s for s, _ in both), max(s for s, _ in both)
    if high == low:  # a flat curve lies in the middle
        air = abs(low) / 10 or 0.5
        low, high = max(low - air, -sys.float_info.max), min(high + air, sys.float_info.max)
    unit = 1.0 if math.isfinite(high - low) else 4.0  # the difference of two numbers may be none
    low, high = low / unit, high / unit
    last = last if last > first else first + 1
    cells = [[0] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]

    def draw(points: list[tuple[int, float]], style: str) -> None:
        for x, y in line([
            ((step - first) / (last - first) * (2 * width - 1), (high - value / unit) / (high - low) * (4 * height - 1))
            for step, value in points
        ]):  # fmt: skip
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            styles[y // 4][x // 2] = style

    draw(second, "dim")
    draw(values, "bold cyan")
    text = Text()
    for row in range(height):
        scale = high - (high - low) * (row / max(1, height - 1))
        text.append(f"{scale * unit:>9.4g} ", style="dim")
        for cell, style in zip(cells[row], styles[row], strict=True):
            text.append(chr(0x2800 + cell) if cell else " ", style=style)
        text.append("\n")
    below = [" "] * width
    for step in marks:
        if first <= step <= last:
            below[min(width - 1, int((step - first) / (last - first) * (width - 1)))] = "▲"
    text.append(" " * 10 + "".join(below).rstrip(), style="yellow")
    return text


def line(points: list[tuple[float, float]]) -> list[tuple[int, int]]:
    """The dots on the straight lines between the points."""
    dots = [(round(x), round(y)) for x, y in points[:1]]
    for (a, x), (b, y) in pairwise(points):
        n = max(1, math.ceil(max(abs(b - a), abs(y - x))))
        dots += [(round(a + (b - a) * i / n), round(x + (y - x) * i / n)) for i in range(1, n + 1)]
    return dots


def _recipe(state: RunState) -> RenderableType:
    assert state.start is not None
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("recipe", "value", "", "low", "high", "at start"):
        table.add_column(column, justify="left" if column in ("recipe", "") else "right")
    for begun in state.start.action_space:
        parameter = begun.model_copy(update={"value": state.recipe[begun.name]})
        first = state.begun[begun.name]
        changed = parameter.value != first
        table.add_row(
            Text(on_terminal(begun.name)),
            Text(on_terminal(display.shown(parameter.value)), style="bold yellow" if changed else ""),
            gauge(parameter),
            "" if begun.low is None else display.shown(begun.low),
            "" if begun.high is None else display.shown(begun.high),
            Text(on_terminal(display.shown(first)), style="dim"),
        )
    return table


def gauge(parameter: Parameter) -> Text:
    """Where the value lies between its bounds."""
    if parameter.low is None or parameter.high is None or isinstance(parameter.value, str):
        return Text(on_terminal(", ".join(parameter.choices or [])), style="dim")
    low, high, value = float(parameter.low), float(parameter.high), float(parameter.value)
    if not low <= value <= high:
        return Text("off".center(GAUGE), style="dim")
    if parameter.scale == "log":
        low, high, value = math.log(low), math.log(high), math.log(value)
    span = high / 2 - low / 2  # of the largest numbers, too
    at = round((value / 2 - low / 2) / span * (GAUGE - 1)) if span else 0
    return Text("─" * at + "●" + "─" * (GAUGE - 1 - at), style="cyan")


def _interventions(now: Situation) -> RenderableType:
    state, ledger = now.state, now.ledger
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("step", "why", "what", "objective before → since"):
        table.add_column(column, overflow="fold", justify="right" if column == "step" else "left")
    for item in state.interventions[-SHOWN:]:
        decision = ledger.decisions.get(ledger.revisions.get(item.revision, ""))
        done = display.done_in_words(item.changes, decision.plans if decision else {})
        todo = "; ".join(p for p in (display.command_in_words(item.command), done) if p)
        since = words.number(item.after[-1][1]) if item.after else "…"
        table.add_row(
            f"{item.step:,}",
            Text(
                (decision.diagnosis or "") if decision else on_terminal(display.origin_in_words(ledger, item.revision)),
                style="yellow",
            ),
            marked(
                quoted(todo)
                + ("  [red](taken back)[/]" if item.revision in ledger.taken_back else "")
                + (f"  [red]({quoted(display.lost_in_words(item))})[/]" if item.lost else "")
            ),
            f"{words.number(item.before)} → {since}",
        )
    hidden = state.intervention_count - min(SHOWN, len(state.interventions))
    parts: list[RenderableType] = [table] if state.interventions else [Text("no interventions", style="dim")]
    if hidden > 0:
        parts.append(Text(f"and {hidden} before", style="dim"))
    if ledger.rejections:
        parts.append(Text(on_terminal(f"last not applied: {ledger.rejections[-1]}"), style="dim"))
    if state.texts:
        level, message = state.texts[-1]
        parts.append(Text(on_terminal(f"workload {level}: {message}"), style="dim"))
    return Group(*parts)


class LiveView:
    """The live view of a run in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=FRAMES, auto_refresh=False, transient=True)
        self._drawn = 0.0
        self._question: Text | None = None
        self._keyboard: display.Keyboard | None = None
        self._drifts = display.Drifts()
        self._told = display.Told()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(Exception):  # the run has its end, and its exit code
            self._live.stop()

    def record(self, record: Item, state: RunState) -> None:
        for text in (*self._drifts.new(state), *self._told.new(state)):
            self._console.print(Text(on_terminal(text), style="yellow"))

    def event(self, event: events.Payload, now: Situation) -> None:
        if isinstance(event, events.Approval):
            self._question = None
        if isinstance(event, SAID):
            self._console.print(Text(on_terminal(display.event_in_words(event, now) or ""), style="yellow"))
        if ailment := display.begun(event, now.ledger):
            self._console.print(Text(on_terminal(display.ailment_in_words(ailment, now.ledger)), style="yellow"))
        self._drawn = 0.0
        self.tick(now)

    def tick(self, now: Situation) -> None:
        t = time.monotonic()
        if t - self._drawn < 1 / FRAMES or getattr(self._console.file, "behind", False):  # an output.Printer
            return
        if now.ledger.started is None:  # nobody knows what to call it
            return
        self._drawn = t
        view: RenderableType = render(now, width=self._console.width)
        self._live.update(Group(view, self._question) if self._question else view, refresh=True)

    def ask(self, ruling: events.Verdict, answer: Callable[[bool | None], None]) -> None:
        self._keyboard = self._keyboard or display.Keyboard()
        question = self._keyboard.ask(ruling, answer, lambda text: self._console.print(Text(text, style="yellow")))
        self._question = Text(f"{question} ", style="bold yellow") if question else None
