"""What lies on a grid while a graph is lowered: integer weights, activations and a camera's pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ...errors import ExportError
from ...quant.operator import levels
from .building import Array

LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class Weight:
    """Integers with a scale and a zero point that broadcast over them: (integers - zero)·scale.

    Zero is 0 wherever the integers fit INT8 without one.
    """

    integers: Array
    scale: Array
    zero: Array

    @staticmethod
    def of(x: Tensor, scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Weight:
        """Of floats and the grid of their quantiser."""
        found, steps = levels(x, scale, zero_point, low, high), scale.numpy().astype(np.float32)
        moved = found if zero_point is None else found - zero_point
        if bool((moved >= -128).all()) and bool((moved <= 127).all()):
            return Weight(moved.numpy().astype(np.int8), steps, np.zeros((), np.int8))
        kind = np.int8 if low < 0 else np.uint8
        zero = np.zeros((), kind) if zero_point is None else zero_point.numpy().astype(kind)
        return Weight(found.numpy().astype(kind), steps, zero)

    @property
    def axis(self) -> int:
        """The dimension along which scales differ, the first if none does."""
        return max(range(self.scale.ndim), key=lambda axis: self.scale.shape[axis], default=0)

    def floats(self) -> Array:
        """float32."""
        return ((self.integers - self.zero) * self.scale).astype(np.float32)

    def transposed(self) -> Weight:
        """Of two dimensions, the other way round."""
        scale = self.scale.T if self.scale.ndim == self.integers.ndim else self.scale
        return replace(self, integers=np.ascontiguousarray(self.integers.T), scale=scale)

    def scaled(self, factor: Array) -> Weight:
        """Channels of the first dimension times `factor` (float64): the scale takes its size and the integers its
        sign. Where it is 0, they are.
        """
        if self.zero.any():
            raise ExportError("expected weights without a zero point before batch-norm, got one; choose symmetric ones")
        column = factor.reshape(-1, *[1] * (self.integers.ndim - 1))
        scale = np.where(column == 0, self.scale, self.scale.astype(np.float64) * np.abs(column)).astype(np.float32)
        return replace(self, integers=self.integers * np.sign(column).astype(np.int8), scale=scale)

    def fitting(self, bias: Array, x_scale: float) -> Weight:
        """With larger scales where a bias would not fit int32 at s_x·s_w (γ near 0, dead weights), at which its
        weights round to what little they are. A runtime that quantises float biases itself needs it too.
        """
        column = bias.reshape(-1, *[1] * (self.integers.ndim - 1))
        scale = self.scale.astype(np.float64)
        wider = np.maximum(scale, np.abs(column) / (x_scale * LARGEST_BIAS))
        if not (wider > scale).any():
            return self
        integers = np.rint(self.integers * (scale / wider)).astype(self.integers.dtype)
        return replace(self, integers=integers, scale=wider.astype(np.float32))

    def bias_scale(self, x_scale: float) -> Array:
        """s_x·s_w by output channel, the step of an integer layer's sums; onnxruntime fuses only this very number."""
        steps = self.scale.astype(np.float64).reshape(-1) * np.ones(self.integers.shape[self.axis])
        return (x_scale * steps).astype(np.float32)


@dataclass
class Activation:
    """Integers in the graph, a scale and their zero point; as floats through a DequantizeLinear, where one reads them.

    of_image: what quantises the image itself.
    """

    integers: ir.Value
    scale: Array
    zero: Array
    of_image: bool = False
    floats: ir.Value | None = None

    def moved(self, move: Callable[[ir.Value], ir.Value]) -> Activation:
        """Other integers on the same grid."""
        return Activation(move(self.integers), self.scale, self.zero)

    def shares_grid(self, other: object) -> bool:
        """Whether another's integers mean the same."""
        return isinstance(other, Activation) and other.scale == self.scale and other.zero == self.zero


@dataclass
class Pixels:
    """The image as a camera gives it, uint8, channels first by a Transpose; as floats where one reads them."""

    integers: ir.Value
    floats: ir.Value | None = None


@dataclass(frozen=True)
class Levels:
    """The grid of an activation."""

    scale: Array
    zero: int
    low: int
    high: int

    @staticmethod
    def of(scale: Tensor, zero_point: Tensor | None, low: int, high: int) -> Levels:
        """Raises ExportError for a grid of several scales."""
        if scale.numel() != 1 or (zero_point is not None and zero_point.numel() != 1):
            raise ExportError(f"expected one scale for an activation, got {scale.numel()}; use one of the whole tensor")
        one = scale.to(torch.float32).reshape(()).numpy()
        return Levels(one, 0 if zero_point is None else int(zero_point.item()), low, high)

    def is_of_pixels(self) -> bool:
        """Whether images on the 8-bit grid are its values."""
        return (self.low, self.high, self.zero) == (0, 255, 0) and bool(self.scale == np.float32(1 / 255))
