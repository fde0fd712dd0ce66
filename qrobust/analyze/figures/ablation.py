"""Accuracy over the setting in which recipes differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .style import Data, caption, legend, look, panels

SIZE = 7.0  # inches


def ablation(data: Data) -> Any:
    """A line an attack over a setting that is a number; else points by its value, or by label."""
    cases = data["cases"]
    key, values = _setting(cases)
    figure, (panel,) = panels("What a setting costs and gives", 1, width=SIZE)
    number = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values) and key != "bits"
    names = list(dict.fromkeys(str(value) for value in values))
    places = values if number else [names.index(str(value)) for value in values]
    order = sorted(range(len(cases)), key=lambda index: places[index])
    shared = [name for name in cases[0]["result"]["accuracy"] if all(name in c["result"]["accuracy"] for c in cases)]
    for index, name in enumerate(shared):
        found = [cases[at]["result"]["accuracy"][name] for at in order]
        shift = 0 if number else 0.06 * (index - (len(shared) - 1) / 2)
        _points(panel, [places[at] + shift for at in order], found, name, index, number)
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
