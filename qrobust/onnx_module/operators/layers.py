"""Convolutions, matrix products, normalisations and pools; how a window slides, by the rules of ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Node
from .table import bounded, operator, plain


@dataclass(frozen=True)
class Window:
    """One value per spatial axis; `begin` and `end` are the pads, `size` that of the result.

    size = floor((n + begin + end - span)/stride) + 1 with span = dilation·(kernel - 1) + 1; ceil_mode rounds up,
    but drops a last window that would start in the padding.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    size: list[int]

    @classmethod
    def of(cls, node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
        """The window of a node over an image (n, c, *sizes)."""
        dims = len(sizes)
        strides = node.integers("strides") or [1] * dims
        dilations = node.integers("dilations") or [1] * dims
        spans = [dilation * (k - 1) + 1 for k, dilation in zip(kernel, dilations, strict=True)]
        pads = _pads(node, sizes, spans, strides)
        begin, end = pads[:dims], pads[dims:]
        ceil = bool(node.integer("ceil_mode", 0))
        size = [_size(*axis, ceil) for axis in zip(sizes, begin, end, spans, strides, strict=True)]
        bounded([n + a + b for n, a, b in zip(sizes, begin, end, strict=True)])
        return cls(list(kernel), strides, dilations, begin, end, size)

    def reach(self, sizes: Sequence[int]) -> list[int]:
        """Pads at the end that let the last window fit; at most 0 more than `end` unless ceil_mode added one."""
        spans = [dilation * (k - 1) + 1 for k, dilation in zip(self.kernel, self.dilations, strict=True)]
        return [
            max(end, (size - 1) * stride + span - n - begin)
            for size, stride, span, n, begin, end in zip(
                self.size, self.strides, spans, sizes, self.begin, self.end, strict=True
            )
        ]


def outer_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Pads in the order that torch takes: the last axis first, begin and end of each."""
    return [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]


def _pads(node: Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Begin of every axis, then end of every axis."""
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return node.integers("pads") or [0] * (2 * len(sizes))
    if auto == "VALID":
        return [0] * (2 * len(sizes))
    total = [
        max(0, (math.ceil(n / stride) - 1) * stride + span - n)
        for n, span, stride in zip(sizes, spans, strides, strict=True)
    ]
    less = [pad // 2 for pad in total]
    more = [pad - half for pad, half in zip(total, less, strict=True)]
    return less + more if auto == "SAME_UPPER" else more + less


def _size(n: int, begin: int, end: int, span: int, stride: int, ceil: bool) -> int:
    free = n + begin + end - span
    if not ceil:
        return free // stride + 1
    size = -(-free // stride) + 1
    return size - 1 if (size - 1) * stride >= n + begin else size


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


TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("ConvTranspose")
def convolve_transposed(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (n, c, ...) with weight (c, out/groups, ...): the pads cut what the whole product has more than the result."""
    dims = x.dim() - 2
    strides, dilations = (node.integers(name) or [1] * dims for name in ("strides", "dilations"))
    spans = [dilation * (k - 1) + 1 for k, dilation in zip(weight.shape[2:], dilations, strict=True)]
    whole = [stride * (n - 1) + span for n, stride, span in zip(x.shape[2:], strides, spans, strict=True)]
    begin, end = _cut(node, x.shape[2:], whole, strides)
    bounded([x.shape[0], weight.shape[1] * node.integer("group", 1), *whole])
    product = TRANSPOSED[dims](x, weight, None, strides, 0, 0, node.integer("group", 1), dilations)
    result = F.pad(product, outer_pads([-cut for cut in begin], [-cut for cut in end]))
    return result if bias is None else result + bias.view(-1, *[1] * dims)


def _cut(node: Node, sizes: Sequence[int], whole: Sequence[int], strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """How much is cut at the begin and the end of every axis; output_padding cuts less at the end."""
    dims, auto = len(sizes), node.text("auto_pad", "NOTSET")
    more = node.integers("output_padding") or [0] * dims
    wanted = node.integers("output_shape")
    if wanted is None and auto.startswith("SAME"):
        wanted = [n * stride for n, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        pads = node.integers("pads") or [0] * (2 * dims)
        return pads[:dims], [pad - extra for pad, extra in zip(pads[dims:], more, strict=True)]
    total = [size + extra - want for size, extra, want in zip(whole, more, wanted[-dims:], strict=True)]
    half = [pad // 2 if auto == "SAME_UPPER" else pad - pad // 2 for pad in total]
    return half, [pad - first - extra for pad, first, extra in zip(total, half, more, strict=True)]


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
    shift = None if beta is None else beta.expand(shape)
    return F.layer_norm(x, shape, gamma.expand(shape), shift, node.number("epsilon", 1e-5))


@operator("RMSNormalization")
def rms_norm(node: Node, x: Tensor, gamma: Tensor) -> Tensor:
    """x over the root of its mean square, over all axes from `axis` on."""
    shape = x.shape[node.integer("axis", -1) :]
    return F.rms_norm(x, shape, gamma.expand(shape), node.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_norm(node: Node, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """Groups of channels by their own statistics; before opset 21 one gamma and beta a group, since then a channel."""
    groups = node.integer("num_groups", 1)
    if node.opset < 21:
        gamma, beta = (one.repeat_interleave(x.shape[1] // groups) for one in (gamma, beta))
    return F.group_norm(x, groups, gamma, beta, node.number("epsilon", 1e-5))


@operator("LRN")
def local_response_norm(node: Node, x: Tensor) -> Tensor:
    """x over a power of the mean square of the channels around."""
    alpha, beta, bias = node.number("alpha", 1e-4), node.number("beta", 0.75), node.number("bias", 1.0)
    return F.local_response_norm(x, node.integer("size", 1), alpha, beta, bias)


@operator("LpNormalization")
def lp_norm(node: Node, x: Tensor) -> Tensor:
    """x over its norm along an axis."""
    norm = torch.linalg.vector_norm(x, node.integer("p", 2), node.integer("axis", -1), keepdim=True)
    normed: Tensor = x / norm.masked_fill(norm == 0, 1.0)
    return normed


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


MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@operator("MaxPool")
def max_pool(node: Node, x: Tensor) -> Tensor:
    """The largest of each window; what is padded never is."""
    window = Window.of(node, x.shape[2:], node.integers("kernel_shape") or [])
    begin, end = window.begin, window.reach(x.shape[2:])
    if begin == end and all(2 * pad <= k for pad, k in zip(begin, window.kernel, strict=True)):
        padding = begin
    else:
        x, padding = F.pad(x, outer_pads(begin, end), value=-math.inf), [0] * len(begin)
    pooled: Tensor = MAX[len(begin)](x, window.kernel, window.strides, padding, window.dilations)
    return pooled


@operator("AveragePool")
def average_pool(node: Node, x: Tensor) -> Tensor:
    """The mean of each window, over what is of the image, or with count_include_pad over pads too.

    What ceil_mode adds beyond the pads never counts.
    """
    window = Window.of(node, x.shape[2:], node.integers("kernel_shape") or [])
    if any(dilation != 1 for dilation in window.dilations):
        raise ValueError("dilations are not covered")
    include = bool(node.integer("count_include_pad", 0))
    begin, end = window.begin, window.reach(x.shape[2:])
    function = AVERAGE[len(begin)]
    if begin == end == window.end and all(2 * pad <= k for pad, k in zip(begin, window.kernel, strict=True)):
        pooled: Tensor = function(x, window.kernel, window.strides, begin, False, include)
        return pooled
    ones = torch.ones_like(x[:1, :1])
    if include:
        ones = F.pad(ones, outer_pads(window.begin, window.end), value=1.0)
        rest = [reach - pad for reach, pad in zip(end, window.end, strict=True)]
        ones = F.pad(ones, outer_pads([0] * len(rest), rest))
    else:
        ones = F.pad(ones, outer_pads(begin, end))
    x = F.pad(x, outer_pads(begin, end))
    shares: Tensor = function(ones, window.kernel, window.strides)
    sums: Tensor = function(x, window.kernel, window.strides)
    return sums / shares


@plain("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """(n, c, ...) → (n, c, 1, ...)."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@plain("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """(n, c, ...) → (n, c, 1, ...)."""
    return x.amax(list(range(2, x.dim())), keepdim=True)
