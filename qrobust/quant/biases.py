"""Biases on the grid of the integer accumulator.

An integer convolution adds its bias to sums of s_x·s_w, so the bias is a whole number of those steps. At 8
bits the rounding is far below one step of the output; at 2 bits it is a tenth of one. Doing it in torch,
before a network is evaluated, lets the deployed integers equal what was evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._brevitas import QuantConv2d, QuantLinear
from .quantizers import Quantizer
from .sources import source_quantizer

NEAR = 0.05  # of a step: what float32 leaves of a rounded bias


@torch.no_grad()
def round_biases(model: fx.GraphModule) -> float:
    """Round, in place, every integer layer's bias, batch-norm folded in thought, to the accumulator's grid.

    With step = s_x·s_w·|γ|/σ per channel: β ← γμ/σ + step·round((β - γμ/σ) / step); without batch-norm the
    bias itself is rounded. Returns the largest change in units of one step (at most 0.5).
    """
    largest = 0.0
    for _, bias, offset, step in _biases(model):
        units = (bias.double() - offset) / step.clamp_min(1e-300)
        rounded = torch.where(step > 0, offset + units.round() * step, bias.double())
        bias.copy_(rounded.to(bias.dtype))
        change = (units - units.round()).abs()[step > 0]
        largest = max(largest, float(change.max()) if len(change) else 0.0)
    return largest


@torch.no_grad()
def first_unrounded(model: nn.Module) -> str | None:
    """Path of the first integer layer whose bias lies between two steps, so that its file would compute another sum."""
    for path, bias, offset, step in _biases(model) if isinstance(model, fx.GraphModule) else ():
        units = (bias.double() - offset) / step.clamp_min(1e-300)
        digits = (bias.double().abs() + offset.abs()) * 2**-22 / step.clamp_min(1e-300)  # of float32
        if bool((((units - units.round()).abs() > NEAR + digits) & (step > 0)).any()):
            return path
    return None


def _biases(model: fx.GraphModule) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Of integer layers with a bias: path, the tensor that holds it, and offset and step of its grid by channel."""
    modules = dict(model.named_modules())
    for node in model.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        source = source_quantizer(node, modules) if isinstance(layer, (QuantConv2d, QuantLinear)) else None
        if layer is None or source is None:
            continue
        follower = modules.get(str(next(iter(node.users)).target)) if len(node.users) == 1 else None
        norm = follower if isinstance(follower, nn.BatchNorm2d) else None
        grid = _grid(layer, norm, source.scale())
        if grid is not None:
            yield str(node.target), *grid


def _grid(layer: Any, norm: nn.BatchNorm2d | None, x_scale: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    step = (x_scale.double() * _weight_scale(layer).double().flatten()).expand(layer.weight.shape[0])
    if norm is None:
        return None if layer.bias is None else (layer.bias, torch.zeros_like(step), step)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    inner = norm.running_mean.double() - (0 if layer.bias is None else layer.bias.double())
    return norm.bias, factor * inner, step * factor.abs()


def _weight_scale(layer: Any) -> Tensor:
    quantizer: Quantizer = layer.weight_quant.tensor_quant
    return quantizer.scale()
