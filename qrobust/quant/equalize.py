"""Cross-layer equalisation: ranges of neighbouring layers' channels made alike, so that one step suits all of them.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721: behind a
ReLU a channel may be divided by a positive number that the next layer's weights are multiplied by. What the network
computes stays.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from ..models.inference import norm_factor
from .graph import Shape, capture

SWEEPS = 20  # over all pairs; a chain of depthwise layers needs several
SMALLEST, LARGEST = 1e-3, 1e3  # factor of a channel in a sweep


@torch.no_grad()
def equalize(model: nn.Module, shape: Shape) -> nn.Module:
    """A copy whose channels have weights of like ranges before and behind them, where only ReLU stands between.

    model: a float network in eval mode, of images of `shape` (c, h, w). ReLU6 is no such function: a channel's bound
    would move.
    """
    copied = copy.deepcopy(model)
    pairs = list(_pairs(capture(copied, shape), dict(copied.named_modules())))
    for _ in range(SWEEPS if pairs else 0):
        for first, norm, second in pairs:
            _alike(first, norm, second)
    return copied


Pair = tuple[nn.Conv2d, nn.BatchNorm2d | None, nn.Conv2d]


def _pairs(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> Iterator[Pair]:
    """Convolutions of which the second alone reads the first, by way of batch-norm or not, and ReLU."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")

    def module(node: fx.Node | None) -> nn.Module | None:
        once = node is not None and node.op == "call_module" and calls[str(node.target)] == 1
        return modules.get(str(node.target)) if node is not None and once else None

    for node in graph.graph.nodes:
        norm, after = None, _only_reader(node)
        if isinstance(module(after), nn.BatchNorm2d):
            norm, after = module(after), _only_reader(after)
        first, second = module(node), module(_only_reader(after))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and _is_relu(after, graph):
            scaled = norm is None or norm.weight is not None
            if scaled and second.groups in (1, second.in_channels):
                yield first, norm, second  # type: ignore[misc]


def _only_reader(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _is_relu(node: fx.Node | None, graph: fx.GraphModule) -> bool:
    """A module of the network's, or one that stands for a function."""
    return node is not None and node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), nn.ReLU)


def _alike(first: nn.Conv2d, norm: nn.BatchNorm2d | None, second: nn.Conv2d) -> None:
    """Each channel's largest weight before and behind it becomes the geometric mean of both."""
    before = first.weight.abs().flatten(1).amax(1)
    if norm is not None:
        before = before * norm_factor(norm, None)[0].abs()
    depthwise, largest = second.groups == second.in_channels, second.weight.abs().flatten(2).amax(2)
    behind = largest.view(second.in_channels, -1).amax(1) if depthwise else largest.amax(0)
    factor = torch.where((before > 0) & (behind > 0), (behind / before).sqrt(), torch.ones_like(before))
    factor = factor.nan_to_num(1.0).clamp(SMALLEST, LARGEST)
    for tensor in (norm.weight, norm.bias) if norm is not None else (first.weight, first.bias):
        if tensor is not None:
            tensor.mul_(_over(factor, tensor))
    readers = factor.repeat_interleave(len(largest) // len(factor)) if depthwise else factor
    second.weight.div_(_over(readers, second.weight) if depthwise else readers.view(1, -1, 1, 1))


def _over(factor: Tensor, tensor: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (tensor.dim() - 1))
