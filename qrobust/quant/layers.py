"""Brevitas layers around our quantisers, biases on the grid of their accumulators, and scales that avoid ties.

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
from .reading import DIFFERENCES, POOL_FUNCTIONS, PRODUCTS, SUMS, divides, is_of_tokens, keeps_grid


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
    return _quantizer_of(node.all_input_nodes[0], modules) if node.all_input_nodes else None


def _quantizer_of(node: fx.Node, modules: dict[str, nn.Module]) -> Quantizer | None:
    """The quantiser on whose grid a node's values lie."""
    module = modules.get(str(node.target))
    if isinstance(module, QuantIdentity):
        return next(quantizers(module), None)  # Brevitas' own are not ours
    return source_quantizer(node, modules) if keeps_grid(node, module) else None


NEAR = 0.05  # of a step: what float32 leaves of a rounded bias


@torch.no_grad()
def round_biases(model: fx.GraphModule) -> float:
    """Round, in place, every integer layer's bias, batch-norm folded in thought, to the accumulator's grid.

    With step = s_x·s_w·|γ|/σ per channel: β ← γμ/σ + step·round((β - γμ/σ) / step); without batch-norm the
    bias itself is rounded. Before, scales that put frequent integers on a tie are moved: `avoid_ties`.
    Returns the largest change in units of one step (at most 0.5).
    """
    avoid_ties(model)
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


# Of what float32 leaves of a sum: how far, as a share of its operands, two ways to compute it may differ.
ROUNDING = 2.0**-22
TIED = 1e-5  # share of values that may lie so near a tie: as of a layer with a multiplier for each channel
NUDGE, NUDGES = 1e-4, 100  # share of a scale that it is changed by, and at most how many times that


@torch.no_grad()
def avoid_ties(model: fx.GraphModule) -> dict[str, float]:
    """Change, in place, the scale of a quantiser behind a sum, difference, product or mean of integers where frequent
    ones lie so near the middle of two steps that float32's roundings decide: by the smallest of ±0.01 %, ±0.02 % … ±1 %
    that leaves fewer than one in 10^5 there. One pair of integers is thousands of values, and each runtime computes
    a sum in its own order.

    A small integer is taken to be as frequent as 1 / (1 + |integer|). Returns the factors by path of the quantiser.
    """
    modules, changed = dict(model.named_modules()), dict[str, float]()
    for node in model.graph.nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        quantizer = next(quantizers(module), None) if isinstance(module, QuantIdentity) else None
        found = None if quantizer is None or quantizer.fixed else _computed(node.all_input_nodes[0], modules)
        if quantizer is None or found is None:
            continue
        clip = quantizer.clip.clone()
        shares = dict[float, float]()
        for factor in (1.0, *(1 + NUDGE * sign * step for step in range(1, NUDGES + 1) for sign in (1, -1))):
            quantizer.clip.copy_(clip * factor)
            shares[factor] = _tied(quantizer, *found)
            if shares[factor] <= TIED:
                break
        best = min(shares, key=lambda factor: shares[factor])
        quantizer.clip.copy_(clip * best)
        if best != 1:
            changed[str(node.target)] = best
    return changed


def _tied(quantizer: Quantizer, value: Tensor, operands: Tensor, weight: Tensor) -> float:
    """Share, by weight, of the values whose rounding float32 decides."""
    scale = float(quantizer.scale())
    steps = value / scale
    distance = (steps - steps.floor() - 0.5).abs()
    tied = (distance <= operands / scale * ROUNDING) & (steps > quantizer.low - 1) & (steps < quantizer.high + 1)
    return float((weight * tied).sum() / weight.sum())


def _computed(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Tensor, Tensor, Tensor] | None:
    """All values that arithmetic on one or two grids can give, the sizes of what they are computed from, and how
    frequent they are; None for other nodes.
    """
    grids = [_quantizer_of(source, modules) for source in node.all_input_nodes]
    levels = [_integers(grid.low, grid.high) for grid in grids if grid is not None]
    scales = [grid.scale().double().cpu() for grid in grids if grid is not None]
    if len(levels) < len(grids) or any(scale.dim() for scale in scales):
        return None
    if len(levels) == 1 and (count := _averaged(node, modules)):
        mean = _integers(count * int(levels[0][0]), count * int(levels[0][-1])) / count
        return mean * scales[0], mean.abs() * scales[0], 1 / (1 + mean.abs())
    if len(levels) != 2 or len(node.args) != 2 or node.op != "call_function" or node.kwargs:
        return None
    one, two = levels[0][:, None] * scales[0], levels[1] * scales[1]
    weight = 1 / ((1 + levels[0].abs())[:, None] * (1 + levels[1].abs()))
    if node.target in PRODUCTS:
        return one * two, (one * two).abs(), weight
    if node.target in (*SUMS, *DIFFERENCES):
        return one + (two if node.target in SUMS else -two), one.abs() + two.abs(), weight
    return None


def _integers(low: int, high: int) -> Tensor:
    return torch.arange(low, high + 1, dtype=torch.float64)


def _averaged(node: fx.Node, modules: dict[str, nn.Module]) -> int:
    """How many numbers a pool takes the mean of; 0 where it is no such pool, or of several sizes."""
    module = modules.get(str(node.target))
    if isinstance(module, nn.AvgPool2d):
        kernel = module.kernel_size
        return kernel * kernel if isinstance(kernel, int) else math.prod(kernel)
    if not isinstance(module, nn.AdaptiveAvgPool2d) and node.target not in POOL_FUNCTIONS:
        return 0
    before, after = ((one.meta.get("shape") or (None, None))[1:] for one in (node.all_input_nodes[0], node))
    if not all(size and size > 0 for size in (*before, *after)) or not divides(node):
        return 0
    return int(math.prod(before) / math.prod(after))
