"""A few images of a suite with what an attack added to them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime import Artifact

Pixels = npt.NDArray[np.uint8]
MOST, MOST_SIDE = 4, 96  # examples of a network; pixels of a side, larger images are scaled down


@dataclass(frozen=True)
class Example:
    """Pictures as data URIs: clean, adversarial, and their difference, whose largest change is black or white.

    attack: whose image it is; names of classes: the true one, and the network's before and after the attack.
    """

    clean: str
    adversarial: str
    difference: str
    attack: str
    true: str
    before: str
    after: str


def examples(artifact: Artifact) -> tuple[Example, ...]:
    """Images under the stored attack that breaks most: of different classes first, broken ones before others."""
    attacks = [name for name in artifact.sets if name != "clean"]
    if not attacks:
        return ()
    attack = min(attacks, key=lambda name: float(artifact.manifest["reference"][name]))
    return tuple(_example(artifact, attack, index) for index in _chosen(artifact, attack))


def _chosen(artifact: Artifact, attack: str) -> list[int]:
    """Of images that are right when clean: the first broken one of each class, then the rest, in their order."""
    suite, y = artifact.suite, artifact.suite["y"]
    right, broken = suite["label.clean"] == y, suite[f"label.{attack}"] != y
    candidates = np.concatenate([np.flatnonzero(right & broken), np.flatnonzero(right & ~broken)])
    _, first = np.unique(y[candidates], return_index=True)
    return list(dict.fromkeys([*candidates[np.sort(first)].tolist(), *candidates.tolist()]))[:MOST]


def _example(artifact: Artifact, attack: str, index: int) -> Example:
    suite, names = artifact.suite, artifact.classes
    clean, adversarial = suite["x.clean"][index], suite[f"x.{attack}"][index]
    return Example(
        clean=_picture(clean),
        adversarial=_picture(adversarial),
        difference=_picture(_difference(clean, adversarial)),
        attack=attack,
        true=names[suite["y"][index]],
        before=names[suite["label.clean"][index]],
        after=names[suite[f"label.{attack}"][index]],
    )


def _difference(clean: Pixels, adversarial: Pixels) -> Pixels:
    """Grey where nothing changed: 127.5 (1 + δ / max |δ|). Not by eps, which in l2 is far above what a pixel moves."""
    delta = adversarial.astype(np.float64) - clean
    grey: Pixels = np.rint(127.5 * (1 + delta / max(np.abs(delta).max(), 1))).astype(np.uint8)
    return grey


def _picture(pixels: Pixels) -> str:
    """A PNG (c, h, w) as data URI; one or three channels as they are, of others the first."""
    from PIL import Image

    whole: Any = pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]
    image, buffer = Image.fromarray(np.ascontiguousarray(whole)), io.BytesIO()
    image.thumbnail((MOST_SIDE, MOST_SIDE))
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
