"""Pictures: filtered images, perturbations with their spectra."""

from __future__ import annotations

from typing import Any

from ..pixels import Pixels, unpack
from .style import GREY, Data, caption, page, picture

SIDE = 1.15  # of a picture, inches


def filtered(data: Data) -> Any:
    """A row a filter, a column an image."""
    result = data["cases"][0]["result"]
    rows, classes = result["rows"], result["classes"]
    figure = page("What filters leave of images", 1.6 + SIDE * len(classes), 1.4 + SIDE * len(rows))
    grid = figure.subplots(len(rows), len(classes), squeeze=False)
    for row, line in zip(rows, grid, strict=True):
        for image, panel in zip(unpack(row["pixels"]), line, strict=True):
            _show(panel, image)
        _name_row(line[0], row["title"])
    for panel, name in zip(grid[0], classes, strict=True):
        panel.set_title(name, fontsize=9.5)
    told = f"{result['shown']} test images of {data['data']}. LPF and HPF keep the k × k lowest and highest frequencies"
    caption(figure, data, f"{told}; what HPF leaves is stretched around grey.", images=False)
    return figure


def perturbations(data: Data) -> Any:
    """Two rows an image, pictures above spectra; x, then x + δ and δ of each case."""
    cases, first = data["cases"], data["cases"][0]["result"]
    shown, columns = first["shown"], 1 + 2 * len(cases)
    figure = page("What an attack adds", 2.4 + SIDE * columns, 1.9 + 2 * SIDE * shown)
    grid = figure.subplots(2 * shown, columns, squeeze=False)
    scales = {name: _range(cases, name) for name in ("clean", "perturbation")}
    drawn: dict[str, Any] = {}
    for row in range(shown):
        top, below = grid[2 * row], grid[2 * row + 1]
        drawn["clean"] = _pair(first, "clean", row, (top[0], below[0]), scales["clean"])
        _name_row(top[0], first["classes"][row])
        _name_row(below[0], "spectrum")
        for index, case in enumerate(cases):
            places = [(top[at], below[at]) for at in (1 + 2 * index, 2 + 2 * index)]
            _pair(case["result"], "adversarial", row, places[0], scales["clean"])
            drawn["perturbation"] = _pair(case["result"], "perturbation", row, places[1], scales["perturbation"])
            places[0][0].set_title("holds" if case["result"]["right"][row] else "fooled", fontsize=9, color=GREY, pad=2)
    _head(grid[0], cases)
    for name, rows in (("clean", grid[:shown]), ("perturbation", grid[shown:])):
        told = "log₁₀ magnitude, " + ("images" if name == "clean" else "δ")
        figure.colorbar(drawn[name], ax=list(rows.flat), label=told, shrink=0.9, pad=0.01, aspect=18)
    told = (
        f"{shown} of {data['n']} test images of {data['data']}, {data['settings']['attacks'][0]}, seed {data['seed']}."
    )
    caption(figure, data, f"{told} δ is stretched to its greatest value; zero frequency at the centre.", images=False)
    return figure


def _pair(result: Data, name: str, row: int, places: tuple[Any, Any], scale: tuple[float, float]) -> Any:
    _show(places[0], unpack(result["pixels"]["clean" if name == "clean" else name])[row])
    low, high = scale
    return picture(places[1], result["spectra"][name][row], cmap="magma", vmin=low, vmax=high)


def _head(line: Any, cases: Any) -> None:
    line[0].set_title("x", fontsize=9.5)
    for index, case in enumerate(cases):
        for at, name in ((1 + 2 * index, "x + δ"), (2 + 2 * index, "δ")):
            held = line[at].get_title()
            line[at].set_title(f"{case['label']}\n{name}" + (f": {held}" if held else ""), fontsize=9.5, color="black")


def _range(cases: Any, name: str) -> tuple[float, float]:
    """Of log magnitudes, without the least tenth, which is noise."""
    values = sorted(x for case in cases for image in case["result"]["spectra"][name] for line in image for x in line)
    return values[len(values) // 10], values[-1]


def _show(panel: Any, image: Pixels) -> None:
    """One image (h, w, c) of one or three channels."""
    picture(panel, image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _name_row(panel: Any, text: str) -> None:
    panel.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9.5)
