"""What each operation of a network means to quantisation: the tables that say so."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

Targets = tuple[Callable[..., Any], ...]

LAYERS = (nn.Conv2d, nn.Linear)
ACTIVATIONS = (nn.ReLU, nn.Hardtanh)  # the clip of a quantiser does their work; relu6 is a hardtanh from 0 to 6
POSITIVE_FUNCTIONS = (nn.Sigmoid, nn.Hardsigmoid)
FUNCTIONS = (*POSITIVE_FUNCTIONS, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.GELU, nn.ELU, nn.Tanh)  # stay float

POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
POOL_FUNCTIONS: Targets = (F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean)

SUMS: Targets = (operator.add, torch.add)
DIFFERENCES: Targets = (operator.sub, torch.sub)
PRODUCTS: Targets = (operator.mul, torch.mul)
QUOTIENTS: Targets = (operator.truediv, torch.div)  # by a constant
CONCATENATIONS: Targets = (torch.cat, torch.concat, torch.concatenate)
ARITHMETIC: Targets = (*SUMS, *DIFFERENCES, *PRODUCTS, *QUOTIENTS, *CONCATENATIONS)

ON_GRID_FUNCTIONS: Targets = (
    operator.getitem, F.pad, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze,
    torch.unsqueeze, torch.unflatten, torch.chunk, torch.split,
)  # fmt: skip
PARTITIONS: Targets = (torch.chunk, torch.split)  # give several tensors
ON_GRID_MODULES = (
    nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d,
)  # fmt: skip
SIZE_METHODS = ("size", "dim")
SIZE_ATTRIBUTES = ("shape", "ndim")

SUPPORTED = (
    "Conv2d, Linear, BatchNorm2d, ReLU, ReLU6, Hardtanh, SiLU, Sigmoid, Hardswish, Hardsigmoid, LeakyReLU, GELU, ELU, "
    "Tanh, average and max pooling, Dropout, StochasticDepth, Flatten, reshaping, padding with zeros, +, -, *, cat"
)


def is_stochastic_depth(module: object) -> bool:
    """Whether this is torchvision's, which need not be installed or loaded to ask."""
    kind = type(module)
    return kind.__name__ == "StochasticDepth" and kind.__module__.startswith("torchvision.")


def is_size(node: fx.Node) -> bool:
    """Whether a node asks for a shape."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in SIZE_ATTRIBUTES
    return node.op == "call_method" and node.target in SIZE_METHODS


def keeps_grid(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node's output has its input's values, zeros or some of both, at inference."""
    if node.op == "call_function":
        return node.target in ON_GRID_FUNCTIONS and not _pads_with_others(node)
    return isinstance(module, ON_GRID_MODULES) or is_stochastic_depth(module)


def _pads_with_others(node: fx.Node) -> bool:
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return node.target is F.pad and value not in (None, 0)


def bounds(module: nn.ReLU | nn.Hardtanh) -> tuple[float, float]:
    """Lowest and highest value of an activation that a quantiser replaces."""
    return (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0.0, float("inf"))
