"""Two results on the same images, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError
from .outcomes import CLEAN, Mask, read_outcomes
from .statistics import mcnemar


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Paired difference of two saved results, per attack that both have, and of their worst cases.

    Returns {"n", "sets": {NAME: {"first", "second", "difference", "p_value", "gained", "lost"}}}: accuracies as
    shares, the exact McNemar p-value, and the positions of images that only the second, only the first gets
    right. "worst_case" is over the bounded attacks that both have. Raises RunError for other images or threats.
    """
    (a, masks_a), (b, masks_b) = read_outcomes(first), read_outcomes(second)
    for key in ("images", "threat"):
        if a.get(key) != b.get(key):
            raise RunError(
                f"expected results on the same {key}, got {first} and {second} on different ones; "
                "evaluate both anew on the same data, threat, -n and --seed"
            )
    shared = [name for name in masks_a if name in masks_b]
    bounded = [CLEAN, *(name for name in shared if name != CLEAN and a["attacks"][name]["bounded"])]
    sets = {name: _paired(masks_a[name], masks_b[name]) for name in shared}
    worst = [np.logical_and.reduce([masks[name] for name in bounded]) for masks in (masks_a, masks_b)]
    return {"n": a["n"], "sets": {**sets, "worst_case": _paired(*worst)}}


def _paired(first: Mask, second: Mask) -> dict[str, Any]:
    gained, lost = np.flatnonzero(second & ~first), np.flatnonzero(first & ~second)
    return {
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": float(second.mean() - first.mean()),
        "p_value": mcnemar(len(lost), len(gained)),
        "gained": gained.tolist(),
        "lost": lost.tolist(),
    }
