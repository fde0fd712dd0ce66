"""Accuracy over bandwidths."""

from __future__ import annotations

from typing import Any

from .style import GREY, MOST_COLUMNS, Data, caption, curve, legend, look, panels

MOST_TICKS = 8
BANDS = {"low": "LPF of δ", "high": "HPF of δ"}


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
    told = "Accuracy on images of which the central k × k frequencies are kept; bands: 95 % intervals."
    caption(figure, data, told + " Attacks do not know the filter; * not bounded by eps.")
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
    told = (
        f"Accuracy on x + F(δ), F keeping the k × k lowest or highest frequencies of {data['settings']['attacks'][0]}"
    )
    caption(figure, data, f"{told}'s perturbation δ; bands: 95 % intervals.")
    return figure


def _axes(panel: Any, data: Data) -> None:
    bandwidths = sorted({k for case in data["cases"] for k in case["result"]["bandwidths"]})
    panel.set(ylim=(0, 102), xticks=bandwidths[:: -max(1, -(-len(bandwidths) // MOST_TICKS))])


def _labels(drawn: list[Any], x: str) -> None:
    for panel in drawn:
        panel.set_xlabel(x)
    for panel in drawn[::MOST_COLUMNS]:
        panel.set_ylabel("accuracy, %")
