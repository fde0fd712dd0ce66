"""Both files of a report, each written whole."""

from __future__ import annotations

from pathlib import Path

from ..errors import RunError
from ..storage import is_stream, write_text

PAGE, CARD = "report.html", "model-card.md"
BROKEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def write(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run, and a model card beside it; returns the page's path.

    folder: of the run. out: the page; None for RUN/report.html; a stream gets the page alone. Raises RunError for a
    folder that is no run, one without an evaluation, results that cannot be read, or a place that cannot be written.
    """
    from .card import card
    from .collect import collect
    from .page import page

    place = out or folder / PAGE
    if place.suffix != ".html" and not is_stream(place):
        raise RunError(f"expected a file that ends in .html for --out, got {place}")
    try:
        run = collect(folder)
        texts = {place: page(run)} | ({} if is_stream(place) else {place.with_name(CARD): card(run)})
    except BROKEN as error:  # by whoever cut or edited a file
        raise RunError(f"expected whole results in {folder}, got some that lack or break {error}; "
                       "remove those, and qrobust run makes them anew") from error  # fmt: skip
    for path, text in texts.items():
        write_text(path, text.encode(errors="replace").decode())  # half a surrogate pair
    return place
