"""Operators that move values or ask for sizes; sizes and indices stay on the CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Node, instead
from .layers import outer_pads
from .pointwise import axes_of, truncated
from .table import INTEGERS, bounded, integer_range, operator, plain, torch_type

PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@operator("Flatten")
def flatten(node: Node, x: Tensor) -> Tensor:
    """To a matrix; axes before `axis` are its rows."""
    axis = node.integer("axis", 1)
    rows = math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis])
    return x.reshape(rows, -1)


@operator("Reshape")
def reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    """-1 is what is left; 0 is the size of before, unless allowzero."""
    sizes = shape.tolist()
    if not node.integer("allowzero", 0):
        sizes = [x.shape[index] if size == 0 else size for index, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Squeeze")
def squeeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes of size 1 go: those named, or all."""
    chosen = axes_of(node, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Unsqueeze")
def unsqueeze(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    """Axes of size 1 come, numbered as in the result."""
    chosen = axes_of(node, axes) or []
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Transpose")
def transpose(node: Node, x: Tensor) -> Tensor:
    """Axes in the order `perm`, or reversed."""
    return x.permute(node.integers("perm") or list(reversed(range(x.dim()))))


@operator("Concat")
def concat(node: Node, *parts: Tensor) -> Tensor:
    """Side by side along an axis."""
    on = next((part.device for part in parts if part.device.type != "cpu"), parts[0].device)
    return torch.cat([part.to(on) for part in parts], node.integer("axis", 1))


@operator("Split")
def split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """In parts of these sizes, or of equal ones, the last smaller."""
    axis = node.integer("axis", 0)
    chosen = node.integers("split") if sizes is None else sizes.tolist()
    return torch.split(x, chosen or math.ceil(x.shape[axis] / len(node.outputs)), axis)


@operator("Slice")
def cut(
    node: Node,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """Python's slices, also with negative steps; attributes before opset 10."""
    begin = node.integers("starts") if starts is None else starts.tolist()
    end = node.integers("ends") if ends is None else ends.tolist()
    chosen = axes_of(node, axes) or list(range(len(begin or [])))
    strides = [1] * len(chosen) if steps is None else steps.tolist()
    for axis, *bounds in zip(chosen, begin or [], end or [], strides, strict=True):
        taken = range(*slice(*bounds).indices(x.shape[axis]))
        if taken.step > 0:
            index = [slice(None)] * (axis % x.dim())
            x = x[(*index, slice(taken.start, taken.stop, taken.step))]
        else:
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64, device=x.device))
    return x


@operator("Gather")
def gather(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x along an axis, in the shape of the indices; negative ones count from the end."""
    axis = node.integer("axis", 0) % x.dim()
    indices = indices.to(x.device).long()
    indices = torch.where(indices < 0, indices + x.shape[axis], indices)
    taken = x.index_select(axis, indices.flatten())
    return taken.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("Pad")
def pad(
    node: Node, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    """Begin of every axis, then end of every axis; negative ones cut."""
    given = (node.integers("pads") if pads is None else pads.tolist()) or []
    half = len(given) // 2
    chosen = list(range(x.dim())) if axes is None else axes.tolist()
    begin, end = [0] * x.dim(), [0] * x.dim()
    for axis, first, last in zip(chosen, given[:half], given[half:], strict=True):
        begin[axis], end[axis] = first, last
    bounded([n + a + b for n, a, b in zip(x.shape, begin, end, strict=True)])
    mode = PAD_MODES[node.text("mode", "constant")]
    if mode == "constant":
        given_fill = node.constant(2)
        fill = node.number("value", 0.0) if value is None else float(value) if given_fill is None else given_fill
        return F.pad(x, outer_pads(begin, end), value=fill)
    inner = next((axis for axis in range(x.dim()) if begin[axis] or end[axis]), x.dim() - 1)
    return F.pad(x, outer_pads(begin[inner:], end[inner:]), mode=mode)


@operator("Shape")
def shape(node: Node, x: Tensor) -> Tensor:
    """The sizes, or some of them."""
    sizes = list(x.shape)[node.integer("start", 0) : node.attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


@plain("Size")
def size(x: Tensor) -> Tensor:
    """The number of elements."""
    return torch.tensor(x.numel())


@plain("Range")
def arange(start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    """From start to before stop."""
    bounded([abs(math.ceil((stop.item() - start.item()) / step.item()))])
    return torch.arange(start.item(), stop.item(), step.item(), dtype=start.dtype)


@operator("ConstantOfShape")
def constant_of_shape(node: Node, sizes: Tensor) -> Tensor:
    """One value everywhere, float 0 unless the file says another."""
    value = node.attributes.get("value")
    shape = bounded(sizes.tolist())
    return torch.zeros(shape) if value is None else value.reshape(()).expand(shape).clone()


@plain("Expand")
def expand(x: Tensor, sizes: Tensor) -> Tensor:
    """Broadcast with a shape, both ways."""
    shape = torch.broadcast_shapes(x.shape, tuple(sizes.tolist()))  # type: ignore[no-untyped-call]
    return x.broadcast_to(bounded(shape))


@plain("Tile")
def tile(x: Tensor, repeats: Tensor) -> Tensor:
    """Copies side by side."""
    bounded([n * times for n, times in zip(x.shape, repeats.tolist(), strict=True)])
    return x.repeat(repeats.tolist())


@plain("CastLike")
def cast_like(x: Tensor, other: Tensor) -> Tensor:
    """To the type of another, a float one."""
    if not other.is_floating_point():
        raise ValueError("a type that is not of floats is not covered")
    return x.to(other.dtype)


@operator("Cast")
def cast(node: Node, x: Tensor) -> Tensor:
    """To another type. Integers of quantised images are floats here: cut to whole numbers, in float64 where 24 bits
    are too few for them; of integers, those that a narrower type has no room for start again at its other end.
    """
    to = node.integer("to", 1)
    kind = torch_type(to)
    if not x.is_floating_point() or kind.is_floating_point or node.constant(0) is not None or to not in INTEGERS:
        return x.to(kind)
    low, high = integer_range(to)
    if high >= 2**24:
        return truncated(x.double())
    if not node.whole:
        return truncated(x)
    return instead(x, torch.remainder(x - low, high - low + 1) + low)
