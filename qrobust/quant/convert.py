"""Putting quantisers into a trained network, by its traced graph."""

from __future__ import annotations

import copy
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import ModelError, did_you_mean
from ..models.statistics import statistics_anew
from ..spectrum import FAT_FORMS
from .layers import FAT, quantized_activation, quantized_conv, quantized_linear
from .quantizers import calibrating, quantizers

SUM_BITS = 8  # what a residual sum adds, and the inputs of edge layers; inner layers read `bits`
BITS = (2, 3, 4, 5, 6, 7, 8)
EDGE_LAYERS = ("int8", "float")
ADDITIONS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
ON_GRID_FUNCTIONS: tuple[Callable[..., Any], ...] = (operator.getitem, F.pad, torch.flatten)
ON_GRID_MODULES = (nn.Identity, nn.Flatten, nn.MaxPool2d, nn.Dropout)
ACTIVATIONS = (nn.ReLU, nn.Hardtanh)  # relu6 is a hardtanh from 0 to 6
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
SUPPORTED = "Conv2d, Linear, BatchNorm2d, ReLU, Hardtanh, average and max pooling, Flatten, additions"


def quantize(
    model: nn.Module,
    bits: int = 4,
    *,
    fat: str = "normalised",
    edge_layers: str = "int8",
    per_channel: bool = True,
    calibration: Iterable[Tensor] | None,
) -> nn.Module:
    """QM-n: a copy of a trained network whose inner layers have n-bit weights and read n-bit inputs.

    bits: 2 to 8. fat: "paper", "normalised", "identity" (standardised weights without a mask) or "none".
    edge_layers: the first convolution and the classifier keep "int8" or "float" weights and inputs.
    per_channel: one weight clip per output channel. calibration: batches (n, c, h, w) in [0,1] that
    place the clips and batch-norm's statistics, the network should then be trained on; None leaves
    them for weights that are loaded next.

    What residual sums add has 8 bits: they hold no product, and at n bits the sum would lose its small
    part. Raises ModelError for settings out of range or a module without a quantised form, by name.
    """
    _check(bits, fat, edge_layers)
    graph = _trace(model)
    _Conversion(graph, bits, fat, edge_layers, per_channel).run()
    graph.recompile()
    if calibration is not None:
        calibrate(graph, calibration)
    return graph


