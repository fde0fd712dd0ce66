"""Short, readable names: a layer's tensors carry its module path."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
from torch import fx, nn

from .passes import WEIGHTED

# What a layer's tensors are called, by the kind of node and the input they feed.
PARTS = {1: "weight", 2: "bias"}
SHORT = {"QuantizeLinear": "q", "DequantizeLinear": "dq", "Clip": "clip", "Cast": "cast"}


def name_by_module(model: ir.Model, network: nn.Module) -> None:
    """Rename all nodes, values and initialisers; inputs and outputs of the graph keep their names.

    Layers come in the order of execution in both, so the i-th weighted node is the i-th layer called.
    """
    paths = iter(_layer_paths(network))
    counts: Counter[str] = Counter()
    names: dict[ir.Node, str] = {}
    for node in model.graph:
        if node.op_type in WEIGHTED:
            names[node] = next(paths, node.op_type.lower())
            _name_inputs(node, names)
    for node in model.graph:
        if node not in names:
            names[node] = _plain(node, names, counts)
    _apply(model, names)


def _layer_paths(network: nn.Module) -> list[str]:
    try:
        traced = network if isinstance(network, fx.GraphModule) else fx.symbolic_trace(network)
    except Exception:  # torch.fx raises many kinds; a float network is exported without its graph
        return []
    modules = dict(traced.named_modules())
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    return [path for path in called if isinstance(modules[path], (nn.Conv2d, nn.Linear))]


def _name_inputs(layer: ir.Node, names: dict[ir.Node, str]) -> None:
    """`PATH.weight` for the node that makes a layer's weight, `PATH.weight.cast` for the one before it."""
    for index, part in PARTS.items():
        value = layer.inputs[index] if len(layer.inputs) > index else None
        name = f"{names[layer]}.{part}"
        while value is not None and value.producer() is not None:
            node = value.producer()
            assert node is not None
            names[node] = name
            value, name = node.inputs[0], f"{name}.cast"


def _plain(node: ir.Node, names: dict[ir.Node, str], counts: Counter[str]) -> str:
    source = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if node.op_type in SHORT:
        base = names.get(source, "x") if source is not None else "x"
        stem = base.removesuffix(".q").removesuffix(".clip")
        return f"{stem}.{SHORT[node.op_type]}"
    counts[node.op_type] += 1
    return f"{node.op_type.lower()}{counts[node.op_type]}"


def _apply(model: ir.Model, names: dict[ir.Node, str]) -> None:
    taken: Counter[str] = Counter()
    renamed: set[ir.Value] = set()  # an initialiser that several nodes read has the name of the first
    for node, name in names.items():
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for index, value in enumerate(node.outputs):
            if not value.is_graph_output():
                value.name = node.name if index == 0 else f"{node.name}:{index}"
        for index, source in enumerate(node.inputs):
            if source is not None and source.is_initializer() and source not in renamed:
                _rename_initialiser(model, source, f"{node.name}:{index}")
                renamed.add(source)


def _rename_initialiser(model: ir.Model, value: ir.Value, name: str) -> None:
    del model.graph.initializers[str(value.name)]
    value.name = name
    if value.const_value is not None:
        value.const_value.name = name
    model.graph.register_initializer(value)
