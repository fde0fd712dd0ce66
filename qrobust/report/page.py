"""Both files of a report, each written whole: the page, and a model card in the form that model hubs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import RunError, printable
from ..headline import LEGEND, Number, is_last_step, listed, summary
from ..resources import unplaced
from ..storage import is_stream, write_text
from ..tables import LAST_STEP, threat_text
from .alone import collect_artifact, is_artifact, place_of
from .charts import MARKS, SHADES, Chart, Line, chart, panel
from .collect import Collected, Record, Width, collect
from .pictures import figures
from .words import (
    MOST_CLASSES,
    PLACES,
    Card,
    Place,
    cards,
    classes,
    columns,
    flags,
    layers,
    parity,
    parts,
    rows,
    settings,
)

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, CARD = "report.html", "model-card.md"
BROKEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
FOLDER = Path(__file__).parent
CURVES = {"loss": ("Loss", "training loss", 1), "validation_clean": ("Clean", "validation accuracy, %", 100),
          "validation_robust": ("Under attack", "validation accuracy under PGD, %", 100)}  # fmt: skip


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, and a model card beside it; of an artifact the page alone; returns the page's path.

    folder: of the run, or an artifact. out: the page; None for RUN/report.html, or beside an artifact; a stream gets
    the page alone. Raises RunError for a folder that is neither, one without an evaluation, results that cannot be
    read, or a path that cannot be written; ArtifactError for an artifact that is damaged.
    """
    alone = is_artifact(folder)
    path = out or (place_of(folder) if alone else folder / PAGE)

    def texts() -> dict[Path, str]:
        run = collect_artifact(folder) if alone else collect(folder)
        if alone:
            return {path: artifact_page(run)}
        return {path: page(run)} | ({} if is_stream(path) else {path.with_name(CARD): card(run)})

    return write_pages(path, [folder], texts)


def write_pages(path: Path, folders: Sequence[Path], texts: Callable[[], Mapping[Path, str]]) -> Path:
    """Write what is made of these folders, nothing before all is made; returns `path`, which is to be a page or a
    stream. Raises RunError as `write`.
    """
    if path.suffix != ".html" and not is_stream(path):
        raise RunError(f"expected a file that ends in .html for --out, got {path}")
    try:
        made = texts()
    except BROKEN as error:  # by whoever cut or edited a file
        raise RunError(f"expected whole results in {listed([str(folder) for folder in folders])}, got some that lack "
                       f"or break {error}; remove those, and qrobust run makes them anew") from error  # fmt: skip
    for file, text in made.items():
        write_text(file, text.encode(errors="replace").decode())  # half a surrogate pair
    return path


def page(run: Collected) -> str:
    """The whole page as HTML. Raises KeyError, TypeError and their like for results that are not whole."""
    return _of_run(
        "page.html.j2",
        run,
        escaped=True,
        parts=[(width, parts(width)) for width in run.widths],
        costs=_costs(run),
        curves=_curves(run.widths),
        figures=figures(run.analysis),
        classes=[(width, classes(width)) for width in run.evaluated],
        most_classes=MOST_CLASSES,
        **_panels(cards(run)),
        layers=[(width, layers(width)) for width in run.evaluated],
        parity=parity,
    )


def artifact_page(run: Collected) -> str:
    """The page of an artifact that stands alone as HTML. Raises as `page`."""
    (width,) = run.widths
    return _of_run("artifact.html.j2", run, escaped=True, width=width, parity=parity(width))


def card(run: Collected) -> str:
    """The card of a run as Markdown with YAML in front; the license is left to the user."""
    return _of_run("card.md.j2", run, escaped=False, quoted=quoted, number=float, plain=plain)


def plain(text: object) -> str:
    """Text that is no Markdown and stays in its cell of a table: on one line, marks of Markdown and HTML escaped."""
    line = printable(" ".join(str(text).split()))
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~" else letter for letter in line)


def tight(text: str) -> str:
    """Text that is not broken between a number and what belongs to it."""
    return text.replace(" %", "\xa0%").replace("n = ", "n\xa0=\xa0")


