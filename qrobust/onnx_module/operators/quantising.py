"""QuantizeLinear and DequantizeLinear; integers travel as floats, which hold them exactly."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor

from ...straight_through import Bound
from ..node import Grid, Node, on_grid
from .layers import convolve
from .table import CONTRIB, bounded, integer_range, operator, plain


@operator("QuantizeLinear")
@operator("QuantizeLinear", domain=CONTRIB)
def quantise(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """clamp(round(x / scale) + zero point) to the range of the zero point's type, uint8 without one."""
    grid, zero = grid_of(node, x, scale, zero_point)
    steps = on_grid(x, grid, node.backward, values=False)
    return steps if isinstance(zero, float) and zero == 0 else steps + zero


@operator("DequantizeLinear")
@operator("DequantizeLinear", domain=CONTRIB)
def dequantise(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """(x - zero point)·scale."""
    x = x if x.is_floating_point() else x.to(scale.dtype)
    zero = zero_of(node, x, zero_point)
    return (x if isinstance(zero, float) and zero == 0 else x - zero) * along(node, scale, x)


def fake_quantise(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """QuantizeLinear and DequantizeLinear in one, on x of any shape; the result has its shape.

    scale, zero_point: a number each, or one along the node's `axis`. Attributes "low" and "high" may narrow the range;
    "divides": the file divides by the scale in its own type, where QuantizeLinear does in float32.
    """
    grid, _ = grid_of(node, x, scale, zero_point)
    return on_grid(x, grid, node.backward, values=True)


@operator("DynamicQuantizeLinear")
def quantise_dynamically(node: Node, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes by the range of x itself, scale and zero point; gradients pass the bytes alone, as those of QuantizeLinear.

    scale = (max(x, 0) - min(x, 0)) / 255, zero point = round(-min/scale).
    """
    span = torch.stack([x.detach().amin(), x.detach().amax(), x.new_zeros(())])
    low, high = span.amin(), span.amax()
    scale = torch.where(high > low, (high - low) / 255, 1.0)
    zero = (-low / scale).round().clamp(0, 255)
    return on_grid(x, Grid(scale, -zero, 255 - zero), node.backward, values=False) + zero, scale, zero


@plain("MatMulInteger")
def multiply_integers(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """(a - a_zero)·(b - b_zero): zero points are one number, or one for each row of a and each column of b."""
    if a_zero is not None and a_zero.dim() == 1 and a_zero.numel() > 1:
        a_zero = a_zero[:, None]
    return _centred(a, a_zero) @ _centred(b, b_zero)


@operator("ConvInteger")
def convolve_integers(
    node: Node, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None
) -> Tensor:
    """Conv of x - x_zero with weight - weight_zero, the latter one number or one for each filter; pads are zeros."""
    if weight_zero is not None and weight_zero.numel() > 1:
        weight_zero = weight_zero.view(-1, *[1] * (weight.dim() - 1))
    convolved: Tensor = convolve(node, _centred(x, x_zero), _centred(weight, weight_zero))
    return convolved


def _centred(x: Tensor, zero: Tensor | None) -> Tensor:
    """Integers as floats, their zero point taken off."""
    x = x if x.is_floating_point() else x.float()
    return x if zero is None else x - zero.to(x)


def grid_of(node: Node, x: Tensor, scale: Tensor, zero_point: Tensor | None) -> tuple[Grid, Bound]:
    """The steps of a QuantizeLinear, and its zero point."""
    low, high = _range(node, zero_point)
    zero = zero_of(node, x, zero_point)
    narrow = node.narrow if node.integer("divides", 0) else None
    return Grid(along(node, scale, x), low - zero, high - zero, narrow), zero


def zero_of(node: Node, x: Tensor, zero_point: Tensor | None) -> Bound:
    """The zero point as a number where it is one, else as a tensor that broadcasts over x."""
    if zero_point is None:
        return 0.0
    number = node.constant(2)
    return along(node, zero_point.to(x.dtype), x) if number is None else number


def along(node: Node, values: Tensor, x: Tensor) -> Tensor:
    """Values of the whole tensor, of each channel along `axis`, or of each block there, so that they broadcast."""
    if values.numel() == 1:
        return values.reshape(())
    axis, block = node.integer("axis", 1) % x.dim(), node.integer("block_size", 0)
    if block:
        bounded([values.numel(), block])
        return values.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    shape = [1] * x.dim()
    shape[axis] = -1
    return values.reshape(shape)


def _range(node: Node, zero_point: Tensor | None) -> tuple[float, float]:
    default = node.integer("output_dtype", 0) or TensorProto.UINT8
    kind = default if zero_point is None else node.kind(2)
    if kind is None:
        raise ValueError("a zero point that is not constant is not covered")
    low, high = integer_range(kind)
    return max(low, node.number("low", low)), min(high, node.number("high", high))
