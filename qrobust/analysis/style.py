"""One look for all figures, colours that the colour-blind tell apart, captions that say n and seed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ..bench.plot import COLOURS, MARKERS, SUFFIXES
from ..tables import threat_text

GREY, LIGHT = "#555555", "#e4e4e4"
MOST_COLUMNS = 4
STYLE: dict[Any, Any] = {  # matplotlib types its keys one by one
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "image.interpolation": "nearest",
    "svg.hashsalt": "qrobust",  # the same data, the same bytes
    "savefig.dpi": 160,
    "text.parse_math": False,  # a dollar in a name is no formula
}
__all__ = [
    "COLOURS", "GREY", "MOST_COLUMNS", "STYLE", "SUFFIXES", "Data", "caption", "colour_bar", "curve", "legend", "look",
    "page", "panels", "picture",
]  # fmt: skip
Data = Mapping[str, Any]


def page(title: str, width: float, height: float) -> Any:
    """An empty matplotlib figure with a title.

    width, height: of all of it, in inches.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(wspace=0.05, hspace=0.05))
    figure.suptitle(title, fontsize=12.5)
    return figure


def panels(title: str, count: int, *, width: float = 3.6, height: float = 3.4, **shared: Any) -> tuple[Any, list[Any]]:
    """A figure of `count` panels, at most four in a row; returns it and its axes, row by row.

    width, height: of a panel, in inches. shared: what matplotlib's `subplots` takes, as `sharey=True`.
    """
    columns = min(count, MOST_COLUMNS)
    rows = -(-count // columns)
    figure = page(title, max(4.8, width * columns + 0.8), height * rows + 1.1)
    every = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for panel in every[count:]:
        panel.set_axis_off()
    return figure, every[:count]


def caption(figure: Any, data: Data, text: str, *, images: bool = True) -> None:
    """What is seen, on how many images, by which seed and settings, below the figure.

    data: a figure's JSON, whose `n`, `data`, `seed`, `threat`, `settings` and `paper` are read. images: whether what is
    shown was measured on test images, which are then counted.
    """
    parts = [text]
    if images and "n" in data:
        parts.append(f"n = {data['n']} test images of {data['data']}, seed {data['seed']}.")
    if data.get("threat") and "attacks" in data["settings"]:
        parts.append(f"Threat: {threat_text(data['threat'])}.")
    parts.append(f"After {data['paper']}.")
    wide = int(figure.get_figwidth() * 14.5)
    lines = "\n".join(textwrap.wrap(" ".join(parts), wide, break_on_hyphens=False))
    figure.supxlabel(lines, fontsize=8.5, color=GREY, x=0.01, ha="left", linespacing=1.35)


def look(index: int) -> dict[str, Any]:
    """Colour and marker of the case at a position."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def curve(panel: Any, x: Sequence[float], found: Data, label: str, style: Mapping[str, Any]) -> None:
    """Accuracies in percent over x, with their intervals as a band.

    x: one number a point. found: `accuracy`, shares in [0, 1], and `ci95`, pairs (low, high), one a point. style: what
    matplotlib's `plot` takes, its `color` among it.
    """
    low, high = ([100 * bound for bound in bounds] for bounds in zip(*found["ci95"], strict=True))
    panel.plot(x, [100 * share for share in found["accuracy"]], label=label, **style)
    panel.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


def legend(panel: Any) -> None:
    """The labels of a panel, at its right."""
    panel.legend(loc="upper left", bbox_to_anchor=(1.02, 1), borderaxespad=0)


def colour_bar(figure: Any, shown: Any, beside: Sequence[Any], label: str) -> None:
    """The scale of a picture, at the right of all panels that share it.

    shown: what `picture` returned. beside: those panels. label: of the scale, with its unit.
    """
    figure.colorbar(shown, ax=beside, label=label, shrink=0.85, panchor=False)


def picture(panel: Any, values: Any, **options: Any) -> Any:
    """An array as a picture without ticks; returns matplotlib's image.

    values: (h, w), or colours (h, w, 3) in [0, 1]. options: what matplotlib's `imshow` takes.
    """
    panel.set(xticks=[], yticks=[])
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    return panel.imshow(values, **options)
