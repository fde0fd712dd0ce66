"""Accuracy under attack against what it costs: one point an artifact."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RunError, one_line
from ..storage import write_bytes
from ..tables import threat_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osDv^P"


def expect_image(path: Path) -> None:
    """Raises RunError unless the file's name ends as a figure that can be drawn."""
    if path.suffix.lower() not in SUFFIXES:
        raise RunError(f"expected a file that ends in .png or .svg for --plot, got {path}")


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw worst-case accuracy against latency (smallest batch, first thread count) and against file size.

    result: of `bench`. Bars are 95 % intervals. Needs matplotlib. Raises RunError for a path that cannot be written.
    """
    _save(lambda: _drawn(result), path)


def _save(draw: Callable[[], Figure], path: Path) -> None:
    """The same result, the same bytes; a dollar in a name is no formula."""
    from matplotlib import rc_context

    expect_image(path)
    buffer, kind = io.BytesIO(), path.suffix.lower()[1:]
    with rc_context({"svg.hashsalt": "qrobust", "text.parse_math": False}):
        draw().savefig(buffer, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, buffer.getvalue())


def plot_front(result: dict[str, Any], path: Path) -> None:
    """Draw what all layers together lose of their margin against what they cost: the Pareto front of an allocation,
    the one within the budget, and uniform widths. Raises RunError as `plot`.
    """
    _save(lambda: _front(result), path)


def _front(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    unit = result["budget"]["unit"]
    scale, label = (1e-3, "weights, kB") if unit == "bytes" else (1e-9, "bit operations of an image, 10⁹")
    figure = Figure(figsize=(7, 4.8), layout="constrained")
    panel = figure.subplots()
    panel.plot([cost * scale for cost, _ in result["front"]], [loss for _, loss in result["front"]], color=COLOURS[0],
               label="bits by layer")  # fmt: skip
    panel.plot(result["cost"] * scale, result["loss"], "o", color=COLOURS[0], markersize=8, label="within the budget")
    for one in result["uniform"]:
        panel.plot(one["cost"] * scale, one["loss"], "s", color=COLOURS[1], markersize=7)
        panel.annotate(f"--bits {one['bits']}", (one["cost"] * scale, one["loss"]), (6, 6), textcoords="offset points")
    panel.axvline(result["budget"]["most"] * scale, color="#888888", linewidth=1, linestyle="--")
    panel.set(xlabel=label, ylabel="sum of lost margins under attack, logits", ylim=(0, None))
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    return figure


def _drawn(result: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    rows = _rows(result)
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    _panel(panels[0], rows, "p50_ms", 1.0, f"median latency, ms ({_load(rows[0])})")
    large = max(row["size_bytes"] for row in rows) >= 1e6
    _panel(panels[1], rows, "size_bytes", 1e-6 if large else 1e-3, f"size of the file, {'MB' if large else 'kB'}")
    panels[0].set_ylabel("accuracy under attack, %")
    figure.suptitle(_title(rows), fontsize=12)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    images = f"Worst case of the stored attacks on {rows[0]['suite_n']} images, 95 % intervals."
    note = f"{result['hardware']['cpu']}. {images} Stored examples can only overestimate robustness."
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def _rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    first = result["results"][0]["threads"]
    smallest = min(row["batch"] for row in result["results"])
    chosen = [row for row in result["results"] if (row["threads"], row["batch"]) == (first, smallest)]
    rows = [{**result["artifacts"][row["name"]], **row} for row in chosen]
    known = [row for row in rows if row["worst_case"] is not None]
    if not known:
        raise RunError("expected an artifact among what is drawn, got bare files, whose accuracy is not known; add one")
    return known


def _load(row: dict[str, Any]) -> str:
    threads = row["threads"]
    return f"batch {row['batch']}, {threads or 'all'} thread{'' if threads == 1 else 's'}"


def _title(rows: list[dict[str, Any]]) -> str:
    threats = {threat_text(row["threat"]) for row in rows}
    return "Accuracy under attack against latency and size" + (f" ({threats.pop()})" if len(threats) == 1 else "")


def _panel(panel: Any, rows: list[dict[str, Any]], key: str, factor: float, label: str) -> None:
    for index, row in enumerate(rows):
        low, high = row["worst_case_ci95"]
        share, colour = row["worst_case"], COLOURS[index % len(COLOURS)]
        bars = [[100 * (share - low)], [100 * (high - share)]]
        style = {"fmt": MARKERS[index % len(MARKERS)], "markersize": 8, "elinewidth": 1.2, "capsize": 3, "alpha": 0.85}
        panel.errorbar(row[key] * factor, 100 * share, yerr=bars, color=colour, label=one_line(row["name"]), **style)
    panel.set(xlabel=label, xlim=(0, 1.12 * factor * max(row[key] for row in rows)))
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