def quoted(text: object) -> str:
    """A YAML string, which a JSON string is where no letter needs two escapes."""
    return printable(json.dumps(str(text), ensure_ascii=False))


def _of_run(name: str, run: Collected, *, escaped: bool, **more: Any) -> str:
    """A template of this folder, filled with what page and card share."""
    accuracies = [(width, rows(width)) for width in run.widths]  # a width cannot be hashed
    verdicts = cards(run)
    shared = {
        "run": run,
        "headline": summary([one.headline for one in verdicts]),
        "legend": LEGEND,
        "tight": tight,
        "last_step": lambda name: LAST_STEP if is_last_step(name) else "",
        "images": unplaced(run.recipe.data.name),
        "threat": threat_text(run.recipe.threat.model_dump()),
        "cards": verdicts,
        "columns": columns([row for _, part in accuracies for row in part]),
        "accuracies": accuracies,
        "flags": flags(run),
        "settings": settings,
    }
    return rendered(name, escaped=escaped, **shared, **more)


def rendered(name: str, *, escaped: bool, **values: Any) -> str:
    """A template of this folder, filled. escaped: whether values are made safe for HTML. Raises KeyError for a value
    that is missing.
    """
    from jinja2 import UndefinedError

    try:
        return _environment(escaped).get_template(name).render(version=__version__, **values).strip() + "\n"
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


def _panels(verdicts: Sequence[Card]) -> dict[str, Any]:
    """A small multiple a width, a line for all images that a place has seen; none of widths that saw no attack."""
    counts = sorted({row.n for card in verdicts for row in card.places}, reverse=True)
    drawn = [
        panel(f"places-{card.width.bits}", card.width.label, PLACES, {
            counts.index(row.n): line(f"{row.n} images", row) for row in card.places})
        for card in verdicts if card.places
    ]  # fmt: skip
    return {"panels": drawn, "panel_keys": key_of([f"{n} images" for n in counts])}


def line(label: str, row: Place) -> Line:
    """Worst cases in percent over the places where they were measured."""
    found = [(at, number) for at, number in enumerate(row.numbers) if number is not None]
    return Line(
        label,
        [float(at) for at, _ in found],
        [100 * number.accuracy for _, number in found],
        [(100 * number.ci95[0], 100 * number.ci95[1]) for _, number in found],
    )


def key_of(labels: Sequence[str]) -> list[tuple[str, str, str]]:
    """Of a legend: class of the colour, mark, label."""
    return [(SHADES[at % len(SHADES)][0], MARKS[at % len(MARKS)], label) for at, label in enumerate(labels)]


def _costs(run: Collected) -> list[Chart]:
    """The lowest accuracy of any place against latency (smallest batch, first thread count) and against size."""
    first = _timed(run.bench) if run.bench else []
    found = [(card.width, card.headline.number) for card in cards(run)]
    pairs = [(row, width, number) for row in first for width, number in found if number and width.bits == row["bits"]]
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


def _cost(title: str, label: str, key: str, factor: float, pairs: Sequence[tuple[Record, Width, Number]]) -> Chart:
    points = []
    for row, width, number in pairs:
        low, high = number.ci95
        points.append(Line(width.label, [row[key] * factor], [100 * number.accuracy], [(100 * low, 100 * high)]))
    name = f"cost-{key.partition('_')[0]}"
    return chart(name, title, label, "under attack, lowest of any place, %", points, scattered=True)


def _curves(widths: Sequence[Width]) -> list[Chart]:
    """Loss and accuracies over epochs, a line a network; those that no training logged are left out."""
    drawn = []
    for key, (title, label, factor) in CURVES.items():
        lines = []
        for width in widths:
            records = [record for record in width.epochs if key in record]
            if records:
                ys = [factor * float(record[key]) for record in records]
                lines.append(Line(width.label, [float(record["epoch"]) for record in records], ys))
        if lines:
            drawn.append(chart(f"curve-{key.replace('_', '-')}", title, "epoch", label, lines))
    return drawn
