"""The tables of what quantisation without training is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from markdown_tables import NOT_YET, probability, table
from scipy.stats import spearmanr

from qrobust.evaluation import mcnemar
from qrobust.tables import percent

Result = dict[str, Any]
HEADS = ("clean", "strong:quick", "strong", "`strong` against it, points", "p (McNemar)", "flips", "minutes")


def without_training(result: Result) -> Iterator[str]:
    """Quantised without training, beside training and float; by numbers of images; bits by layer; what sensitivities
    say.
    """
    units = result["units"]
    grid, counts, allocated = [], [], []
    for key in units:
        _, name, *rest = key.split("/")
        grid += [] if len(rest) > 2 or name.startswith(("allocated", "uniform")) else [key]
        counts += [key] if rest[1:2] == ["both"] and rest[0] == "mse" else []
        allocated += [key] if name.startswith(("allocated", "uniform")) else []
    yield table(("against the float network", *HEADS), [_without_training(units, key) for key in grid])
    yield table(
        ("calibration images", *HEADS),
        [
            _without_training(units, key, f"{key.removesuffix('/512')}, {units[key]['images']} images")
            for key in sorted(counts, key=lambda key: (key.split("/")[:2], units[key]["images"]))
        ],
    )
    heads = ("kB", *HEADS)
    rows = [_without_training(units, key, key, f"{units[key]['size_bytes'] / 1e3:.1f}") for key in allocated]
    yield table(("allocated against uniform, uniform against float", *heads), rows) if rows else NOT_YET
    ranks = [(name, *ranked) for name, found in result["sensitivities"].items() for ranked in _ranks(found)]
    heads = ("bits of one layer", "layers", "Spearman's rho", "p")
    yield table(("sensitivity by margin and by clean accuracy", *heads), ranks) if ranks else NOT_YET


def _without_training(units: Result, key: str, name: str = "", *more: str) -> list[str]:
    """A row; nothing stands for what is not measured."""
    unit, base = units[key], units.get(f"{key.partition('/')[0]}/{units[key]['against']}", {})
    n, attack = unit["n"], "strong"
    masks = {one: _unpacked(unit["right"][one], n) for one in unit["right"]}
    cells = [percent(float(masks[one].mean())) if one in masks else "" for one in ("clean", "strong:quick", attack)]
    shown = "", ""
    if attack in masks and attack in base.get("right", {}) and base is not unit:
        first = _unpacked(base["right"][attack], n)
        lost, gained = int((first & ~masks[attack]).sum()), int((masks[attack] & ~first).sum())
        shown = f"{100 * (gained - lost) / n:+.1f}", probability(mcnemar(lost, gained))
    minutes = "" if unit["minutes"] is None else f"{unit['minutes']:.2f}" + " of training" * bool(unit.get("trained"))
    return [name or key, *more, *cells, *shown, str(unit["flips"]), minutes]


def _unpacked(mask: str, n: int) -> np.ndarray[Any, Any]:
    return np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=n).astype(bool)


def _ranks(found: Sequence[Sequence[Any]]) -> Iterator[tuple[str, ...]]:
    """By width, how alike both orders of layers are."""
    for bits in sorted({one[1] for one in found}):
        pairs = [(margin, clean) for _, width, margin, clean in found if width == bits]
        if len({clean for _, clean in pairs}) < 2 or len(pairs) < 3:
            yield str(bits), str(len(pairs)), "none: clean accuracy is alike", ""
            continue
        rho = spearmanr(*zip(*pairs, strict=True))
        yield str(bits), str(len(pairs)), f"{rho.statistic:.2f}", probability(float(rho.pvalue))
