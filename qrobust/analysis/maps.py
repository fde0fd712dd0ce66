"""Maps: images and what attacks add, spectra, kernels, likeness of layers; the zero frequency at the centre."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .encoding import Pixels, unpack
from .style import GREY, Data, caption, colour_bar, page, panels, picture

SIDE = 1.15  # of a picture, inches
FLOOR = 1e-6  # magnitudes below count as this
SIZE = {"width": 3.1, "height": 2.7}  # of a map, inches


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
    text = f"{result['shown']} test images of {data['data']}. LPF and HPF keep the k × k lowest and highest frequencies"
    caption(figure, data, f"{text}; what HPF leaves is stretched around grey.", images=False)
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
            pairs = [(top[at], below[at]) for at in (1 + 2 * index, 2 + 2 * index)]
            _pair(case["result"], "adversarial", row, pairs[0], scales["clean"])
            drawn["perturbation"] = _pair(case["result"], "perturbation", row, pairs[1], scales["perturbation"])
            pairs[0][0].set_title("holds" if case["result"]["right"][row] else "fooled", fontsize=9, color=GREY, pad=2)
    _head(grid[0], cases)
    for name, rows in (("clean", grid[:shown]), ("perturbation", grid[shown:])):
        text = "log₁₀ magnitude, " + ("images" if name == "clean" else "δ")
        figure.colorbar(drawn[name], ax=list(rows.flat), label=text, shrink=0.9, pad=0.01, aspect=18)
    text = (
        f"{shown} of {data['n']} test images of {data['data']}, {data['settings']['attacks'][0]}, seed {data['seed']}."
    )
    caption(figure, data, f"{text} δ is stretched to its greatest value; zero frequency at the centre.", images=False)
    return figure


def _pair(result: Data, name: str, row: int, axes: tuple[Any, Any], scale: tuple[float, float]) -> Any:
    _show(axes[0], unpack(result["pixels"]["clean" if name == "clean" else name])[row])
    low, high = scale
    return picture(axes[1], result["spectra"][name][row], cmap="magma", vmin=low, vmax=high)


def _head(line: Any, cases: Any) -> None:
    from matplotlib import rcParams

    line[0].set_title("x", fontsize=9.5)
    for index, case in enumerate(cases):
        for at, name in ((1 + 2 * index, "x + δ"), (2 + 2 * index, "δ")):
            answer = line[at].get_title()
            line[at].set_title(
                f"{case['label']}\n{name}" + (f": {answer}" if answer else ""),
                fontsize=9.5,
                color=rcParams["text.color"],
            )


def _range(cases: Any, name: str) -> tuple[float, float]:
    """Of log magnitudes, without the least tenth, which is noise."""
    values = sorted(x for case in cases for image in case["result"]["spectra"][name] for line in image for x in line)
    return values[len(values) // 10], values[-1]


def _show(panel: Any, image: Pixels) -> None:
    """One image (h, w, c) of one or three channels."""
    picture(panel, image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)


def _name_row(panel: Any, text: str) -> None:
    panel.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9.5)


def mean_spectrum(data: Data) -> Any:
    """A map a case, all on one logarithmic scale."""
    cases = data["cases"]
    maps = [[[math.log10(max(x, FLOOR)) for x in line] for line in case["result"]["spectrum"]] for case in cases]
    every = sorted(x for values in maps for line in values for x in line)
    low, high = every[len(every) // 100], every[-1]
    figure, drawn = panels("Where perturbations are, mean over images", len(cases), **SIZE)
    for panel, case, values in zip(drawn, cases, maps, strict=True):
        shown = _map(panel, values, cmap="magma", vmin=low, vmax=high)
        panel.set(title=case["label"])
        panel.set_xlabel(f"{100 * case['result']['central']:.0f} % in the central half")
    colour_bar(figure, shown, drawn, "log₁₀ mean magnitude of δ")
    text = (
        f"Mean magnitude of the spectra of {data['settings']['attacks'][0]}'s perturbations δ; axes: periods per image;"
    )
    caption(figure, data, f"{text} the central half has half of each side.")
    return figure


def heat_map(data: Data) -> Any:
    """A map a case, all on one scale."""
    cases = data["cases"]
    most = max(x for case in cases for line in case["result"]["error"] for x in line)
    figure, drawn = panels("How often one wave makes a network err", len(cases), **SIZE)
    for panel, case in zip(drawn, cases, strict=True):
        result = case["result"]
        percent = [[100 * x for x in line] for line in result["error"]]
        shown = _map(panel, percent, cmap="inferno", vmin=0, vmax=100 * most or 1)
        panel.set(title=case["label"])
        panel.set_xlabel(f"{100 * result['clean_error']:.1f} % without a wave")
    colour_bar(figure, shown, drawn, "error rate, %")
    norms = " / ".join(dict.fromkeys(f"{case['result']['norm']:.3g}" for case in cases))
    text = "Error rate on x + r·v·U, U the wave at a frequency (axes: periods per image), r = ±1,"
    caption(figure, data, f"{text} v = {norms} in each channel.")
    return figure


def _map(panel: Any, values: list[list[float]], **options: Any) -> Any:
    """A centred spectrum (h, w) over frequencies."""
    height, width = len(values), len(values[0])
    top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    panel.grid(visible=False)
    panel.set(xticks=[-(width // 2), 0, (width - 1) // 2], yticks=[-(height // 2), 0, (height - 1) // 2])
    return panel.imshow(values, extent=(left, left + width, top + height, top), **options)


def kernels(data: Data) -> Any:
    """The cases below each other: channels downwards, kernels to the right."""
    cases = data["cases"]
    tiles = [_tiled(np.array(case["result"]["weight"]).transpose(1, 0, 2, 3)) for case in cases]
    high, wide = tiles[0].shape
    figure = page("Kernels of the first convolution", 9.5, 1.4 + len(cases) * (0.35 + 8.2 * high / wide))
    drawn = figure.subplots(len(cases), 1, squeeze=False)[:, 0]
    for panel, case, tile in zip(drawn, cases, tiles, strict=True):
        _diverging(panel, tile)
        panel.set_title(_title(case), loc="left")
    text = "A column a kernel, a row an input channel; blue below zero, red above, each network on its own scale."
    caption(figure, data, text, images=False)
    return figure


def inner_kernels(data: Data) -> Any:
    """The cases beside each other: filters downwards, inputs to the right."""
    cases = data["cases"]
    figure, drawn = panels("Kernels of the first inner convolution", len(cases), width=3.4, height=3.2)
    for panel, case in zip(drawn, cases, strict=True):
        _diverging(panel, _tiled(np.array(case["result"]["weight"])))
        panel.set_title(_title(case))
    text = "As they convolve, quantised and behind FAT: a row a filter, a column an input channel; blue below zero, red"
    caption(figure, data, f"{text} above, each network on its own scale.", images=False)
    return figure


def kernel_spectra(data: Data) -> Any:
    """A row a layer, a column a case."""
    cases = data["cases"]
    count = len(cases[0]["result"]["layers"])
    figure = page("Spectra of kernels", 1.6 + 2.9 * len(cases), 1.3 + 2.3 * count)
    grid = figure.subplots(count, len(cases), squeeze=False)
    for column, case in zip(grid.T, cases, strict=True):
        for panel, layer in zip(column, case["result"]["layers"], strict=True):
            last = len(layer["spectrum"][0]) - 1
            shown = panel.imshow(layer["spectrum"], cmap="magma", vmin=0, vmax=1, aspect="auto")
            panel.grid(visible=False)
            panel.set(xticks=[0, last / 2, last], xticklabels=["low", "high", "low"], yticks=[])
            panel.set_title(f"{case['label']}: {layer['name']}", fontsize=10)
    for line in grid:
        line[0].set_ylabel("filters")
    colour_bar(figure, shown, list(grid.flat), "magnitude, share of the greatest")
    text = "Magnitudes of the DFT of each filter, reshaped to one line (inputs × height × width)."
    caption(figure, data, text, images=False)
    return figure


def _tiled(weight: Any) -> Any:
    """(rows, columns, kh, kw) → one picture with empty lines between the kernels."""
    rows, columns, high, wide = weight.shape
    tiled = np.full((rows * (high + 1) - 1, columns * (wide + 1) - 1), np.nan)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (high + 1), column * (wide + 1)
            tiled[top : top + high, left : left + wide] = weight[row, column]
    return tiled


def _diverging(panel: Any, tiled: Any) -> None:
    limit = float(np.nanmax(np.abs(tiled))) or 1.0
    picture(panel, tiled, cmap="RdBu_r", vmin=-limit, vmax=limit)


def _title(case: Data) -> str:
    result = case["result"]
    shown = len(result["weight"])
    return f"{case['label']}: {result['layer']}" + (
        "" if shown == result["filters"] else f", {shown} of {result['filters']}"
    )


def similarity(data: Data) -> Any:
    """A map a case: each layer against each."""
    text = f"Linear CKA between layers on {data['settings']['attacks'][0]} images, unbiased, over minibatches."
    return _maps(data, "How alike a network's layers see an image", text, "layer")


def similarity_to_float(data: Data) -> Any:
    """A map a quantised case."""
    text = f"Linear CKA between layers, both on the quantised network's {data['settings']['attacks'][0]} images."
    return _maps(data, "Quantised against float", text, "layer of the float network")


def similarity_to_artifact(data: Data) -> Any:
    """A map a case that was exported."""
    text = (
        f"Linear CKA between layers on {data['settings']['attacks'][0]} images of 8 bits; the artifact is computed by"
    )
    return _maps(data, "Torch against the artifact", f"{text} torch from its graph.", "layer of the artifact")


def _maps(data: Data, title: str, text: str, other: str) -> Any:
    cases = [case for case in data["cases"] if case["result"] is not None]
    figure, drawn = panels(title, len(cases), **SIZE)
    for panel, case in zip(drawn, cases, strict=True):
        values = np.array(case["result"]["cka"])
        shown = panel.imshow(values, cmap="viridis", vmin=0, vmax=1, origin="lower")
        panel.grid(visible=False)
        panel.set(title=f"{case['label']}: {_mean(values, other == 'layer')}", xlabel=other)
        for axis, count in ((panel.xaxis, values.shape[1]), (panel.yaxis, values.shape[0])):
            marks = sorted({0, (count - 1) // 2, count - 1})
            axis.set_ticks(marks, [str(mark + 1) for mark in marks])
    drawn[0].set_ylabel("layer")
    colour_bar(figure, shown, drawn, "CKA")
    caption(figure, data, text)
    return figure


def _mean(values: Any, itself: bool) -> str:
    """Of one network, the mean between different layers; of two with as many layers, that of the same."""
    if itself:
        count = len(values)
        return f"mean {(values.sum() - values.trace()) / max(1, count * (count - 1)):.2f}"
    if values.shape[0] == values.shape[1]:
        return f"same layer {values.diagonal().mean():.2f}"
    return f"mean {values.mean():.2f}"
