"""Maps over frequencies, the zero frequency at the centre."""

from __future__ import annotations

import math
from typing import Any

from .style import Data, caption, colour_bar, panels

FLOOR = 1e-6  # magnitudes below count as this
SIZE = {"width": 3.1, "height": 2.7}  # of a map, inches


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
    told = (
        f"Mean magnitude of the spectra of {data['settings']['attacks'][0]}'s perturbations δ; axes: periods per image;"
    )
    caption(figure, data, f"{told} the central half has half of each side.")
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
    told = "Error rate on x + r·v·U, U the wave at a frequency (axes: periods per image), r = ±1,"
    caption(figure, data, f"{told} v = {norms} in each channel.")
    return figure


def _map(panel: Any, values: list[list[float]], **options: Any) -> Any:
    """A centred spectrum (h, w) over frequencies."""
    height, width = len(values), len(values[0])
    top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    panel.grid(visible=False)
    panel.set(xticks=[-(width // 2), 0, (width - 1) // 2], yticks=[-(height // 2), 0, (height - 1) // 2])
    return panel.imshow(values, extent=(left, left + width, top + height, top), **options)
