"""Tensors as JSON can hold them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..pixels import pack

DIGITS = 5  # significant ones


def numbers(values: Tensor) -> Any:
    """Nested lists of five significant digits."""
    if values.dim():
        return [numbers(part) for part in values.detach().cpu()]
    return float(f"{float(values):.{DIGITS}g}")


def packed(x: Tensor) -> dict[str, Any]:
    """Images (n, c, h, w) in [0,1], clamped, as bytes (n, h, w, c)."""
    pixels = (x.detach().clamp(0, 1) * 255).round().byte()
    return pack(pixels.permute(0, 2, 3, 1).cpu().numpy())
