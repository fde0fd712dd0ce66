"""Curves and points: accuracy over bandwidths and settings, ratios and masks by their quantiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..bench.plot import COLOURS
from .style import GREY, MOST_COLUMNS, Data, caption, curve, legend, look, panels

MOST_TICKS = 8
BANDS = {"low": "LPF of δ", "high": "HPF of δ"}
ABLATION_WIDTH = 7.0  # inches


def low_pass(data: Data) -> Any:
    """A panel for clean images and for each attack, a line a case."""
    names = list(data["cases"][0]["result"]["curves"])
    figure, drawn = panels("Accuracy behind a low-pass filter", len(names), sharey=True)
    for panel, name in zip(drawn, names, strict=True):
        for index, case in enumerate(data["cases"]):
            result = case["result"]
            curve(panel, result["bandwidths"], result["curves"][name], case["label"], look(index))
        free = not data["cases"][0]["result"]["curves"][name].get("bounded", True)
        panel.set(title="clean images" if name == "clean" else f"under {name}" + (" *" if free else ""))
        _axes(panel, data)
    _labels(drawn, "bandwidth k of the filter")
    legend(drawn[min(len(drawn), MOST_COLUMNS) - 1])
    text = "Accuracy on images of which the central k × k frequencies are kept; bands: 95 % intervals."
    caption(figure, data, text + " Attacks do not know the filter; * not bounded by eps.")
    return figure


def aggressiveness(data: Data) -> Any:
    """A panel a case, a line a filter."""
    figure, drawn = panels("Which frequencies of a perturbation do harm", len(data["cases"]), sharey=True)
    for panel, case in zip(drawn, data["cases"], strict=True):
        result = case["result"]
        panel.axhline(100 * result["clean"], color=GREY, linestyle="--", linewidth=1.2, label="without δ")
        for index, (band, label) in enumerate(BANDS.items()):
            curve(panel, result["bandwidths"], result["curves"][band], label, look(index))
        panel.set(title=case["label"])
        _axes(panel, data)
    _labels(drawn, "bandwidth k that is kept of δ")
    legend(drawn[min(len(drawn), MOST_COLUMNS) - 1])
    text = (
        f"Accuracy on x + F(δ), F keeping the k × k lowest or highest frequencies of {data['settings']['attacks'][0]}"
    )
    caption(figure, data, f"{text}'s perturbation δ; bands: 95 % intervals.")
    return figure


def _axes(panel: Any, data: Data) -> None:
    bandwidths = sorted({k for case in data["cases"] for k in case["result"]["bandwidths"]})
    panel.set(ylim=(0, 102), xticks=bandwidths[:: -max(1, -(-len(bandwidths) // MOST_TICKS))])


def _labels(drawn: list[Any], x: str) -> None:
    for panel in drawn:
        panel.set_xlabel(x)
    for panel in drawn[::MOST_COLUMNS]:
        panel.set_ylabel("accuracy, %")


def ablation(data: Data) -> Any:
    """A line an attack over a setting that is a number; else points by its value, or by label."""
    cases = data["cases"]
    key, values = _setting(cases)
    figure, (panel,) = panels("What a setting costs and gives", 1, width=ABLATION_WIDTH)
    number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values) and key != "bits"
    names = list(dict.fromkeys(str(value) for value in values))
    xs = values if number else [names.index(str(value)) for value in values]
    order = sorted(range(len(cases)), key=lambda index: xs[index])
    shared = [name for name in cases[0]["result"]["accuracy"] if all(name in c["result"]["accuracy"] for c in cases)]
    for index, name in enumerate(shared):
        found = [cases[at]["result"]["accuracy"][name] for at in order]
        shift = 0 if number else 0.06 * (index - (len(shared) - 1) / 2)
        _points(panel, [xs[at] + shift for at in order], found, name, index, number)
    panel.set(ylabel="accuracy, %", xlabel=key or "network", ylim=(0, 102))
    if not number:
        panel.set_xticks(range(len(names)), names, rotation=0 if len(names) < 6 else 25)
    legend(panel)
    counts = " / ".join(dict.fromkeys(str(case["result"]["n"]) for case in cases))
    caption(figure, data, f"Accuracy on n = {counts} test images; bars: 95 % intervals.", images=False)
    return figure


def _points(panel: Any, x: Sequence[float], found: Sequence[Data], name: str, index: int, joined: bool) -> None:
    shares = [100 * one["accuracy"] for one in found]
    bounds = [
        (share - 100 * one["ci95"][0], 100 * one["ci95"][1] - share) for share, one in zip(shares, found, strict=True)
    ]
    bars = [[max(0, bound[side]) for bound in bounds] for side in (0, 1)]
    style = {"linestyle": "-" if joined else "none", "capsize": 3, "elinewidth": 1.2}
    panel.errorbar(x, shares, yerr=bars, label=name, **style, **look(index))


def _setting(cases: Sequence[Data]) -> tuple[str, list[Any]]:
    """The one setting that differs, with its value by case; where none or several do, labels.

    Where a recipe lacks it, a weight is 0 and all else "none". Seeds do not count: they are repetitions.
    """
    tables = [case["result"]["settings"] for case in cases]
    keys = dict.fromkeys(key for table in tables for key in table if key != "seed")
    differing = [key for key in keys if len({str(table[key]) for table in tables if key in table}) > 1]
    if len(differing) != 1:
        return "", [case["label"] for case in cases]
    absent = 0.0 if differing[0].endswith("weight") else "none"
    return differing[0], [table.get(differing[0], absent) for table in tables]


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
    text = (
        "R: norm of each channel's mean over that of what is left. Lines: 5 to 95 % of images, bars: the middle half."
    )
    caption(figure, data, text)
    return figure


def _spread(panel: Any, y: int, quantiles: list[float]) -> None:
    low, first, median, third, high = quantiles
    colour = COLOURS[y % len(COLOURS)]
    panel.plot([low, high], [y, y], color=colour, linewidth=1.4)
    panel.plot([first, third], [y, y], color=colour, linewidth=7, solid_capstyle="butt")
    panel.plot([median], [y], marker="|", color="white", markersize=8, markeredgewidth=1.6)


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
    text = (
        "Of all frequencies of all filters: thin line least to greatest, thick 5 to 95 %, bar the middle half, tick the"
    )
    caption(figure, data, f"{text} median. 1 leaves a frequency as it is.", images=False)
    return figure


def _box(panel: Any, x: float, quantiles: list[float], colour: str) -> None:
    least, low, first, median, third, high, greatest = quantiles
    for bounds, width in (((least, greatest), 0.9), ((low, high), 2.4), ((first, third), 6.5)):
        panel.plot([x, x], bounds, color=colour, linewidth=width, solid_capstyle="butt", alpha=0.9)
    panel.plot([x], [median], marker="_", color="white", markersize=6, markeredgewidth=1.6)
