"""What a network costs to keep and to run: bytes, multiply-accumulates, bit operations, and how many weights are 0."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..errors import ModelError
from ..models.inference import frozen
from ._brevitas import QuantConv2d, QuantIdentity, QuantLinear
from .layers import source_quantizer
from .placement import FLOAT_BITS
from .quantizer import quantizers
from .training import bits_per_layer

NUMBER_BYTES = 4  # a bias is int32 or float32, a scale float32
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class LayerCost:
    """Of one convolution or linear layer, for one image.

    weight_bits, activation_bits: widths of its weights and of its input, 32 for a float layer.
    zeros: how many of its `weights` are 0 after FAT and quantiser. steps: the smallest and the largest step of its
    weights' grids, batch-norm not folded; None for a float layer.
    """

    weight_bits: int
    activation_bits: int
    macs: int
    weights: int
    zeros: int
    steps: tuple[float, float] | None = None

    @property
    def bops(self) -> int:
        """Bit operations, macs · weight_bits · activation_bits."""
        return self.macs * self.weight_bits * self.activation_bits

    @property
    def size_bytes(self) -> int:
        """The weights packed at their width, up to a whole byte."""
        return -(-self.weights * self.weight_bits // 8)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"bops": self.bops, "zero_share": self.zeros / self.weights}


@dataclass(frozen=True)
class Cost:
    """layers: by module path. biases, scales: how many such numbers stand beside the weights. other_macs: of products
    that are no layer's, as attention's, for one image.
    """

    layers: dict[str, LayerCost]
    biases: int
    scales: int
    other_macs: int = 0

    @property
    def size_bytes(self) -> int:
        """Every layer's packed weights, and four bytes for each bias and each scale."""
        return sum(layer.size_bytes for layer in self.layers.values()) + NUMBER_BYTES * (self.biases + self.scales)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        return sum(layer.macs for layer in self.layers.values())

    @property
    def integer_share(self) -> float:
        """Share of all multiply-accumulates, attention's too, whose weight and input are integers."""
        whole = (layer for layer in self.layers.values() if max(layer.weight_bits, layer.activation_bits) < FLOAT_BITS)
        return sum(layer.macs for layer in whole) / (self.macs + self.other_macs)

    @property
    def bops(self) -> int:
        """Bit operations for one image."""
        return sum(layer.bops for layer in self.layers.values())

    @property
    def zero_share(self) -> float | None:
        """Share of all quantised weights that are 0; None for a float network."""
        quantised = [layer for layer in self.layers.values() if layer.weight_bits < FLOAT_BITS]
        return (
            sum(layer.zeros for layer in quantised) / sum(layer.weights for layer in quantised) if quantised else None
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "size_bytes": self.size_bytes,
            "macs": self.macs,
            "other_macs": self.other_macs,
            "integer_share": self.integer_share,
            "bops": self.bops,
            "zero_share": self.zero_share,
            "biases": self.biases,
            "scales": self.scales,
            "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
        }


def cost(model: nn.Module, example: Tensor) -> Cost:
    """The cost of a float network or of one from `quantize`, measured by one forward pass in eval mode.

    example: images (n, c, h, w) of the size that is to be counted; the counts are per image, whatever n is.

    Size is that of the network as it is deployed, with batch-norm folded. Counted are the weights of
    convolutions and linear layers at their true width (a file may hold them wider); one bias per output
    channel of a layer that has one or whose output goes into a batch-norm; one scale per weight clip, or per
    output channel where a batch-norm is folded; one scale per quantised activation; and two numbers per
    channel of a batch-norm that reads something else. What else holds parameters, and layers called as
    functions, are not counted.

    macs: outputs · inputs that each one sums, with those that padding sets to 0. bops: macs · bits of weights ·
    bits of inputs, as van Baalen et al. 2020 count them (Bayesian Bits, arXiv 2005.07093); Baskin et al. (UNIQ,
    arXiv 1804.10969) add the accumulator's width. The sums of residual blocks, pooling and batch-norm are free.

    Raises ModelError for a quantised network inside another module, where widths cannot be followed.
    """
    weight_bits, input_bits = bits_per_layer(model), _input_bits(model)
    counter = FlopCounterMode(display=False)
    with frozen(model, fold=False), torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH), counter:  # attention as the two products that it is
            seen = _listen(model, example)
        layers = {
            name: LayerCost(
                weight_bits[name],
                _activation_bits(name, layer, input_bits),
                seen.values[layer] // len(example) * layer.weight[0].numel(),
                layer.weight.numel(),
                _zeros(layer),
                _steps(layer),
            )
            for name, layer in model.named_modules()
            if isinstance(layer, (nn.Conv2d, nn.Linear))
        }
        every = counter.get_total_flops() // 2 // len(example)
        return Cost(layers, *_count_numbers(model, seen), max(0, every - sum(one.macs for one in layers.values())))


