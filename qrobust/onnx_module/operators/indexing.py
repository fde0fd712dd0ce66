"""Operators that pick, place and order elements by their index."""

from __future__ import annotations

import torch
from torch import Tensor

from ..node import Node
from .pointwise import together
from .table import bounded, operator

REDUCED = {"mul": "prod", "max": "amax", "min": "amin", "add": "sum"}


def _wrapped(indices: Tensor, size: int, on: Tensor) -> Tensor:
    """Negative indices count from the end."""
    indices = indices.to(on.device).long()
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherElements")
def gather_elements(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """One element per index, along an axis."""
    axis = node.integer("axis", 0)
    return x.gather(axis, _wrapped(indices, x.shape[axis], x))


@operator("GatherND")
def gather_nd(node: Node, x: Tensor, indices: Tensor) -> Tensor:
    """The slices whose first coordinates, after batch_dims, are the last axis of the indices."""
    indices, batched = indices.to(x.device).long(), node.integer("batch_dims", 0)
    rank = indices.dim() - 1
    lead = [
        torch.arange(size, device=x.device).view([-1 if axis == own else 1 for axis in range(rank)])
        for own, size in enumerate(indices.shape[:batched])
    ]
    return x[(*lead, *indices.unbind(-1))]


@operator("ScatterND")
def scatter_nd(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with other slices at these coordinates, or with them added."""
    x, updates = together(x, updates)
    how = node.text("reduction", "none")
    if how not in ("none", "add"):
        raise ValueError(f"reduction {how} is not covered")
    places = tuple(indices.to(x.device).long().unbind(-1))
    return x.index_put(places, updates, accumulate=how == "add")


@operator("ScatterElements")
def scatter_elements(node: Node, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with other elements along an axis, or with them added, multiplied, or the larger or smaller."""
    x, updates = together(x, updates)
    axis, how = node.integer("axis", 0), node.text("reduction", "none")
    places = _wrapped(indices, x.shape[axis], x)
    if how == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, REDUCED[how])


@operator("TopK")
def top_k(node: Node, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest or smallest along an axis, in order, and where they are."""
    count = node.integer("k", 1) if k is None else int(k)
    found = x.topk(count, node.integer("axis", -1), bool(node.integer("largest", 1)))
    return found.values, found.indices


@operator("ArgMax", "ArgMin")
def arg_max(node: Node, x: Tensor) -> Tensor:
    """Where the largest (smallest) is along an axis: the first such, or the last."""
    axis, keep = node.integer("axis", 0), bool(node.integer("keepdims", 1))
    function = torch.argmax if node.op == "ArgMax" else torch.argmin
    if not node.integer("select_last_index", 0):
        return function(x, axis, keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keep)


@operator("CumSum")
def cumulated(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    """Sums of all up to each; exclusive: without its own; reverse: from the end."""
    along = int(axis)
    turned = x.flip(along) if node.integer("reverse", 0) else x
    sums = turned.cumsum(along)
    sums = sums - turned if node.integer("exclusive", 0) else sums
    return sums.flip(along) if node.integer("reverse", 0) else sums


@operator("Trilu")
def triangle(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    """The upper or lower triangle of each matrix, from the k-th diagonal."""
    return (torch.triu if node.integer("upper", 1) else torch.tril)(x, 0 if k is None else int(k))


@operator("OneHot")
def one_hot(node: Node, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """values = (off, on); a new axis of `depth`, on at the index."""
    size = int(depth)
    bounded([indices.numel(), size])
    hot = _wrapped(indices, size, values)[..., None] == torch.arange(size, device=values.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, node.integer("axis", -1))
