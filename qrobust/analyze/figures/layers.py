"""What layers hand on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...bench.plot import COLOURS
from .style import Data, caption, colour_bar, look, panels


def frequency_ratio(data: Data) -> Any:
    """Over epochs where that was logged, and over the test images."""
    cases = data["cases"]
    logged = any(case["result"]["epochs"] for case in cases)
    height = 3.4 if logged else 0.8 + 0.45 * len(cases)
    figure, drawn = panels("Low against high frequencies in the first activation", 1 + logged, width=4.2, height=height)
    for index, case in enumerate(cases):
        if case["result"]["epochs"]:
            drawn[0].plot(*zip(*case["result"]["epochs"], strict=True), label=case["label"], **look(index))
        _spread(drawn[-1], index, case["result"]["quantiles"])
    drawn[-1].set(xlabel="R after training, by test image", ylim=(len(cases) - 0.5, -0.5))
    drawn[-1].set_xlim(left=0)
    drawn[-1].set_yticks(range(len(cases)), [case["label"] for case in cases])
    drawn[-1].grid(visible=False, axis="y")
    if logged:
        drawn[0].set(xlabel="epoch", ylabel="R, first batch of training images")
        drawn[0].set_ylim(bottom=0)
        drawn[0].xaxis.get_major_locator().set_params(integer=True)
    told = (
        "R: norm of each channel's mean over that of what is left. Lines: 5 to 95 % of images, bars: the middle half."
    )
    caption(figure, data, told)
    return figure


def _spread(panel: Any, place: int, quantiles: list[float]) -> None:
    low, first, median, third, high = quantiles
    colour = COLOURS[place % len(COLOURS)]
    panel.plot([low, high], [place, place], color=colour, linewidth=1.4)
    panel.plot([first, third], [place, place], color=colour, linewidth=7, solid_capstyle="butt")
    panel.plot([median], [place], marker="|", color="white", markersize=8, markeredgewidth=1.6)


def similarity(data: Data) -> Any:
    """A map a case: each layer against each."""
    told = f"Linear CKA between layers on {data['settings']['attacks'][0]} images, unbiased, over minibatches."
    return _maps(data, "How alike a network's layers see an image", told, "layer")


def similarity_to_float(data: Data) -> Any:
    """A map a quantised case."""
    told = f"Linear CKA between layers, both on the quantised network's {data['settings']['attacks'][0]} images."
    return _maps(data, "Quantised against float", told, "layer of the float network")


def similarity_to_artifact(data: Data) -> Any:
    """A map a case that was exported."""
    told = (
        f"Linear CKA between layers on {data['settings']['attacks'][0]} images of 8 bits; the artifact is computed by"
    )
    return _maps(data, "Torch against the artifact", f"{told} torch from its graph.", "layer of the artifact")


def _maps(data: Data, title: str, told: str, other: str) -> Any:
    cases = [case for case in data["cases"] if case["result"] is not None]
    figure, drawn = panels(title, len(cases), width=3.1, height=2.7)
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
    caption(figure, data, told)
    return figure


def _mean(values: Any, itself: bool) -> str:
    """Of one network, the mean between different layers; of two with as many layers, that of the same."""
    if itself:
        count = len(values)
        return f"mean {(values.sum() - values.trace()) / max(1, count * (count - 1)):.2f}"
    if values.shape[0] == values.shape[1]:
        return f"same layer {values.diagonal().mean():.2f}"
    return f"mean {values.mean():.2f}"