class _Listener:
    """`values`: outputs of each layer; `folded`: layers whose output a batch-norm reads; `loose`: other batch-norms."""

    def __init__(self) -> None:
        self.values: Counter[nn.Module] = Counter()
        self.folded: set[nn.Module] = set()
        self.loose: set[nn.Module] = set()
        # Tensors are kept, so that no other gets the id of one, with their version, which work in place raises.
        self._made: dict[int, tuple[Tensor, int, nn.Module]] = {}

    def layer(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self.values[module] += output.numel()
        self._made[id(output)] = (output, output._version, module)

    def norm(self, module: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = args[0] if args else named["input"]
        _, version, source = self._made.get(id(x), (None, None, module))
        if version == x._version:
            self.folded.add(source)
        else:
            self.loose.add(module)


def _listen(model: nn.Module, example: Tensor) -> _Listener:
    listener = _Listener()
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                stack.enter_context(module.register_forward_hook(listener.layer))
            elif isinstance(module, NORMS):
                stack.enter_context(module.register_forward_pre_hook(listener.norm, with_kwargs=True))
        model(example)
    return listener


def _zeros(layer: nn.Conv2d | nn.Linear) -> int:
    weight = layer.weight
    for quantizer in quantizers(layer):
        weight = quantizer(weight)[0]
    return int((weight == 0).sum())


def _steps(layer: nn.Module) -> tuple[float, float] | None:
    scales = [quantizer.scale() for quantizer in quantizers(layer)]
    return (min(s.min().item() for s in scales), max(s.max().item() for s in scales)) if scales else None


def _count_numbers(model: nn.Module, seen: _Listener) -> tuple[int, int]:
    """(biases, scales)."""
    biases = scales = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            channels, folded = len(module.weight), module in seen.folded
            biases += channels if folded or module.bias is not None else 0
            scales += sum(channels if folded else quantizer.clip.numel() for quantizer in quantizers(module))
        elif isinstance(module, QuantIdentity):
            scales += sum(quantizer.clip.numel() for quantizer in quantizers(module))
        elif module in seen.loose and isinstance(module, NORMS):
            biases += module.num_features
            scales += module.num_features
    return biases, scales


def _activation_bits(name: str, layer: nn.Module, input_bits: dict[str, int]) -> int:
    if not isinstance(layer, (QuantConv2d, QuantLinear)):
        return FLOAT_BITS
    if name not in input_bits:
        raise ModelError(
            f"{name}: expected an input from a quantiser, got none; pass the network that quantize returned"
        )
    return input_bits[name]


def _input_bits(model: nn.Module) -> dict[str, int]:
    """Width of what each layer reads from a quantiser, by the layer's path."""
    if not isinstance(model, fx.GraphModule):
        return {}
    modules = dict(model.named_modules())
    found = {
        str(node.target): source_quantizer(node, modules) for node in model.graph.nodes if node.op == "call_module"
    }
    return {name: quantizer.bits for name, quantizer in found.items() if quantizer is not None}
