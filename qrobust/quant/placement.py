"""Which layer has how many bits, and where quantisers go.

A value is made by one node and read by others, past those that leave it on its grid. Who reads it decides:

    relu, hardtanh             become a quantiser, of the width that the layers behind read, else of 8 bits
    anything else              8 bits for sums, products, concatenations, pools and functions, and for who
                               else reads it; behind that, if layers read it too, another of their width

One quantiser stands directly behind a convolution: onnxruntime makes an integer convolution of one whose
output goes to a single quantiser, and of no other. That is why functions (SiLU) and pools read quantised
values too, and why the quantiser of layers stands behind the one of sums and not beside it. A concatenation
needs no grid that its inputs share: QLinearConcat reads one scale for each input, and it takes a quantiser
behind, which the layers that read it put there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import fx, nn

from ..errors import ModelError, did_you_mean
from ..spectrum.fat import FAT
from .forms import Attention
from .graph import unused_name
from .layers import quantized_activation, quantized_conv, quantized_linear
from .quantizer import quantizers
from .reading import ACTIVATIONS, LAYERS, PARTITIONS, Reading, bounds

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
BITS = (2, 3, 4, 5, 6, 7, 8)
FLOAT_BITS = 32
EDGE_BITS = 8
EVERY = "*"  # the network's n: for inner layers, and what `requantize` changes

Bits = int | Mapping[str, int]


@dataclass(frozen=True)
class Width:
    """Bits of a layer: of its weight (32 is float) and of what it reads; which of the two follow the network's n.

    edge: whether the layer is kept apart, and no pattern says otherwise.
    """

    weight: int
    reads: int
    weight_follows: bool
    reads_follow: bool
    edge: bool


def check_bits(bits: Bits, name: str = "bits") -> None:
    """Raises ModelError unless these are 2 to 8, or patterns with 2 to 8 or (for `bits`) 32."""
    if not isinstance(bits, Mapping):
        if not _is_width(bits):
            raise ModelError(f"expected {name} from 2 to 8 (32 is the float network), got {bits}")
        return
    for pattern, width in bits.items():
        if not _is_width(width) and not (width == FLOAT_BITS and name == "bits"):
            also = ", or 32 to stay in float" if name == "bits" else ""
            raise ModelError(f"{pattern}: expected {name} from 2 to 8{also}, got {width}")


def layer_widths(
    names: Collection[str],
    edges: Mapping[str, str],
    *,
    bits: Bits,
    activation_bits: Bits | None,
) -> dict[str, Width]:
    """The width of every layer by its path. edges: those of `names` that are kept apart, "float" or "int8".

    The last pattern that matches decides. An edge layer leaves "*" aside, unless another pattern names it. Raises
    ModelError for a pattern that decides nothing, and for an inner layer that none matches.
    """
    check_bits(bits)
    weights = _Patterns(bits, names, edges)
    reads = _Patterns({} if activation_bits is None else activation_bits, names, edges)
    if activation_bits is not None:
        check_bits(activation_bits, "activation_bits")
    return {name: _width(name, edges.get(name), weights, reads) for name in names}


def _width(name: str, apart: str | None, weights: _Patterns, reads: _Patterns) -> Width:
    edge = apart is not None
    pattern, weight = weights.of(name, edge)
    read_pattern, read = reads.of(name, edge)
    if pattern is None and not edge:
        raise ModelError(f'expected bits for every layer, got none for {name}; begin with {{"*": 4}}')
    if pattern is None:
        weight = FLOAT_BITS if apart == "float" else EDGE_BITS
    follows = pattern == EVERY
    return Width(
        weight=weight,
        reads=weight if read_pattern is None else read,
        weight_follows=follows,
        reads_follow=follows and read_pattern is None,
        edge=edge and pattern is None and read_pattern is None,
    )


class _Patterns:
    """Patterns with widths, each of which decides for one of `names` at least."""

    def __init__(self, bits: Bits, names: Collection[str], edges: Collection[str]) -> None:
        self.bits = dict(bits) if isinstance(bits, Mapping) else {EVERY: bits}
        deciding = {self.of(name, name in edges)[0] for name in names}
        for pattern in self.bits:
            if not any(_matches(name, pattern) for name in names):
                known = _known(pattern, names)
                raise ModelError(f"expected a layer's name or a pattern of them, got {pattern!r}{known}")
            if pattern not in deciding and pattern != EVERY:
                raise ModelError(
                    f"expected widths from general to special, got {pattern!r} before what overrides it all"
                )

    def of(self, name: str, edge: bool) -> tuple[str | None, int]:
        """The pattern that decides and its width, or None and 0."""
        matching = [p for p in self.bits if _matches(name, p) and not (edge and p == EVERY)]
        return (matching[-1], self.bits[matching[-1]]) if matching else (None, 0)


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern is a layer's, or that of a module which holds it."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _known(pattern: str, names: Collection[str]) -> str:
    holders = {name.rsplit(".", depth)[0] for name in names for depth in range(1, name.count(".") + 1)}
    wild = {f"{holder}.*" for holder in holders}
    return did_you_mean(pattern, wild if wild and "*" in pattern else {*names, *holders})


def _is_width(bits: object) -> bool:
    return isinstance(bits, int) and bits in BITS


SUM_BITS = 8  # of what sums, products, functions and pools read: they hold no product of weights
# How a node reads: at its width; at 8 bits; 8 bits if they are there (batch-norm, relu); whatever there is; as floats.
LAYER, OPERAND, EITHER, ANY, RAW = "layer", "operand", "either", "any", "raw"


@dataclass(frozen=True)
class Style:
    """What a placement does besides widths: as `QuantConfig` says of the same names."""

    fat: str
    per_channel: bool
    shortcuts: str
    full_range: bool


@dataclass
class Placement:
    """Puts quantisers into a graph. widths: of every layer of `reading`.

    least: paths of quantisers that follow the network's n, and the width that other layers ask of them.
    """

    reading: Reading
    widths: dict[fx.Node, Width]
    style: Style
    least: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Replace layers and activations and insert quantisers, in the order of execution."""
        self.graph = self.reading.graph
        for node in [node for node in self.graph.graph.nodes if self._makes_values(node)]:
            module = self.reading.module(node)
            if isinstance(module, ACTIVATIONS) and self._is_clip(node):
                self._replace_activation(node, module)
            else:
                self._quantise(node, on_grid=False)
        for node in self.reading.layers:
            self._replace_layer(node)

    def _makes_values(self, node: fx.Node) -> bool:
        return node.op != "output" and node not in self.reading.plain and not self.reading.keeps(node)

    def _readers(self, node: fx.Node) -> set[fx.Node]:
        """Who reads a node's values, past all that leaves them on their grid: the node itself if it does."""
        if node in self.reading.plain:
            return set()
        if node.op == "output" or not self.reading.keeps(node):
            return {node}
        return {reader for user in node.users for reader in self._readers(user)}

    def _needs(self, node: fx.Node) -> set[str]:
        return {self._need(reader) for reader in self._readers(node)}

    def _need(self, reader: fx.Node) -> str:
        if reader in self.widths:
            return RAW if self.widths[reader].weight == FLOAT_BITS else LAYER
        if reader.op == "output" or reader in self.reading.of_image:
            return RAW
        if reader in self.reading.floats:
            return RAW if reader in self.reading.float_sums else ANY
        return OPERAND if self.reading.computes(reader) else EITHER

    def _layers(self, nodes: list[fx.Node]) -> list[Width]:
        readers = {reader for node in nodes for reader in self._readers(node)}
        return [self.widths[reader] for reader in self.reading.layers if reader in readers]

    def _is_clip(self, node: fx.Node) -> bool:
        """Whether a quantiser can do an activation's work: all that read it take its integers."""
        needs = self._needs_of(node)
        if (node in self.reading.floats and needs != {LAYER}) or (RAW in needs and self._is_shortcut(node)):
            return False
        return all(width.weight != FLOAT_BITS for width in self._layers(list(node.users)))

    def _needs_of(self, node: fx.Node) -> set[str]:
        return {need for user in node.users for need in self._needs(user)}

    def _is_shortcut(self, node: fx.Node) -> bool:
        """Whether a sum that stays float reads a value."""
        return any(not self._readers(user).isdisjoint(self.reading.float_sums) for user in node.users)

    def _is_convolved(self, node: fx.Node) -> bool:
        """Whether a value is a convolution's, maybe behind its batch-norm."""
        module = self.reading.module(node)
        if isinstance(module, nn.BatchNorm2d):
            node = node.all_input_nodes[0]
            module = self.reading.module(node)
        return isinstance(module, nn.Conv2d) and self.widths[node].weight != FLOAT_BITS

    def _replace_activation(self, node: fx.Node, module: nn.ReLU | nn.Hardtanh) -> None:
        """The clip of the quantiser does what relu and hardtanh do."""
        low, high = bounds(module)
        apart = self.style.shortcuts == "int8" and OPERAND in self._needs_of(node)
        layers = [] if apart else self._layers(list(node.users))
        layer = self._quantiser(str(node.target), layers, signed=low < 0, ceiling=high)
        self.graph.set_submodule(str(node.target), layer)
        if apart and any(width.reads < SUM_BITS for width in self._layers(list(node.users))):
            self._quantise(node, on_grid=True)

    def _quantise(self, source: fx.Node, *, on_grid: bool) -> None:
        """Insert what the readers of `source` need. on_grid: whether it has passed a quantiser of 8 bits."""
        if source.target in PARTITIONS:  # their parts can be quantised, not all of them at once
            for part in list(source.users):
                self._quantise(part, on_grid=on_grid)
            return
        needs = {user: self._needs(user) for user in source.users}
        narrow = [user for user, need in needs.items() if need == {LAYER}]
        wide = [user for user, need in needs.items() if need and need != {LAYER} and RAW not in need]
        if source in self.reading.floats:
            wide = []
        if source.op == "placeholder":  # one for all: pixels have one grid
            wide, narrow = [*wide, *narrow], []
        asked = {OPERAND, ANY} if self._is_convolved(source) else {OPERAND}
        shared = any(asked & needs[user] for user in wide) or bool(wide and narrow) or source.op == "placeholder"
        last = source
        if wide and shared and not on_grid:
            last = self._insert(source, source, wide, [])
        if narrow:
            self._insert(source, last, narrow, self._layers(narrow))
        for user in (user for user, need in needs.items() if len(need) > 1):
            self._quantise(user, on_grid=on_grid or (last is not source and user in wide))

    def _insert(self, source: fx.Node, last: fx.Node, users: list[fx.Node], layers: list[Width]) -> fx.Node:
        """A quantiser behind `last` that `users` read instead of `source`."""
        name = unused_name(self.graph, f"{source.name}_quant")
        if source.op == "placeholder":  # 256 steps of 1/255 hold a camera's image exactly
            layer = quantized_activation(SUM_BITS, signed=False, fixed=True)
        else:
            layer = self._quantiser(name, layers, signed=self.reading.signed[source])
        self.graph.add_submodule(name, layer)
        if last is source and (behind := self._joined(source)) is not source:
            last, users = behind, list(behind.users)
        with self.graph.graph.inserting_after(last):
            inserted = self.graph.graph.call_module(name, (last,))
        for user in users:
            user.replace_input_with(source if source in user.all_input_nodes else last, inserted)
        return inserted

    def _joined(self, source: fx.Node) -> fx.Node:
        """Attention's heads beside each other, if that is all that is done with them: a runtime joins them itself."""
        if source.target is not ATTENTION and not isinstance(self.reading.module(source), Attention):
            return source
        node = source
        while len(node.users) == 1 and self.reading.keeps(next(iter(node.users))):
            node = next(iter(node.users))
        return node

    def _quantiser(self, name: str, layers: list[Width], *, signed: bool, ceiling: float = float("inf")) -> nn.Module:
        """Of the largest width that a layer reads; of 8 bits without layers."""
        bits = max((width.reads for width in layers), default=SUM_BITS)
        inner = not all(width.edge for width in layers) and not self.style.full_range
        follows = any(width.reads_follow for width in layers)
        layer = quantized_activation(bits, signed=signed, inner=inner, ceiling=ceiling)
        for quantizer in quantizers(layer):
            quantizer.inner = follows
        others = [width.reads for width in layers if not width.reads_follow]
        if follows and others:
            self.least[name] = max(others)
        return layer

    def _replace_layer(self, node: fx.Node) -> None:
        width, layer = self.widths[node], self.reading.module(node)
        assert isinstance(layer, LAYERS)
        if width.weight == FLOAT_BITS:
            return
        if layer.weight.numel() == 1:  # neither FAT nor a clip has a deviation to go by
            raise ModelError(
                f"{node.target}: expected a weight of several numbers, got one; "
                f'leave it in float by bits={{"*": …, "{node.target}": 32}}'
            )
        new: nn.Module
        if isinstance(layer, nn.Linear):
            new = quantized_linear(layer, width.weight, per_channel=self.style.per_channel, inner=width.weight_follows)
        else:
            fat = fat_for(self.reading, node, self.style.fat)
            new = quantized_conv(
                layer, width.weight, per_channel=self.style.per_channel, inner=width.weight_follows, fat=fat
            )
        self.graph.set_submodule(str(node.target), new)


def fat_for(reading: Reading, node: fx.Node, form: str) -> FAT | None:
    """FAT of a form for an inner convolution of several weights, which gives the scale back unless batch-norms alone
    read the convolution; None for other layers, and for the form "none".
    """
    conv = reading.module(node)
    if form == "none" or node in reading.edges or not isinstance(conv, nn.Conv2d) or conv.weight.numel() == 1:
        return None
    users = [reading.module(user) for user in node.users if user not in reading.plain]
    return FAT(conv.out_channels, form, rescale=not all(isinstance(module, nn.BatchNorm2d) for module in users))
