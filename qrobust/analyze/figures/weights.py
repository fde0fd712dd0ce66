"""What is seen in weights: kernels, their spectra, masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...bench.plot import COLOURS
from .style import GREY, Data, caption, colour_bar, legend, page, panels, picture


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
    told = "A column a kernel, a row an input channel; blue below zero, red above, each network on its own scale."
    caption(figure, data, told, images=False)
    return figure


def inner_kernels(data: Data) -> Any:
    """The cases beside each other: filters downwards, inputs to the right."""
    cases = data["cases"]
    figure, drawn = panels("Kernels of the first inner convolution", len(cases), width=3.4, height=3.2)
    for panel, case in zip(drawn, cases, strict=True):
        _diverging(panel, _tiled(np.array(case["result"]["weight"])))
        panel.set_title(_title(case))
    told = "As they convolve, quantised and behind FAT: a row a filter, a column an input channel; blue below zero, red"
    caption(figure, data, f"{told} above, each network on its own scale.", images=False)
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
    told = "Magnitudes of the DFT of each filter, reshaped to one line (inputs × height × width)."
    caption(figure, data, told, images=False)
    return figure


def masks(data: Data) -> Any:
    """Quantiles by layer, cases beside each other."""
    # Places among all cases give each its colour, here as in other figures.
    cases = [(at, case) for at, case in enumerate(data["cases"]) if case["result"] is not None]
    names = list(dict.fromkeys(layer["name"] for _, case in cases for layer in case["result"]["layers"]))
    figure, (panel,) = panels("Masks on the spectra of weights", 1, width=max(7.0, 0.75 * len(names)), height=3.6)
    panel.axhline(1, color=GREY, linewidth=1, linestyle="--")
    for index, (at, case) in enumerate(cases):
        shift, colour = 0.7 * ((index + 0.5) / len(cases) - 0.5), COLOURS[at % len(COLOURS)]
        for layer in case["result"]["layers"]:
            _box(panel, names.index(layer["name"]) + shift, layer["quantiles"], colour)
        panel.plot([], [], color=colour, linewidth=5, label=case["label"])
    panel.set(ylabel="mask", xlim=(-0.6, len(names) - 0.4))
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9)
    panel.grid(visible=False, axis="x")
    legend(panel)
    told = (
        "Of all frequencies of all filters: thin line least to greatest, thick 5 to 95 %, bar the middle half, tick the"
    )
    caption(figure, data, f"{told} median. 1 leaves a frequency as it is.", images=False)
    return figure


def _box(panel: Any, x: float, quantiles: list[float], colour: str) -> None:
    least, low, first, median, third, high, greatest = quantiles
    for bounds, width in (((least, greatest), 0.9), ((low, high), 2.4), ((first, third), 6.5)):
        panel.plot([x, x], bounds, color=colour, linewidth=width, solid_capstyle="butt", alpha=0.9)
    panel.plot([x], [median], marker="_", color="white", markersize=6, markeredgewidth=1.6)


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