def requantize(model: nn.Module, bits: int, *, calibration: Iterable[Tensor]) -> nn.Module:
    """QM-n from another QM-m: a copy with the same weights and masks, another inner width and new clips.

    model: from `quantize`. Other arguments and errors as there.
    """
    _check(bits, "none", "int8")
    copied = copy.deepcopy(model)
    for quantizer in quantizers(copied):
        if quantizer.inner:
            quantizer.set_bits(bits)
    calibrate(copied, calibration)
    return copied


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Place clips and batch-norm statistics by batches of images in [0,1]; leaves the mode as it was."""
    count = 0
    with statistics_anew(model), calibrating(model):
        for x in batches:
            if not (x.min() >= 0 and x.max() <= 1):  # so that NaN is refused too
                raise ModelError(
                    f"expected calibration images in [0, 1], got [{x.min():.3g}, {x.max():.3g}]; "
                    "pass unnormalised images"
                )
            model(x)
            count += 1
    if not count:
        raise ModelError("expected at least one batch of calibration images, got none; pass some")


def _check(bits: int, fat: str, edge_layers: str) -> None:
    if bits not in BITS:
        raise ModelError(f"expected bits from 2 to 8 (32 is the float network), got {bits}")
    if fat not in (*FAT_FORMS, "none"):
        raise ModelError(f"expected a form of FAT, got {fat!r}{did_you_mean(fat, (*FAT_FORMS, 'none'))}")
    if edge_layers not in EDGE_LAYERS:
        raise ModelError(f"expected edge_layers 'int8' or 'float', got {edge_layers!r}")


def _trace(model: nn.Module) -> fx.GraphModule:
    try:
        graph = fx.symbolic_trace(copy.deepcopy(model))
    except Exception as error:  # torch.fx raises many kinds; all mean that control flow depends on data
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"expected a network that torch.fx can trace, got {reason}; make its forward static"
        ) from error
    _separate(graph)
    return graph


def _separate(graph: fx.GraphModule) -> None:
    """Every further call of one activation gets a copy, and so a clip of its own."""
    calls: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        module = graph.get_submodule(target)
        calls[target] += 1
        if calls[target] > 1 and isinstance(module, (nn.Conv2d, nn.Linear)):
            raise ModelError(f"expected layers called once, got {target} twice; give every call its own layer")
        if calls[target] > 1 and isinstance(module, ACTIVATIONS):
            node.target = _unused(graph, f"{target}_{calls[target]}")
            graph.add_submodule(node.target, copy.deepcopy(module))


def _unused(graph: fx.GraphModule, name: str) -> str:
    taken = dict(graph.named_modules())
    while name in taken:
        name += "_"
    return name


@dataclass
class _Conversion:
    """One walk over the graph. `grid`, `signed`: whether a node's output is on a quantiser's grid, signed."""

    graph: fx.GraphModule
    bits: int
    fat: str
    edge_layers: str
    per_channel: bool
    grid: dict[fx.Node, bool] = field(default_factory=dict)
    signed: dict[fx.Node, bool] = field(default_factory=dict)

    def run(self) -> None:
        """Replace and insert, in the order of execution."""
        layers = [node for node in self.graph.graph.nodes if isinstance(self._module(node), (nn.Conv2d, nn.Linear))]
        if not any(isinstance(self._module(node), nn.Conv2d) for node in layers):
            raise ModelError("expected a network with a convolution, got none; there is nothing to quantise")
        self.edges = {node for node in layers if isinstance(self._module(node), nn.Linear)}
        self.edges |= {node for node in layers if node.all_input_nodes[0].op == "placeholder"}
        self.inner = set(layers) - self.edges
        for node in list(self.graph.graph.nodes):
            self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        module = self._module(node)
        self.grid[node], self.signed[node] = False, True
        if node.op == "placeholder":
            self.signed[node] = False
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            self._layer(node, module)
        elif isinstance(module, ACTIVATIONS):
            self._activation(node, module)
        elif node.op == "call_function" and node.target in ADDITIONS:
            self._addition(node)
        elif self._keeps_grid(node, module):
            source = node.all_input_nodes[0]
            self.grid[node], self.signed[node] = self.grid[source], self.signed[source]
        elif isinstance(module, POOLS):
            self.signed[node] = self.signed[node.all_input_nodes[0]]
        elif node.op != "output" and not isinstance(module, nn.BatchNorm2d):
            kind = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
            raise ModelError(f"{node.name}: no quantised form of {kind}; supported: {SUPPORTED}")

    def _layer(self, node: fx.Node, layer: nn.Conv2d | nn.Linear) -> None:
        edge = node in self.edges
        if edge and self.edge_layers == "float":
            return
        source = node.all_input_nodes[0]
        if not self.grid[source]:
            self._insert(source, node, inner=not edge)
        bits = SUM_BITS if edge else self.bits
        new: nn.Module
        if isinstance(layer, nn.Linear):
            new = quantized_linear(layer, bits, per_channel=self.per_channel, inner=not edge)
        else:
            fat = None if edge or self.fat == "none" else self._fat(node, layer)
            new = quantized_conv(layer, bits, per_channel=self.per_channel, inner=not edge, fat=fat)
        self.graph.set_submodule(str(node.target), new)

    def _fat(self, node: fx.Node, conv: nn.Conv2d) -> FAT:
        users = [self._module(user) for user in node.users]
        return FAT(conv.out_channels, self.fat, rescale=not all(isinstance(m, nn.BatchNorm2d) for m in users))

    def _activation(self, node: fx.Node, module: nn.ReLU | nn.Hardtanh) -> None:
        """The clip of the quantiser does what relu and hardtanh do."""
        low, high = (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0.0, math.inf)
        if low not in (0, -high):
            raise ModelError(f"{node.name}: expected a hardtanh from 0 or symmetric, got {low:g} to {high:g}")
        inner = any(reader in self.inner for reader in self._readers(node))
        bits = self.bits if inner else SUM_BITS
        layer = quantized_activation(bits, signed=low < 0, inner=inner, ceiling=high)
        self.graph.set_submodule(str(node.target), layer)
        self.grid[node], self.signed[node] = True, low < 0

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Who reads a node's values, past all that leaves them on their grid."""
        for user in node.users:
            if self._keeps_grid(user, self._module(user)):
                yield from self._readers(user)
            else:
                yield user

    def _addition(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if not self.grid[source]:
                self._insert(source, node, inner=False)

    def _insert(self, source: fx.Node, reader: fx.Node, *, inner: bool) -> None:
        while self._keeps_grid(source, self._module(source)):  # so that a pool's own output is quantised
            source, reader = source.all_input_nodes[0], source
        fixed = source.op == "placeholder"  # pixels: 256 steps of 1/255 hold a camera's image exactly
        inner = inner and not fixed
        bits = self.bits if inner else SUM_BITS
        layer = quantized_activation(bits, signed=self.signed[source], inner=inner, fixed=fixed)
        name = _unused(self.graph, f"{source.name}_quant")
        self.graph.add_submodule(name, layer)
        with self.graph.graph.inserting_after(source):
            inserted = self.graph.graph.call_module(name, (source,))
        reader.replace_input_with(source, inserted)
        self.grid[inserted], self.signed[inserted] = True, self.signed[source]
        self.grid[reader] = self.grid[reader] or self._keeps_grid(reader, self._module(reader))

    def _keeps_grid(self, node: fx.Node, module: nn.Module | None) -> bool:
        if node.op == "call_function":
            return node.target in ON_GRID_FUNCTIONS
        return isinstance(module, ON_GRID_MODULES)

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.graph.get_submodule(str(node.target)) if node.op == "call_module" else None
