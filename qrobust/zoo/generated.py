"""What a network says of generated images: tells it from any other where no data set is at hand.

An image is made of square patches whose bytes come from SHAKE-128, the same on every machine. Whichever the network is
sure of is stored with its label; integer kernels of two processors may differ by a step, so few may differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

COUNT, LEAST_SHARE = 256, 0.98
SURE = 0.1  # margin of the best class over the next, as a share of the range of an image's logits
SEED = b"qrobust zoo"


def images(count: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Images (count, c, h, w): of patches with a quarter, a half of the shorter side, or of single pixels, in turn."""
    channels, height, width = shape
    made = np.empty((count, channels, height, width), np.uint8)
    for index in range(count):
        side = max(min(height, width) // (4, 2, height)[index % 3], 1)
        rows, columns = -(-height // side), -(-width // side)
        data = hashlib.shake_128(SEED + index.to_bytes(4, "little")).digest(channels * rows * columns)
        patches = np.frombuffer(data, np.uint8).reshape(channels, rows, columns)
        made[index] = patches.repeat(side, 1).repeat(side, 2)[:, :height, :width]
    return made


def labels(logits: NDArray[Any]) -> list[int | None]:
    """Of logits (n, classes) the best class of each image; None where the network is not sure of it."""
    ranked = np.sort(logits, axis=1)
    sure = ranked[:, -1] - ranked[:, -2] > SURE * (ranked[:, -1] - ranked[:, 0])
    return [int(best) if is_sure else None for best, is_sure in zip(logits.argmax(1), sure, strict=True)]


def table(logits: NDArray[Any]) -> dict[str, Any]:
    """What an index says of logits on `images(COUNT, shape)`."""
    return {"count": len(logits), "least_share": LEAST_SHARE, "labels": labels(logits)}


def agreement(stated: Sequence[int | None], logits: NDArray[Any]) -> float:
    """Share of the stated labels that logits (n, classes) have too; 0 where none is stated."""
    said = [(label, best) for label, best in zip(stated, logits.argmax(1), strict=True) if label is not None]
    return sum(int(label == best) for label, best in said) / max(len(said), 1)
