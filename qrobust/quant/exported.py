"""What torch.export reads of a quantised network: each Brevitas layer as a small module whose quantisers are one
operator, with scales computed already.

Networks of ours and those that were made with Brevitas' own quantisers come to the same form here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExportError
from ._brevitas import IntQuantTensor, QuantNLAL, QuantWBIOL
from .layers import QuantizedActivation, QuantizedConv2d, QuantizedLinear
from .operator import QUANTIZE
from .quantizer import Quantizer, integer_range, quantizers

FLOAT_BITS, MOST_BITS = 32, 8


@dataclass(frozen=True)
class Grid:
    """The levels low..high of a quantiser; its values are (level - zero_point)·scale, zero_point None for 0."""

    scale: Tensor
    zero_point: Tensor | None
    low: int
    high: int

    @staticmethod
    def of(quantizer: Quantizer) -> Grid:
        """Of one of ours."""
        return Grid(quantizer.scale().detach(), None, quantizer.low, quantizer.high)


class ExportedActivation(nn.Module):
    """What quantises an activation; before it may stand a function, as in Brevitas' QuantReLU."""

    scale: Tensor
    zero_point: Tensor | None

    def __init__(self, grid: Grid, before: nn.Module | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", grid.zero_point)
        self.low, self.high, self.before = grid.low, grid.high, before

    def forward(self, x: Tensor) -> Tensor:
        """x on the grid."""
        x = x if self.before is None else self.before(x)
        quantised: Tensor = QUANTIZE(x, self.scale, self.zero_point, self.low, self.high)
        return quantised


class ExportedLayer(nn.Module):
    """A convolution or linear layer of Brevitas with a weight on a grid, or in float where `grid` is None."""

    def __init__(self, layer: Any, weight: Tensor, grid: Grid | None) -> None:
        super().__init__()
        self.compute = layer.inner_forward_impl  # bound: the layer, which knows strides and pads, is no module of this
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.grid = grid
        if grid is not None:
            self.register_buffer("scale", grid.scale)
            self.register_buffer("zero_point", grid.zero_point)
        self.input_quant, self.output_quant = _activation(layer.input_quant), _activation(layer.output_quant)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        x = x if self.input_quant is None else self.input_quant(x)
        weight: Any = self.weight
        if self.grid is not None:
            weight = QUANTIZE(weight, self.scale, self.zero_point, self.grid.low, self.grid.high)
        y: Tensor = self.compute(x, weight, self.bias)
        return y if self.output_quant is None else self.output_quant(y)


@torch.no_grad()
def as_exported(model: nn.Module) -> nn.Module:
    """A network in eval mode with its Brevitas layers in the form that torch.export reads, in place; or what stands
    for it if it is such a layer itself. Parameters are shared, not copied. Raises ExportError for a quantiser that no
    scale and zero point describe.
    """
    for path, layer in list(_layers(model)):
        try:
            made = _exported(layer)
        except ExportError as error:
            raise ExportError(f"{path or type(layer).__name__}: {error}") from error
        if not path:
            return made
        model.set_submodule(path, made)
    return model


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Under every path that one has."""
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (QuantWBIOL, QuantNLAL)):
            yield path, module


def _exported(layer: Any) -> nn.Module:
    if isinstance(layer, QuantizedActivation):
        return ExportedActivation(Grid.of(next(quantizers(layer))))
    if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
        return ExportedLayer(layer, layer.weight, Grid.of(next(quantizers(layer.weight_quant))))
    if isinstance(layer, QuantWBIOL):
        return ExportedLayer(layer, *_weight(layer))
    parts = [one for one in (_activation(layer.input_quant), _activation(layer.act_quant)) if one is not None]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _weight(layer: Any) -> tuple[Tensor, Grid | None]:
    """Of a layer with Brevitas' own quantisers."""
    if layer.bias is not None and layer.bias_quant.is_quant_enabled and not layer.bias_quant.requires_input_scale:
        raise ExportError(
            "expected biases in float or on the grid of their sums, got a scale of their own; leave it out"
        )
    if not layer.weight_quant.is_quant_enabled:
        return layer.weight, None
    quantised = layer.quant_weight()
    return quantised.value, _grid(layer.weight_quant, quantised)


def _activation(proxy: Any) -> nn.Module | None:
    """Of Brevitas' own; None where nothing is done."""
    if proxy.fused_activation_quant_proxy is None:
        return None
    before: nn.Module | None = proxy.fused_activation_quant_proxy.activation_impl
    before = None if isinstance(before, nn.Identity) else before
    if not proxy.is_quant_enabled:
        return before
    try:
        grid = _grid(proxy, proxy.internal_forward(True))
    except RuntimeError as error:
        raise ExportError(f"expected a scale that hangs on no image, got: {error}; use a fixed one") from error
    if isinstance(before, nn.ReLU) and grid.low == 0 and grid.zero_point is None:  # the lowest level does its work
        before = None
    return ExportedActivation(grid, before)


def _grid(proxy: Any, quantised: Any) -> Grid:
    """Of what a quantiser gives."""
    bits = int(quantised.bit_width) if isinstance(quantised, IntQuantTensor) else FLOAT_BITS
    if bits > MOST_BITS:
        raise ExportError(
            f"expected integers of 2 to {MOST_BITS} bits, got {type(quantised).__name__}, {bits} bits; use those"
        )
    if str(proxy.rounding_mode).upper() != "ROUND":
        raise ExportError(f"expected rounding to the nearest level, got {proxy.rounding_mode}; use ROUND")
    low, high = integer_range(bits, signed=proxy.is_signed, narrow=bool(proxy.is_narrow_range))
    scale, zero_point = quantised.scale.detach(), quantised.zero_point.detach()
    return Grid(scale, zero_point if zero_point.any() else None, low, high)
