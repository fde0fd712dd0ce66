"""Both files of a report, each written whole."""

from __future__ import annotations

from pathlib import Path

from ..errors import RunError
from ..storage import write_text

PAGE, CARD = "report.html", "model-card.md"


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, and a model card beside it; returns the page's path.

    folder: of the run. out: the page; None for RUN/report.html. Raises RunError for a folder that is no run, one
    without an evaluation, results that cannot be read, or a place that cannot be written.
    """
    from .card import card
    from .collect import collect
    from .page import page

    place = out or folder / PAGE
    if place.suffix != ".html":
        raise RunError(f"expected a file that ends in .html for --out, got {place}")
    run = collect(folder)
    try:
        texts = {place: page(run), place.with_name(CARD): card(run)}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:  # a file that was cut or edited
        raise RunError(f"expected whole results in {folder}, got some that lack or break {error}; "
                       "remove them and continue it by qrobust run RECIPE") from error  # fmt: skip
    for path, text in texts.items():
        write_text(path, text)
    return place
