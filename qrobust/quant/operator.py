"""The operator `qrobust::quantize`: all that an exported network says of a quantiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIBRARY: Any = torch.library.Library("qrobust", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor? zero_point, int low, int high) -> Tensor")


def levels(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    """clamp(round(x / scale) + zero_point, low, high): whole numbers, ties to even; scale and zero point broadcast."""
    steps = torch.round(x / scale)
    return (steps if zero_point is None else steps + zero_point).clamp(low, high)


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Tensor:
    found = levels(x, scale, zero_point, low, high)
    return (found if zero_point is None else found - zero_point) * scale


_LIBRARY.impl("quantize", _quantize, "CompositeExplicitAutograd")
_LIBRARY.impl("quantize", lambda x, *_: torch.empty_like(x), "Meta")
QUANTIZE: Any = torch.ops.qrobust.quantize.default
"""`quantize(x, scale, zero_point, low, high)`: x on the grid of these levels, (level - zero_point)·scale; None is 0."""
