"""Short, readable names: a layer's tensors carry its module path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import onnx_ir as ir
from torch import fx, nn

from .passes.graph import WEIGHTED

# What is added to the name of what a node reads, for its own; others are called by kind and number.
SUFFIX = {
    "QuantizeLinear": "q",
    "DequantizeLinear": "dq",
    "Quant": "q",
    "Cast": "cast",
    "Div": "div",
    "Round": "q",
    "Clip": "clip",
}
PARTIAL = ("q", "cast", "div", "clip")  # one quantiser's nodes share the name of what they quantise
# What a constant is called, by the node that reads it and where.
ROLES = {
    ("QuantizeLinear", 1): "scale",
    ("QuantizeLinear", 2): "zero",
    ("DequantizeLinear", 1): "scale",
    ("DequantizeLinear", 2): "zero",
    ("Quant", 1): "scale",
    ("Quant", 2): "zero",
    ("Quant", 3): "bits",
    ("Mul", 1): "scale",
    ("Div", 1): "scale",
    ("Clip", 1): "low",
    ("Clip", 2): "high",
}
PARTS = {1: "weight", 2: "bias"}


def name_by_module(model: ir.Model, network: nn.Module) -> None:
    """Rename all nodes, values and initialisers; inputs and outputs of the graph keep their names.

    Layers come in the order of execution in both, so the i-th weighted node is the i-th layer called. Its
    stored numbers are PATH.weight and PATH.bias; nodes between them and the layer have no names of their own.
    """
    for number, value in enumerate(list(model.graph.initializers.values())):
        _rename_initialiser(model, value, f"_{number}")  # out of the way of the names to come
    names = _Names(model)
    paths = iter(_layer_paths(network))
    for node in [node for node in model.graph if node.op_type in WEIGHTED]:
        names.give(node, next(paths, node.op_type.lower()))
        for index, part in PARTS.items():
            if len(node.inputs) > index:
                names.part(node.inputs[index], f"{names.of[node]}.{part}")
    for node in model.graph:
        if node not in names.of:
            names.give(node, names.plain(node))
        names.constants(node)


def shorten_names(model: ir.Model) -> None:
    """The fewest bytes: values are numbered, nodes have no names; inputs and outputs of the graph keep theirs."""
    numbers = count()
    for value in list(model.graph.initializers.values()):
        _rename_initialiser(model, value, _short(next(numbers)))
    for node in model.graph:
        node.name = None
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = _short(next(numbers))


class _Names:
    """The names given so far: `of` nodes, each once, and of initialisers."""

    def __init__(self, model: ir.Model) -> None:
        self.model, self.taken, self.kinds = model, Counter[str](), Counter[str]()
        self.of: dict[ir.Node, str] = {}
        self.renamed: set[ir.Value] = set()  # an initialiser that several nodes read has the name of the first

    def give(self, node: ir.Node, name: str, *, silent: bool = False) -> None:
        self.of[node] = free = self._free(name)
        node.name = None if silent else free
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = free if index == 0 else f"{free}:{index}"

    def part(self, value: ir.Value | None, name: str) -> None:
        """Name what makes a layer's weight: `PATH.weight` is what lies in the file, `PATH.weight.f` the floats."""
        while value is not None and (node := value.producer()) is not None:
            self.give(node, f"{name}.{'i' if node.op_type == 'Cast' else 'f'}", silent=True)
            for index, source in enumerate(node.inputs[1:], 1):
                self._constant(source, f"{name}.{ROLES.get((node.op_type, index), index)}")
            value = node.inputs[0]
        self._constant(value, name)

    def constants(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            self._constant(value, f"{self.of[node]}.{ROLES.get((node.op_type, index), index)}")

    def plain(self, node: ir.Node) -> str:
        if node.op_type in SUFFIX:
            source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            stem = self.of.get(source, "x") if source is not None else "x"
            whole, _, last = stem.rpartition(".")
            return f"{whole if last in PARTIAL else stem}.{SUFFIX[node.op_type]}"
        self.kinds[node.op_type] += 1
        return f"{node.op_type.lower()}{self.kinds[node.op_type]}"

    def _constant(self, value: ir.Value | None, name: str) -> None:
        if value is not None and value.is_initializer() and value not in self.renamed:
            _rename_initialiser(self.model, value, self._free(name))
            self.renamed.add(value)

    def _free(self, name: str) -> str:
        self.taken[name] += 1
        return name if self.taken[name] == 1 else f"{name}_{self.taken[name]}"


def _layer_paths(network: nn.Module) -> list[str]:
    try:
        traced = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network)
    except Exception:  # torch.fx raises many kinds; a float network is exported without its graph
        return []
    modules = dict(traced.named_modules())
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    return [path for path in called if isinstance(modules[path], (nn.Conv2d, nn.Linear))]


def _rename_initialiser(model: ir.Model, value: ir.Value, name: str) -> None:
    del model.graph.initializers[str(value.name)]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    model.graph.register_initializer(value)


def _short(number: int) -> str:
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    return f"_{''.join(reversed(list(_base(number, digits))))}"


def _base(number: int, digits: str) -> Iterator[str]:
    while True:
        number, rest = divmod(number, len(digits))
        yield digits[rest]
        if not number:
            return
