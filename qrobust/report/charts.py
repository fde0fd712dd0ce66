"""Charts in the page's own colours, and figures of matplotlib made so, light or dark as the page is."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# matplotlib draws in stand-ins, which no map of colours has; each becomes a variable of style.css, light or dark.
COLOURS = {name: f"#fe01{index:02x}" for index, name in enumerate(
    ("ink", "soft", "grid", "page", "s0", "s1", "s2", "s3", "s4", "s5"), start=1)}  # fmt: skip
SHADES = (("s0", "o", "-"), ("s1", "s", (0, (4, 2))), ("s2", "D", (0, (1, 1.5))), ("s3", "^", (0, (5, 2, 1, 2))),
          ("s4", "v", (0, (2, 2))), ("s5", "P", (0, (6, 2))))  # fmt: skip
WIDTH, HEIGHT = 420, 270  # of a chart, in units of its text, which has 12 and 13
PANEL = (260, 190)  # a small multiple's
LOG_RATIO = 30  # of a largest to a smallest value, from which an axis is logarithmic
MARKS = "●■◆▲▼✚"  # as SHADES draws them, for a legend of text
CHART_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's letters
    "font.family": "DejaVu Sans",
    "font.size": 13,
    "text.parse_math": False,
    "text.color": COLOURS["ink"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["soft"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.autolimit_mode": "round_numbers",
    "axes.xmargin": 0,
    "axes.ymargin": 0,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "ytick.left": False,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One line: label, xs and ys of the same length; bars: (low, high) of each y, or none."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    bars: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Chart:
    """svg: to be set into the page as it is; its colours are variables of style.css."""

    title: str
    y: str
    svg: str


def chart(name: str, title: str, x: str, y: str, lines: Sequence[Line], *, scattered: bool = False) -> Chart:
    """Lines over a common x; name: of its own among the page's ids; x, y: what the axes show.

    scattered: points alone, on an x axis from zero; else they are joined, and the last is marked. The y axis is
    logarithmic where its values ask for it. Raises ValueError for what is not finite.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(CHART_STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout="constrained")
        axes = figure.subplots()
        for index, line in enumerate(lines):
            _plot(axes, line, index, joined=not scattered)
        _scale(axes, lines, from_zero=scattered)
        axes.set(xlabel=x)
        figure.legend(loc="outside upper left", ncols=6, handlelength=0.8, handletextpad=0.5, columnspacing=1.4,
                      borderpad=0, borderaxespad=0.3)  # fmt: skip
        drawn = svg_of(figure)
    return Chart(title, y, inlined(drawn, name, title, _summary(x, y, lines), (WIDTH, HEIGHT)))


def _plot(axes: Any, line: Line, index: int, *, joined: bool) -> None:
    shade, marker, dashes = SHADES[index % len(SHADES)]
    colour = COLOURS[shade]
    if line.bars:
        low, high = np.transpose(line.bars)
        reach = np.maximum([line.ys - low, high - line.ys], 0)
        axes.errorbar(line.xs, line.ys, yerr=reach, fmt="none", ecolor=colour, elinewidth=2, capsize=4, capthick=2)
    if joined:
        axes.plot(line.xs, line.ys, linestyle=dashes, color=colour, linewidth=2)
    marked = slice(-1 if joined else 0, None)
    edge = {"markeredgecolor": COLOURS["page"], "markeredgewidth": 0.8, "markersize": 10, "clip_on": False}
    axes.plot(line.xs[marked], line.ys[marked], marker, label=line.label, color=colour, **edge)


def _scale(axes: Any, lines: Sequence[Line], *, from_zero: bool) -> None:
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in (*line.ys, *(end for pair in line.bars for end in pair))]
    if not np.isfinite([*xs, *ys]).all():
        raise ValueError("a number that is not finite")
    whole = all(x == int(x) for x in xs)
    axes.xaxis.get_major_locator().set_params(integer=whole, nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=6)
    if whole and min(xs) == max(xs):  # one epoch: no fractions of it
        axes.set_xlim(xs[0] - 1, xs[0] + 1)
    if from_zero:
        axes.set_xlim(0, 1.1 * max(xs) or 1)
    if min(ys) > 0 and max(ys) > LOG_RATIO * min(ys):
        axes.set_yscale("log")
        axes.set_ylim(10.0 ** np.floor(np.log10(min(ys))), 10.0 ** np.ceil(np.log10(max(ys))))
        axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:.6g}")


def panel(name: str, title: str, places: Sequence[str], lines: Mapping[int, Line]) -> Chart:
    """A small multiple: percent from 0 to 100 by place, so that panels compare.

    name: of its own among the page's ids. places: names of x = 0, 1, …. lines: by the place of their shade and mark.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height = PANEL
    with rc_context(CHART_STYLE | {"svg.hashsalt": name, "font.size": 12}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        for at, (shade, line) in enumerate(lines.items()):
            shift = 0.2 * (at - (len(lines) - 1) / 2)
            _plot(axes, Line("", [x + shift for x in line.xs], line.ys, line.bars), shade, joined=False)
        axes.set(xlim=(-0.5, len(places) - 0.5), ylim=(0, 100), yticks=range(0, 101, 25))
        axes.set_xticks(range(len(places)), places)
        drawn = svg_of(figure)
    return Chart(title, "", inlined(drawn, name, title, _spoken(places, lines.values()), PANEL))


def _spoken(places: Sequence[str], lines: Iterable[Line]) -> str:
    """What a reader who cannot see a panel is given."""
    parts = [
        f"{line.label}: " + ", ".join(f"{places[int(x)]} {y:.1f} %" for x, y in zip(line.xs, line.ys, strict=True))
        for line in lines
    ]
    return "; ".join(parts) + "."


def svg_of(figure: Any) -> str:
    """A figure as SVG; the same data give the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def inlined(svg: str, name: str, title: str, summary: str, size: tuple[int, int], kind: str = "chart") -> str:
    """A drawing of matplotlib as part of a page: named, without a style of its own, ids unique, colours variable.

    size: width and height in its units. kind: a class of style.css.
    """
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r'(?<=;base64,)[^"]+', lambda found: "".join(found[0].split()), body)
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    for variable, stand_in in COLOURS.items():
        body = body.replace(stand_in, f"var(--{variable})")
    used = set(re.findall(r"#([\w-]+)(?=[\")])", body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r"#([\w-]+)(?=[\")])", rf"#{name}-\1", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", " ".join(re.sub(r">\s+<", "><", body).split()))
    head = (f'<svg class="{kind}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
            f'aria-labelledby="{name}-title {name}-text">')  # fmt: skip
    words = f'<title id="{name}-title">{html.escape(title)}</title><desc id="{name}-text">{html.escape(summary)}</desc>'
    return f"{head}{words}{body}"


def _summary(x: str, y: str, lines: Sequence[Line]) -> str:
    """What a reader who cannot see a chart is given."""
    parts = []
    for line in lines:
        ends = f"{line.ys[0]:.3g}" if len(line.ys) == 1 else f"from {line.ys[0]:.3g} to {line.ys[-1]:.3g}"
        at = f" at {line.xs[0]:.3g}" if len(line.xs) == 1 else ""
        parts.append(f"{line.label}: {ends}{at}")
    return f"{y} over {x}. {'; '.join(parts)}."
