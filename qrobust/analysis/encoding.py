"""Tensors as JSON can hold them: numbers as nested lists, images as bytes in base64. Reading needs no torch."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

DIGITS = 5  # significant ones
Pixels = npt.NDArray[np.uint8]


def numbers(values: Tensor) -> Any:
    """Nested lists of five significant digits."""
    if values.dim():
        return [numbers(part) for part in values.detach().cpu()]
    return float(f"{float(values):.{DIGITS}g}")


def pack(x: Tensor) -> dict[str, Any]:
    """Images (n, c, h, w) in [0,1], clamped, as bytes (n, h, w, c)."""
    pixels = (x.detach().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return {"shape": list(pixels.shape), "base64": base64.b64encode(pixels.tobytes()).decode()}


def unpack(packed: dict[str, Any]) -> Pixels:
    """The bytes (n, h, w, c) of `pack`."""
    return np.frombuffer(base64.b64decode(packed["base64"]), np.uint8).reshape(packed["shape"])
