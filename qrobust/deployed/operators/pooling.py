"""Pools."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Node
from .table import operator, plain
from .windows import Window, outer_pads

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
