"""Inline SVG: the single values of each arm with mean and interval, and curves with their band. Pure, all escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainmgr.base.foreign import in_html
from trainmgr.base.wire import short

WIDTH = 640
ROW = 26  # of the plot of values, for one arm
HEIGHT = 280  # of the plot over steps
MARGIN = 64.0  # for its scale
TOP, BOTTOM, RIGHT = 10.0, 26.0, 14.0
LETTER = 7.2  # width of a character of a label, about
COLOURS = 8  # that the style sheet has; further arms begin again, dashed
LABEL = 28  # characters
TINY = 1e-300  # what is less has no tenth that is a number
GRID = {"class": "grid"}

Point = tuple[float, float]


@dataclass(frozen=True)
class Strip:
    """One arm in the plot of values."""

    name: str
    colour: int
    points: list[tuple[int, float]]
    """(seed, value)"""
    mean: float | None
    interval: tuple[float, float] | None
    note: str = ""
    """Behind the name: what has no point."""

    @property
    def label(self) -> str:
        return short(self.name, LABEL) + self.note


@dataclass(frozen=True)
class Curve:
    """One arm in the plot over steps."""

    name: str
    colour: int
    mean: list[Point]
    low: list[Point]
    high: list[Point]


@dataclass(frozen=True)
class Scale:
    """From values to pixels, in a straight line."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round numbers."""
        step = _round_up((self.high - self.low) / count)
        first = math.ceil(self.low / step)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def scale(values: Iterable[float], begin: float, end: float) -> Scale:
    """Over all values with a little air; ``values`` must not be empty."""
    every = list(values)
    low, high = min(every), max(every)
    air = (high - low) * 0.05 or abs(high) * 0.05
    air = air if air > TINY else 1.0
    return Scale(low - air, high + air, begin, end)


def _round_up(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def strips(arms: Sequence[Strip], title: str) -> str:
    """A row for each arm: dots are runs, the line is the interval of the mean, the stroke on it the mean."""
    every = [value for arm in arms for value in (*(v for _, v in arm.points), *(arm.interval or ()))]
    if not every:
        return ""
    left = 8 + LETTER * max(len(arm.label) for arm in arms)
    x = scale(every, left, WIDTH - RIGHT)
    height = TOP + ROW * len(arms) + BOTTOM
    parts = _grid_x(x, TOP, height - BOTTOM)
    for row, arm in enumerate(arms):
        y = TOP + ROW * (row + 0.5)
        ink = {"class": _colour(arm.colour), "stroke": "currentColor"}
        parts.append(_text(left - 8, y + 4, arm.label, "end"))
        if arm.interval is not None:
            low, high = map(x, arm.interval)
            parts.append(tag("line", **ink, x1=low, x2=high, y1=y, y2=y, stroke_width=3))
        for seed, value in arm.points:
            tip = tag("title", in_html(f"{arm.name} seed {seed}: {value:.6g}"))
            parts.append(tag("circle", tip, **ink, cx=x(value), cy=y, r=4, fill="currentColor", fill_opacity="0.35"))
        if arm.mean is not None:
            tip, at = tag("title", in_html(f"{arm.name} mean: {arm.mean:.6g}")), x(arm.mean)
            parts.append(tag("line", tip, **ink, x1=at, x2=at, y1=y - 9, y2=y + 9, stroke_width=3))
    return _svg(parts, height, title)


def curves(arms: Sequence[Curve], title: str) -> str:
    """Means over steps, each with the band between the least and the largest value."""
    drawn = [arm for arm in arms if arm.mean]
    if not drawn:
        return ""
    x = scale((step for arm in drawn for step, _ in arm.mean), MARGIN, WIDTH - RIGHT)
    y = scale((value for arm in drawn for _, value in (*arm.low, *arm.high)), HEIGHT - BOTTOM, TOP)
    parts = [*_grid_x(x, TOP, HEIGHT - BOTTOM), *_grid_y(y, MARGIN, WIDTH - RIGHT)]
    for arm in drawn:
        band = _points(x, y, [*arm.low, *reversed(arm.high)])
        ink = {"class": _colour(arm.colour), "fill": "currentColor"}
        parts.append(tag("polygon", **ink, points=band, fill_opacity="0.15"))
    for arm in drawn:
        ink = {"class": _colour(arm.colour), "stroke": "currentColor", "stroke_dasharray": _dashes(arm.colour)}
        tip = tag("title", in_html(arm.name))
        parts.append(tag("polyline", tip, **ink, points=_points(x, y, arm.mean), fill="none", stroke_width=2))
    return _svg(parts, HEIGHT, title)


def legend(arms: Sequence[Curve]) -> str:
    """A stroke and the name of each arm."""
    parts = []
    for arm in arms:
        ink = {"class": _colour(arm.colour), "stroke": "currentColor", "stroke_dasharray": _dashes(arm.colour)}
        stroke = tag("line", **ink, x1=0, x2=28, y1=5, y2=5, stroke_width=3)
        parts.append(tag("span", tag("svg", stroke, width=28, height=10, aria_hidden="true") + " " + in_html(arm.name)))
    return tag("p", "".join(parts), **{"class": "legend"})


def tag(name: str, content: str = "", **attributes: float | str) -> str:
    """An element. The content is markup, attributes are escaped; those with an underscore have a hyphen."""
    written = "".join(
        f' {key.replace("_", "-")}="{value:.1f}"' if isinstance(value, float) else
        f' {key.replace("_", "-")}="{in_html(value)}"' for key, value in attributes.items()
    )  # fmt: skip
    return f"<{name}{written}>{content}</{name}>"


def _colour(number: int) -> str:
    return f"c{number % COLOURS}"


def _dashes(number: int) -> str:
    """Not by colour alone."""
    return ("none", "7 3", "2 3")[(number + number // COLOURS) % 3]


def _points(x: Scale, y: Scale, points: Iterable[Point]) -> str:
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)


def _grid_x(x: Scale, top: float, bottom: float) -> list[str]:
    lines = [tag("line", **GRID, x1=x(tick), x2=x(tick), y1=top, y2=bottom) for tick in x.ticks(6)]
    return lines + [_text(x(tick), bottom + 16, f"{tick:.4g}", "middle") for tick in x.ticks(6)]


def _grid_y(y: Scale, left: float, right: float) -> list[str]:
    lines = [tag("line", **GRID, x1=left, x2=right, y1=y(tick), y2=y(tick)) for tick in y.ticks(5)]
    return lines + [_text(left - 6, y(tick) + 4, f"{tick:.4g}", "end") for tick in y.ticks(5)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return tag("text", in_html(text), x=x, y=y, text_anchor=anchor)


def _svg(parts: Iterable[str], height: float, title: str) -> str:
    box = f"0 0 {WIDTH} {height:g}"
    return tag("svg", "".join(parts), **{"class": "plot", "viewBox": box, "role": "img", "aria_label": title})
