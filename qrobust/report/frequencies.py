"""Figures of `qrobust analyze`, drawn anew from their data, with title and caption as text beside them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..storage import read_json

MOST_BYTES = 3_000_000  # of all figures together, as they stand in the page
MOST_SVG = 150_000  # of one; a larger one is drawn in pixels
PIXELS_PER_INCH = 80
DPI = 110


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
    """One for every data file, in the order in which they are measured; what would make the page too large is left
    out.
    """
    from ..analyze import NAMES

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
    from ..analyze import draw

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
    kind, data = "svg+xml", _saved(drawn, "svg", metadata={"Date": None})
    if len(data) > MOST_SVG:
        kind, data = "png", _saved(drawn, "png", dpi=DPI)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _saved(drawn: Any, suffix: str, **options: Any) -> bytes:
    from matplotlib import rc_context

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "qrobust"}):  # the same data, the same bytes
        drawn.savefig(buffer, format=suffix, **options)
    return buffer.getvalue()
