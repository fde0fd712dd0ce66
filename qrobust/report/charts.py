"""Numbers to points on a canvas; chart.svg.j2 draws them in the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 34, 44  # margins around the axes
LOG_RATIO = 30  # of a largest to a smallest value, from which an axis is logarithmic
SHADES = 6  # colours and markers in the template


@dataclass(frozen=True)
class Axis:
    """ticks: position on the canvas and text, of each."""

    label: str
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """points: (x, y) on the canvas. bars: (x, low, high), intervals. shade: colour and marker."""

    label: str
    shade: int
    points: tuple[tuple[float, float], ...]
    bars: tuple[tuple[float, float, float], ...] = ()

    @property
    def path(self) -> str:
        """For an SVG polyline."""
        return " ".join(f"{x},{y}" for x, y in self.points)


@dataclass(frozen=True)
class Chart:
    """summary: what a reader who cannot see it is told. joined: whether points are joined by a line."""

    title: str
    summary: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    joined: bool


@dataclass(frozen=True)
class Data:
    """One line: label, xs and ys of the same length; bars: (low, high) of each y, or none."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    bars: Sequence[tuple[float, float]] = ()


def chart(title: str, x: str, y: str, lines: Sequence[Data], *, from_zero: bool = False, joined: bool = True) -> Chart:
    """Lines over a common x; x, y: what the axes show. from_zero: the x axis begins there.

    The y axis is logarithmic where its values ask for it. Raises ValueError without a point.
    """
    xs = [value for line in lines for value in line.xs]
    ys = [value for line in lines for value in (*line.ys, *(end for pair in line.bars for end in pair))]
    across, x_ticks = _linear([0.0, max(xs) * 1.1] if from_zero else xs, LEFT, WIDTH - RIGHT)
    logarithmic = min(ys) > 0 and max(ys) > LOG_RATIO * min(ys)
    up, y_ticks = (_logarithmic if logarithmic else _linear)(ys, HEIGHT - BOTTOM, TOP)
    drawn = tuple(_line(line, index % SHADES, across, up) for index, line in enumerate(lines))
    return Chart(title, _summary(x, y, lines), Axis(x, x_ticks), Axis(y, y_ticks), drawn, joined)


Scale = Callable[[float], float]
Ticks = tuple[tuple[float, str], ...]


def _line(line: Data, shade: int, across: Scale, up: Scale) -> Line:
    points = tuple((across(x), up(y)) for x, y in zip(line.xs, line.ys, strict=True))
    bars = tuple((across(x), up(low), up(high)) for x, (low, high) in zip(line.xs, line.bars, strict=False))
    return Line(line.label, shade, points, bars)


def _linear(values: Sequence[float], start: float, end: float) -> tuple[Scale, Ticks]:
    """A scale from the values' range, widened to whole steps, to the canvas, and its ticks."""
    low, high = min(values), max(values)
    step = _step((high - low) or abs(high) or 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)

    def place(value: float) -> float:
        return round(start + (end - start) * (value / step - first) / (last - first), 1)

    return place, tuple((place(at * step), f"{at * step:.6g}") for at in range(first, last + 1))


def _logarithmic(values: Sequence[float], start: float, end: float) -> tuple[Scale, Ticks]:
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(value: float) -> float:
        return round(start + (end - start) * (math.log10(value) - first) / (last - first), 1)

    return place, tuple((place(10.0**at), f"{10.0**at:g}") for at in range(first, last + 1))


def _step(length: float) -> float:
    """1, 2 or 5 times a power of ten: three to six steps in `length`."""
    base = 10.0 ** math.floor(math.log10(length / 3))
    return next(base * factor for factor in (1, 2, 5, 10) if length / (base * factor) <= 6)


def _summary(x: str, y: str, lines: Sequence[Data]) -> str:
    told = []
    for line in lines:
        ends = f"{line.ys[0]:.3g}" if len(line.ys) == 1 else f"from {line.ys[0]:.3g} to {line.ys[-1]:.3g}"
        at = f" at {line.xs[0]:.3g}" if len(line.xs) == 1 else ""
        told.append(f"{line.label}: {ends}{at}")
    return f"{y} over {x}. {'; '.join(told)}."
