"""Convolutions, matrix products and normalisations."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..node import Node
from .table import operator, plain
from .windows import Window, outer_pads

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@operator("Conv")
def convolve(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, c, ...) with weight (out, c/groups, ...); pads may differ from side to side."""
    window = Window.of(node, x.shape[2:], weight.shape[2:])
    padding: list[int] = window.begin
    if window.begin != window.end:
        x, padding = F.pad(x, outer_pads(window.begin, window.end)), [0] * len(window.begin)
    group = node.integer("group", 1)
    convolved: Tensor = CONV[len(padding)](x, weight, bias, window.strides, padding, window.dilations, group)
    return convolved


@operator("Gemm")
def gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha·a·b + beta·c, either of a and b transposed."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    a = a.t() if node.integer("transA", 0) else a
    b = b if node.integer("transB", 0) else b.t()
    if alpha == beta == 1 and (c is None or c.dim() == 1):
        return F.linear(a, b, c)
    product = alpha * F.linear(a, b)
    return product if c is None else product + beta * c


@plain("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Of stacks of matrices, as numpy's."""
    return a @ b


@operator("BatchNormalization")
def batch_norm(node: Node, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """By the statistics in the file."""
    if node.integer("training_mode", 0):
        raise ValueError("training_mode is set: an image's logits would depend on its batch")
    return F.batch_norm(x, mean, variance, gamma, beta, eps=node.number("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_norm(node: Node, x: Tensor, gamma: Tensor, beta: Tensor | None = None) -> Tensor:
    """Over all axes from `axis` on."""
    shape = x.shape[node.integer("axis", -1) :]
    return F.layer_norm(x, shape, gamma.expand(shape), beta, node.number("epsilon", 1e-5))


@operator("InstanceNormalization")
def instance_norm(node: Node, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Each channel of each image by its own statistics."""
    return F.instance_norm(x, weight=gamma, bias=beta, eps=node.number("epsilon", 1e-5))


@plain("Dropout")
def dropout(x: Tensor, _: Tensor | None = None, training: Tensor | None = None) -> Tensor:
    """What it is at inference: nothing."""
    if training is not None and bool(training):
        raise ValueError("training_mode is set: logits would be random")
    return x
