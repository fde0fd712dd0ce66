"""All that is seen on the page: charts in its own colours, figures of `qrobust analyze`, and images of a suite."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..analysis import NAMES, draw
from ..errors import RunError
from ..runtime import Artifact
from ..storage import read_json

Pixels = npt.NDArray[np.uint8]

# Of charts: matplotlib draws in stand-ins, each of which becomes a variable of style.css, light or dark as the page.
COLOURS = {name: f"#0000{index:02x}" for index, name in enumerate(
    ("ink", "soft", "grid", "page", "s0", "s1", "s2", "s3", "s4", "s5"), start=1)}  # fmt: skip
SHADES = (("s0", "o", "-"), ("s1", "s", (0, (4, 2))), ("s2", "D", (0, (1, 1.5))), ("s3", "^", (0, (5, 2, 1, 2))),
          ("s4", "v", (0, (2, 2))), ("s5", "P", (0, (6, 2))))  # fmt: skip
WIDTH, HEIGHT = 420, 270  # of a chart, in units of its text, which has 12 and 13
LOG_RATIO = 30  # of a largest to a smallest value, from which an axis is logarithmic
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

# Of figures.
MOST_BYTES = 3_000_000  # of all together, as they stand in the page
MOST_SVG = 150_000  # of one; a larger one is drawn in pixels
PIXELS_PER_INCH = 80
DPI = 110

MOST, MOST_SIDE = 4, 96  # examples of a network; pixels of a side, larger images are scaled down


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
        drawn = _saved(figure, "svg", metadata={"Date": None}).decode()
    return Chart(title, y, _inlined(drawn, name, title, _summary(x, y, lines)))


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


def _inlined(svg: str, name: str, title: str, summary: str) -> str:
    """A drawing of matplotlib as part of a page: named, without a style of its own, ids unique, colours variable."""
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    for variable, stand_in in COLOURS.items():
        body = body.replace(stand_in, f"var(--{variable})")
    used = set(re.findall(r"#([\w-]+)(?=[\")])", body))
    body = re.sub(r' id="([\w.-]+)"', lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", body)
    body = re.sub(r"#([\w-]+)(?=[\")])", rf"#{name}-\1", body)
    body = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", " ".join(re.sub(r">\s+<", "><", body).split()))
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-title {name}-text">'
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


@dataclass(frozen=True)
class Figure:
    """source: data URI, "" for one that is left out, for which caption then says why."""

    name: str
    title: str
    caption: str
    source: str = ""
    width: int = 0
    height: int = 0


def figures(paths: Sequence[Path]) -> list[Figure]:
    """Figures drawn anew from their data, title and caption as text beside them, in the order in which they are
    measured; what would make the page too large is left out.
    """
    order = {name: index for index, name in enumerate(NAMES)}
    found, left = [], MOST_BYTES
    for path in sorted(paths, key=lambda path: order.get(path.stem, len(order))):
        figure = _figure(path)
        if len(figure.source) > left:
            figure = Figure(figure.name, figure.title, f"Left out of this page for its size; see {path.name} beside.")
        left -= len(figure.source)
        found.append(figure)
    return found


def _figure(path: Path) -> Figure:
    try:
        drawn = draw(read_json(path))
    except RunError as error:
        return Figure(path.stem, path.stem, f"Could not be drawn: {error}")
    title, caption = drawn.get_suptitle(), drawn.get_supxlabel()
    drawn.suptitle("")
    drawn.supxlabel("")
    width, height = (round(inches * PIXELS_PER_INCH) for inches in drawn.get_size_inches())
    return Figure(path.stem, title, " ".join(caption.split()), _source(drawn), width, height)


def _source(drawn: Any) -> str:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "qrobust"}):  # the same data, the same bytes
        kind, data = "svg+xml", _saved(drawn, "svg", metadata={"Date": None})
    if len(data) > MOST_SVG:
        kind, data = "png", _saved(drawn, "png", dpi=DPI)
    return _uri(kind, data)


def _saved(drawn: Any, suffix: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format=suffix, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


@dataclass(frozen=True)
class Example:
    """Pictures as data URIs: clean, adversarial, and their difference, whose largest change is black or white.

    attack: whose image it is; part: of a cascade, the part that found it, "" where none is named. Names of classes: the
    true one, and the network's before and after the attack.
    """

    clean: str
    adversarial: str
    difference: str
    attack: str
    part: str
    true: str
    before: str
    after: str


def examples(artifact: Artifact) -> tuple[Example, ...]:
    """Images under the stored attack that breaks most: of different classes first, broken ones before others."""
    attacks = [name for name in artifact.sets if name != "clean"]
    if not attacks:
        return ()
    attack = min(attacks, key=lambda name: float(artifact.manifest["reference"][name]))
    return tuple(_example(artifact, attack, index) for index in _chosen(artifact, attack))


def _chosen(artifact: Artifact, attack: str) -> list[int]:
    """Of images that are right when clean: the first broken one of each class, then the rest, in their order."""
    suite, y = artifact.suite, artifact.suite["y"]
    right, broken = suite["label.clean"] == y, suite[f"label.{attack}"] != y
    candidates = np.concatenate([np.flatnonzero(right & broken), np.flatnonzero(right & ~broken)])
    _, first = np.unique(y[candidates], return_index=True)
    return list(dict.fromkeys([*candidates[np.sort(first)].tolist(), *candidates.tolist()]))[:MOST]


def _example(artifact: Artifact, attack: str, index: int) -> Example:
    suite, names = artifact.suite, artifact.classes
    clean, adversarial = suite["x.clean"][index], suite[f"x.{attack}"][index]
    return Example(
        clean=_picture(clean),
        adversarial=_picture(adversarial),
        difference=_picture(_difference(clean, adversarial)),
        attack=attack,
        part=_part(artifact, attack, index),
        true=names[suite["y"][index]],
        before=names[suite["label.clean"][index]],
        after=names[suite[f"label.{attack}"][index]],
    )


def _part(artifact: Artifact, attack: str, index: int) -> str:
    """As the suite names it; "clean", which it says of an image as it came, is no part."""
    names = artifact.found_by(attack)
    return names[index] if names and names[index] != "clean" else ""


def _difference(clean: Pixels, adversarial: Pixels) -> Pixels:
    """Grey where nothing changed: 127.5 (1 + δ / max |δ|). Not by eps, which in l2 is far above what a pixel moves."""
    delta = adversarial.astype(np.float64) - clean
    grey: Pixels = np.rint(127.5 * (1 + delta / max(np.abs(delta).max(), 1))).astype(np.uint8)
    return grey


def _picture(pixels: Pixels) -> str:
    """A PNG (c, h, w) as data URI; one or three channels as they are, of others the first."""
    from PIL import Image

    whole: Any = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    image, buffer = Image.fromarray(np.ascontiguousarray(whole)), io.BytesIO()
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    image.save(buffer, "PNG", optimize=True)
    return _uri("png", buffer.getvalue())
