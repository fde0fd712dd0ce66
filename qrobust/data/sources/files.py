"""Reading many image files into one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ...errors import DataError


def read_images(paths: Sequence[Path], size: int | None = None) -> Tensor:
    """The images in these files (at least one) as uint8 (n, 3, h, w); grey ones become colour.

    size: side in pixels to which the largest centred square of each image is resized (bilinear); with None
    all must have the size of the first. Raises DataError for a file that is no image, or has another size.
    """
    first = _read(paths[0], size)
    x = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def fill(position: int) -> None:
        image = _read(paths[position], size)
        _check_size(image, first, paths[position])
        x[position] = image

    # Decoding releases the interpreter lock, so threads do help.
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(fill, range(len(paths))):
            pass
    return torch.from_numpy(x)


def _read(path: Path, size: int | None) -> NDArray[np.uint8]:
    """One image, (3, h, w)."""
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"expected an image at {path}, cannot read it: {error}; replace or remove it") from error
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _check_size(image: NDArray[np.uint8], first: NDArray[np.uint8], path: Path) -> None:
    if image.shape != first.shape:
        expected, got = (f"{height}x{width}" for _, height, width in (first.shape, image.shape))
        raise DataError(
            f"expected images of {expected} pixels, as the first, got {got} at {path}; "
            "give all one size, or set one with -o data.size=PIXELS (folder only)"
        )
