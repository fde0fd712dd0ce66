"""Brevitas layers around our quantisers, and biases on the grid of their accumulators.

An integer convolution adds its bias to sums of s_x·s_w, so the bias is a whole number of those steps. At 8
bits the rounding is far below one step of the output; at 2 bits it is a tenth of one. Doing it in torch,
before a network is evaluated, lets the deployed integers equal what was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from ..models.inference import norm_factor
from ..spectrum.fat import FAT, Parameters, effective_weight
from ._brevitas import (
    ActQuantProxyFromInjector,
    ExtendedInjector,
    FloatToIntImplType,
    QuantConv2d,
    QuantIdentity,
    QuantLinear,
    WeightQuantProxyFromInjector,
)
from .quantizer import WEIGHT, Quantizer, QuantizerConfig, quantizers
from .reading import is_of_tokens, keeps_grid


class QuantizedConv2d(QuantConv2d):  # type: ignore[misc]  # Brevitas is not typed
    """Brevitas' convolution, which tells the weight that it convolves with: quantised, behind FAT."""

    computed: Parameters | None = None

    def compute(self) -> Parameters:
        """Weight (C_out, C_in/groups, kh, kw) on the quantiser's grid, and bias."""
        return effective_weight(self), self.bias

    def _weight(self) -> Tensor:
        return cast(Tensor, _quantizer(self.weight_quant)(self.weight)[0])

    def forward(self, x: Tensor) -> Tensor:
        """As Brevitas' own, past its proxies."""
        return cast(Tensor, self.inner_forward_impl(x, *(self.computed or self.compute())))


class QuantizedLinear(QuantLinear):  # type: ignore[misc]
    """Brevitas' linear layer, likewise."""

    computed: Parameters | None = None

    def compute(self) -> Parameters:
        """Weight (outputs, inputs) on the quantiser's grid, and bias."""
        return cast(Tensor, _quantizer(self.weight_quant)(self.weight)[0]), self.bias

    def forward(self, x: Tensor) -> Tensor:
        """As Brevitas' own, past its proxies."""
        return cast(Tensor, self.inner_forward_impl(x, *(self.computed or self.compute())))


class QuantizedActivation(QuantIdentity):  # type: ignore[misc]
    """Brevitas' identity that quantises."""

    computed: Tensor | None = None

    def compute(self) -> Tensor:
        """The clip."""
        return _quantizer(self.act_quant).effective_clip()

    def forward(self, x: Tensor) -> Tensor:
        """As Brevitas' own, past its proxies."""
        quantizer = _quantizer(self.act_quant)
        return cast(Tensor, quantizer(x)[0]) if self.computed is None else quantizer.quantize(x, self.computed)


def _quantizer(proxy: Any) -> Quantizer:
    """The quantiser inside a proxy; remembered, because every search costs."""
    if "own" not in vars(proxy):
        vars(proxy)["own"] = next(module for module in proxy.modules() if isinstance(module, Quantizer))
    return cast(Quantizer, vars(proxy)["own"])


def quantized_conv(conv: nn.Conv2d, bits: int, *, per_channel: bool, inner: bool, fat: FAT | None) -> nn.Module:
    """A Brevitas convolution with this one's weights, behind FAT if given."""
    layer: nn.Module = QuantizedConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, stride=conv.stride, padding=conv.padding,
        dilation=conv.dilation, groups=conv.groups, padding_mode=conv.padding_mode,
        bias=conv.bias is not None, weight_quant=_weight_quantizer(conv, bits, per_channel, inner),
    )  # fmt: skip
    _copy_parameters(conv, layer)
    if fat is not None:
        parametrize.register_parametrization(layer, "weight", fat)
    return layer


def quantized_linear(linear: nn.Linear, bits: int, *, per_channel: bool, inner: bool) -> nn.Module:
    """A Brevitas linear layer with this one's weights."""
    layer: nn.Module = QuantizedLinear(
        linear.in_features, linear.out_features, bias=linear.bias is not None,
        weight_quant=_weight_quantizer(linear, bits, per_channel, inner),
    )  # fmt: skip
    _copy_parameters(linear, layer)
    return layer


def quantized_activation(
    bits: int, *, signed: bool, inner: bool = False, fixed: bool = False, ceiling: float = math.inf
) -> nn.Module:
    """A Brevitas identity that quantises what passes through it.

    Unsigned it stands for relu; signed for hardtanh (inner: narrow range) or for what residual sums add.
    ceiling: where the function that it stands for saturates.
    """
    config = QuantizerConfig(signed, narrow=signed and inner, masked=not fixed, fixed=fixed, ceiling=ceiling)
    quantizer = Quantizer(bits, config, inner=inner)
    layer: nn.Module = QuantizedActivation(
        act_quant=_injector(quantizer, ActQuantProxyFromInjector), return_quant_tensor=False
    )
    _settle(layer.act_quant)
    return layer


def _weight_quantizer(layer: nn.Conv2d | nn.Linear, bits: int, per_channel: bool, inner: bool) -> Any:
    channels = layer.weight.shape[0] if per_channel else None
    quantizer = Quantizer(bits, WEIGHT, channels=channels, dims=layer.weight.dim(), inner=inner)
    return _injector(quantizer, WeightQuantProxyFromInjector)


def _injector(quantizer: Quantizer, proxy: type) -> Any:
    return ExtendedInjector.let(
        proxy_class=proxy,
        tensor_quant=quantizer,
        signed=quantizer.signed,
        narrow_range=quantizer.narrow,
        float_to_int_impl_type=FloatToIntImplType.ROUND,
    )


def _copy_parameters(source: nn.Module, layer: Any) -> None:
    layer.load_state_dict(source.state_dict(), strict=False)
    _settle(layer.weight_quant)


def _settle(proxy: Any) -> None:
    """Brevitas builds a quantiser anew when a weight is set or a state loaded; ours keeps what it learned."""
    proxy.init_tensor_quant = _keep
    proxy.skip_create_quant_tensor = True


def _keep(*_: Any, **__: Any) -> None:
    return None


def source_quantizer(node: fx.Node, modules: dict[str, nn.Module]) -> Quantizer | None:
    """The quantiser that made a node's input, found upwards through all that leaves values on their grid."""
    while node.all_input_nodes:
        node = node.all_input_nodes[0]
        module = modules.get(str(node.target))
        if isinstance(module, QuantIdentity):
            return next(quantizers(module))
        if not keeps_grid(node, module):
            return None
    return None


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
        if layer is None or source is None or (isinstance(layer, QuantLinear) and is_of_tokens(node)):
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
    factor, offset = norm_factor(norm, layer.bias, torch.float64)
    return norm.bias, offset, step * factor.abs()


def _weight_scale(layer: Any) -> Tensor:
    quantizer: Quantizer = layer.weight_quant.tensor_quant
    return quantizer.scale()
