"""Where quantisers go.

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

from dataclasses import dataclass, field

from torch import fx, nn

from ..errors import ModelError
from .forms import unused_name
from .layers import FAT, quantized_activation, quantized_conv, quantized_linear
from .quantizers import quantizers
from .reading import Reading
from .rules import ACTIVATIONS, LAYERS, PARTITIONS, bounds
from .widths import FLOAT_BITS, Width

SUM_BITS = 8  # of what sums, products, functions and pools read: they hold no product of weights
# How a node reads: at its width; at 8 bits; 8 bits if they are there (batch-norm, relu); as floats.
LAYER, OPERAND, EITHER, RAW = "layer", "operand", "either", "raw"


@dataclass
class Placement:
    """Puts quantisers into a graph. widths: of every layer of `reading`.

    least: paths of quantisers that follow the network's n, and the width that other layers ask of them.
    """

    reading: Reading
    widths: dict[fx.Node, Width]
    fat: str
    per_channel: bool
    least: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """Replace layers and activations and insert quantisers, in the order of execution."""
        self.graph = self.reading.graph
        for node in [node for node in self.graph.graph.nodes if self._makes_values(node)]:
            module = self.reading.module(node)
            if isinstance(module, ACTIVATIONS) and not self._read_as_float(node):
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
        return OPERAND if self.reading.computes(reader) else EITHER

    def _layers(self, nodes: list[fx.Node]) -> list[Width]:
        readers = {reader for node in nodes for reader in self._readers(node)}
        return [self.widths[reader] for reader in self.reading.layers if reader in readers]

    def _read_as_float(self, node: fx.Node) -> bool:
        return any(width.weight == FLOAT_BITS for width in self._layers(list(node.users)))

    def _replace_activation(self, node: fx.Node, module: nn.ReLU | nn.Hardtanh) -> None:
        """The clip of the quantiser does what relu and hardtanh do."""
        low, high = bounds(module)
        layer = self._quantiser(str(node.target), self._layers(list(node.users)), signed=low < 0, ceiling=high)
        self.graph.set_submodule(str(node.target), layer)

    def _quantise(self, source: fx.Node, *, on_grid: bool) -> None:
        """Insert what the readers of `source` need. on_grid: whether it has passed a quantiser of 8 bits."""
        if source.target in PARTITIONS:  # their parts can be quantised, not all of them at once
            for part in list(source.users):
                self._quantise(part, on_grid=on_grid)
            return
        needs = {user: self._needs(user) for user in source.users}
        narrow = [user for user, need in needs.items() if need == {LAYER}]
        wide = [user for user, need in needs.items() if need and need != {LAYER} and RAW not in need]
        if source.op == "placeholder":  # one for all: pixels have one grid
            wide, narrow = [*wide, *narrow], []
        shared = any(OPERAND in needs[user] for user in wide) or bool(wide and narrow) or source.op == "placeholder"
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
        with self.graph.graph.inserting_after(last):
            inserted = self.graph.graph.call_module(name, (last,))
        for user in users:
            user.replace_input_with(source, inserted)
        return inserted

    def _quantiser(self, name: str, layers: list[Width], *, signed: bool, ceiling: float = float("inf")) -> nn.Module:
        """Of the largest width that a layer reads; of 8 bits without layers."""
        bits = max((width.reads for width in layers), default=SUM_BITS)
        inner = not all(width.edge for width in layers)
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
            new = quantized_linear(layer, width.weight, per_channel=self.per_channel, inner=width.weight_follows)
        else:
            fat = fat_for(self.reading, node, self.fat)
            new = quantized_conv(layer, width.weight, per_channel=self.per_channel, inner=width.weight_follows, fat=fat)
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
