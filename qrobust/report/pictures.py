"""Figures of `qrobust analyze` as the page shows them, light or dark, and images of a suite."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..analysis import NAMES, draw
from ..analysis.style import COLOURS as SERIES
from ..analysis.style import GREY, LIGHT
from ..errors import RunError
from ..runtime import Artifact
from ..storage import read_json
from .charts import COLOURS, inlined, svg_of

Pixels = npt.NDArray[np.uint8]

# Of figures.
MOST_BYTES = 3_000_000  # of all together, as they stand in the page
MOST_SVG = 150_000  # of one; a larger one is drawn in pixels, once light and once dark
INK = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
# What figures are drawn in beside that, as variables of style.css.
VARIABLES = {GREY: "soft", LIGHT: "grid", "#ffffff": "page"} | {
    colour.lower(): f"s{index}" for index, colour in enumerate(SERIES[:-1])} | {SERIES[-1]: "ink"}  # fmt: skip
PIXELS = {"source": ("#1a1f24", "#ffffff"), "dark": ("#e4eaf0", "#182028")}  # ink and ground
PIXELS_PER_INCH = 80
DPI = 110

MOST, MOST_SIDE = 4, 96  # examples of a network; pixels of a side, larger images are scaled down


@dataclass(frozen=True)
class Figure:
    """svg: to be set into the page as it is. Where it would be too large, source and dark: data URIs for a light and a
    dark page. All "" for one that is left out, for which caption then says why.
    """

    name: str
    title: str
    caption: str
    svg: str = ""
    source: str = ""
    dark: str = ""
    width: int = 0
    height: int = 0

    @property
    def size(self) -> int:
        """Letters of it in the page."""
        return len(self.svg) + len(self.source) + len(self.dark)


def figures(paths: Sequence[Path]) -> list[Figure]:
    """Figures drawn anew from their data, title and caption as text beside them, in the order in which they are
    measured; what would make the page too large is left out.
    """
    order = {name: index for index, name in enumerate(NAMES)}
    found, left = [], MOST_BYTES
    for path in sorted(paths, key=lambda path: order.get(path.stem, len(order))):
        figure = _figure(path)
        if figure.size > left:
            figure = Figure(figure.name, figure.title, f"Left out of this page for its size; see {path.name} beside.")
        left -= figure.size
        found.append(figure)
    return found


def _figure(path: Path) -> Figure:
    try:
        data = read_json(path)
        title, caption, drawn = _drawn(data, COLOURS["ink"], "none", {"svg.fonttype": "none"})
    except RunError as error:
        return Figure(path.stem, path.stem, f"Could not be drawn: {error}")
    size = tuple(round(inches * PIXELS_PER_INCH) for inches in drawn.get_size_inches())
    svg = _inlined(drawn, path.stem, title, caption)
    if len(svg) <= MOST_SVG:
        return Figure(path.stem, title, caption, svg, width=size[0], height=size[1])
    return Figure(path.stem, title, caption, **_pixels(data), width=size[0], height=size[1])


def _drawn(data: Any, ink: str, ground: str, more: dict[Any, Any]) -> tuple[str, str, Any]:
    """Title and caption, which the page sets as text, and the figure without them."""
    from matplotlib import rc_context

    faces = dict.fromkeys(("figure.facecolor", "axes.facecolor"), ground)
    with rc_context(dict.fromkeys(INK, ink) | faces | more):
        drawn = draw(data)
    title, caption = drawn.get_suptitle(), " ".join(drawn.get_supxlabel().split())
    drawn.suptitle("")
    drawn.supxlabel("")
    return title, caption, drawn


def _inlined(drawn: Any, name: str, title: str, caption: str) -> str:
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False}):
        svg = svg_of(drawn)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    points = tuple(round(72 * inches) for inches in drawn.get_size_inches())
    return inlined(svg, "figure-" + re.sub(r"[^\w-]", "-", name), title, caption, (points[0], points[1]), "figure")


def _pixels(data: Any) -> dict[str, str]:
    return {key: _uri("png", _png(_drawn(data, *colours, {})[2])) for key, colours in PIXELS.items()}


def _png(drawn: Any) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=DPI)
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
