"""The operator `qrobust::quantize`: all that an exported network says of a quantiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY: Any = torch.library.Library("qrobust", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int low, int high) -> Tensor")


def levels(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """clamp(round(x / scale) + zero_point, low, high): whole numbers, ties to even; scale and zero point broadcast."""
    return (torch.round(x / scale) + zero_point).clamp(low, high)


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    return (levels(x, scale, zero_point, low, high) - zero_point) * scale


_LIBRARY.impl("quantize", _quantize, "CompositeExplicitAutograd")
_LIBRARY.impl("quantize", lambda x, *_: torch.empty_like(x), "Meta")
QUANTIZE: Any = torch.ops.qrobust.quantize.default
"""`quantize(x, scale, zero_point, low, high)`: x on the grid of these levels, (levels - zero_point)·scale."""
