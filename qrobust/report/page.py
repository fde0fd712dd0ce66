"""The page: what was collected, put into words, tables and charts, and these into the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..analyze.figures.style import threat
from .charts import Chart, Data, chart
from .collect import Collected, Record, Width
from .frequencies import figures
from .tables import columns, layers, parity, rows
from .words import cards, flags, headline

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
CURVES = {"loss": ("Loss", "training loss", 1), "validation_clean": ("Clean", "validation accuracy, %", 100),
          "validation_robust": ("Under attack", "validation accuracy under PGD, %", 100)}  # fmt: skip


def page(run: Collected) -> str:
    """The whole page as HTML. Raises KeyError, TypeError and their like for results that are not whole."""
    accuracies = [(width, rows(width)) for width in run.widths]  # a width cannot be hashed
    return render(
        "page.html.j2",
        escaped=True,
        run=run,
        version=__version__,
        threat=told_threat(run),
        headline=headline(run),
        cards=cards(run),
        columns=columns([row for _, part in accuracies for row in part]),
        accuracies=accuracies,
        flags=flags(run),
        costs=_costs(run),
        curves=_curves(run.widths),
        figures=figures(run.analysis),
        layers=[(width, layers(width)) for width in run.evaluated],
        parity=parity,
        settings=settings,
    )


def render(name: str, *, escaped: bool, **values: Any) -> str:
    """A template of this folder, filled. escaped: whether values are made safe for HTML. Raises KeyError for a value
    that is missing.
    """
    from jinja2 import UndefinedError

    try:
        return _environment(escaped).get_template(name).render(**values).strip() + "\n"
    except UndefinedError as error:
        raise KeyError(str(error)) from error


@cache
def _environment(escaped: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def told_threat(run: Collected) -> str:
    """As people write it."""
    return threat({"norm": run.recipe.threat.norm, "eps": run.recipe.threat.eps})


def settings(found: Mapping[str, Any]) -> str:
    """Settings of an attack or a machine in one line; what is not set is left out."""
    return ", ".join(f"{_plain(key)} {value:.4g}" if isinstance(value, float) else f"{_plain(key)} {value}"
                     for key, value in found.items() if value is not None) or "–"  # fmt: skip


def _plain(key: str) -> str:
    return key.replace("_", " ")


def _costs(run: Collected) -> list[Chart]:
    """Worst case in torch against latency (smallest batch, first thread count) and against size."""
    first = _timed(run.bench) if run.bench else []
    pairs = [(row, width) for row in first for width in run.evaluated if width.bits == row["bits"]]
    if not pairs:
        return []
    row = pairs[0][0]
    load = f"batch {row['batch']}, {row['threads'] or 'all'} thread{'s' * (row['threads'] != 1)}"
    return [
        _cost("Latency", f"median latency, ms ({load})", "p50_ms", 1, pairs),
        _cost("Size", "size of the file, kB", "size_bytes", 1e-3, pairs),
    ]


def _timed(bench: Record) -> list[Record]:
    smallest, threads = min(row["batch"] for row in bench["results"]), bench["results"][0]["threads"]
    return [row for row in bench["results"] if (row["batch"], row["threads"]) == (smallest, threads)]


def _cost(title: str, label: str, key: str, factor: float, pairs: Sequence[tuple[Record, Width]]) -> Chart:
    points = []
    for row, width in pairs:
        worst = (width.evaluation or {})["worst_case"]
        low, high = worst["ci95"]
        points.append(Data(width.label, [row[key] * factor], [100 * worst["accuracy"]], [(100 * low, 100 * high)]))
    return chart(title, label, "worst case in torch, %", points, from_zero=True, joined=False)


def _curves(widths: Sequence[Width]) -> list[Chart]:
    """Loss and accuracies over epochs, a line a network; those that no training logged are left out."""
    drawn = []
    for key, (title, label, factor) in CURVES.items():
        lines = []
        for width in widths:
            records = [record for record in width.epochs if key in record]
            if records:
                ys = [factor * record[key] for record in records]
                lines.append(Data(width.label, [record["epoch"] for record in records], ys))
        if lines:
            drawn.append(chart(title, "epoch", label, lines))
    return drawn
