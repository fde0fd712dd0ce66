"""Resize by ONNX's formulas, as a product with a matrix for each axis; and blocks of channels as blocks of space."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..node import Node
from .pointwise import truncated
from .table import bounded, operator

Rounding = Callable[[Tensor], Tensor]
NEAREST: dict[str, Rounding] = {
    "round_prefer_floor": lambda at: torch.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: torch.floor(at + 0.5),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


@dataclass(frozen=True)
class Axis:
    """One axis that changes, from `before` to `after` pixels; scale: the file's, after/before but for rounding."""

    index: int
    before: int
    after: int
    scale: float

    def places(self, mode: str) -> Tensor:
        """Where each pixel of the result lies among those of x, by a coordinate_transformation_mode."""
        pixel = torch.arange(self.after, dtype=torch.float32)
        if mode == "asymmetric":
            return pixel / self.scale
        if mode == "align_corners":
            return pixel * ((self.before - 1) / (self.after - 1)) if self.after > 1 else pixel * 0
        if mode == "pytorch_half_pixel" and self.after == 1:
            return pixel
        if mode in ("half_pixel", "pytorch_half_pixel"):
            return (pixel + 0.5) / self.scale - 0.5
        if mode == "half_pixel_symmetric":
            offset = self.before / 2 * (1 - self.after / (self.before * self.scale))
            return offset + (pixel + 0.5) / self.scale - 0.5
        if mode == "tf_half_pixel_for_nn":
            return (pixel + 0.5) / self.scale
        raise ValueError(f"coordinate_transformation_mode {mode} is not covered")


@operator("Resize", "Upsample")
def resize(
    node: Node, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """To sizes, or by scales; nearest, linear or cubic. Upsample and the oldest Resize have scales alone."""
    old = node.op == "Upsample" or node.opset < 11
    mode = node.text("mode", "nearest")
    where = "asymmetric" if old else node.text("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        axes = _sized(node, x, sizes.tolist())
    else:
        axes = _scaled(node, x, _scales(node, roi if old else scales, 1 if old else 2))
    axes = [axis for axis in axes if axis.scale != 1 or axis.before != axis.after]
    bounded([*x.shape, *(math.ceil(max(axis.after, 1) / axis.before) for axis in axes)])
    for axis in axes:
        if mode == "nearest":
            near = _nearest(node, axis)(axis.places(where)).clamp(0, axis.before - 1)
            x = x.index_select(axis.index, near.long().to(x.device))
        else:
            bounded([axis.after, axis.before])
            matrix = _weights(node, axis, axis.places(where), cubic=mode == "cubic").to(x)
            x = (x.movedim(axis.index, -1) @ matrix.t()).movedim(-1, axis.index)
    return truncated(x) if node.whole and mode != "nearest" else x


def _chosen(node: Node, x: Tensor) -> list[int]:
    return [axis % x.dim() for axis in node.integers("axes") or range(x.dim())]


def _scales(node: Node, given: Tensor | None, index: int) -> list[float]:
    """Of a constant, an attribute of the oldest files, or a computed tensor."""
    found = node.vector(index) or node.attributes.get("scales") or (None if given is None else given.tolist())
    if not found:
        raise ValueError("neither scales nor sizes are given")
    return [float(scale) for scale in found]


def _scaled(node: Node, x: Tensor, scales: Sequence[float]) -> list[Axis]:
    return [
        Axis(axis, x.shape[axis], math.floor(x.shape[axis] * scale), scale)
        for axis, scale in zip(_chosen(node, x), scales, strict=True)
    ]


def _sized(node: Node, x: Tensor, sizes: Sequence[int]) -> list[Axis]:
    """To these sizes, or to the largest (smallest) picture inside (around) them in its own proportions."""
    chosen, policy = _chosen(node, x), node.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return [Axis(axis, x.shape[axis], size, size / x.shape[axis]) for axis, size in zip(chosen, sizes, strict=True)]
    factors = [size / x.shape[axis] for size, axis in zip(sizes, chosen, strict=True)]
    scale = min(factors) if policy == "not_larger" else max(factors)
    return [Axis(axis, x.shape[axis], math.floor(x.shape[axis] * scale + 0.5), scale) for axis in chosen]


def _nearest(node: Node, axis: Axis) -> Rounding:
    if node.op == "Upsample":
        return torch.floor
    if node.opset < 11:
        return torch.floor if axis.scale >= 1 else torch.ceil
    return NEAREST[node.text("nearest_mode", "round_prefer_floor")]


def _weights(node: Node, axis: Axis, places: Tensor, *, cubic: bool) -> Tensor:
    """How much of each pixel of x (columns) goes into each of the result (rows).

    Beyond the edge lies the edge's pixel, or with exclude_outside nothing; antialias widens the kernel of what shrinks.
    """
    wide = bool(node.integer("antialias", 0)) and axis.scale < 1
    width = axis.scale if wide else 1.0
    reach = math.ceil((2 if cubic else 1) / width)
    near = places.floor().long()[:, None] + torch.arange(1 - reach, 1 + reach)
    distance = (near - places[:, None]).abs() * width
    share = _cubic(distance, node.number("cubic_coeff_a", -0.75)) if cubic else (1 - distance).clamp(min=0)
    if node.integer("exclude_outside", 0):
        share = share * ((near >= 0) & (near < axis.before))
    share = share / share.sum(1, keepdim=True)
    return torch.zeros(axis.after, axis.before).scatter_add(1, near.clamp(0, axis.before - 1), share)


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel (1981), of pixels up to two away."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, distance.new_zeros(())))


@operator("DepthToSpace")
def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Channels become blocks of space; mode DCR has the block before the channels, CRD behind them."""
    n, c, h, w = x.shape
    b = node.integer("blocksize", 1)
    if node.text("mode", "DCR") == "DCR":
        blocks = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth")
def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Blocks of space become channels, the block before the channels."""
    n, c, h, w = x.shape
    b = node.integer("blocksize", 1)
    blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * b**2, h // b, w // b)
