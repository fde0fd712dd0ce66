"""Reading and changing an onnx-ir graph: what all steps share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Array = npt.NDArray[Any]
Step = Callable[[ir.Model], bool]
WEIGHTED = ("Conv", "Gemm")


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initialiser, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def required(value: ir.Value | None) -> Array:
    """The array behind an initialiser. Raises ValueError if there is none."""
    array = constant(value)
    if array is None:
        raise ValueError(f"expected a constant, got {value}")
    return array


def required_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of a weight, which a DequantizeLinear or a Clip may make."""
    while value is not None and value.const_value is None and (node := value.producer()) is not None:
        value = node.inputs[0]
    return required(value).shape


def nodes(model: ir.Model, *kinds: str) -> Iterator[ir.Node]:
    """Nodes of these kinds, all of them found before the first is given: the graph may change meanwhile."""
    return iter([node for node in model.graph if node.op_type in kinds])


def initialiser(model: ir.Model, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    """A new initialiser; dtype: for types that numpy lacks, like INT4."""
    name = f"constant_{len(model.graph.initializers)}"
    while name in model.graph.initializers:
        name += "_"
    if dtype is None:
        tensor: ir.TensorProtocol = ir.tensor(array, name=name)
    else:
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let all readers of a node's output read `value`; the node is removed."""
    old = node.outputs[0]
    if old.is_graph_output():
        value.name, value.type, value.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    cast(ir.Graph, node.graph).remove(node, safe=True)


def set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    """Let a node read `value` as its input `index`, which it may have lacked."""
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def before(reader: ir.Node, kind: str, inputs: list[ir.Value], attributes: dict[str, Any] | None = None) -> ir.Value:
    """The output of a new node that stands in front of `reader`."""
    node = ir.node(kind, inputs, attributes or {})
    reader.prepend(node)
    return node.outputs[0]


def maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes a value, if it is of this kind."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def readers(value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes that read a value."""
    return tuple(value.consumers())


def dequantise(model: ir.Model, reader: ir.Node, integers: Array, scale: Array) -> ir.Value:
    """integers · scale, by output channel, in front of `reader`."""
    return before(reader, "DequantizeLinear", [initialiser(model, integers), initialiser(model, scale)], {"axis": 0})


def weights(model: ir.Model) -> Iterator[tuple[ir.Node, Array, Array]]:
    """Every DequantizeLinear of a constant, cast or not, with its integers and its scale."""
    for node in nodes(model, "DequantizeLinear"):
        cast = maker(node.inputs[0], "Cast")
        integers = constant(node.inputs[0] if cast is None else cast.inputs[0])
        if integers is not None:
            yield node, integers, required(node.inputs[1])


def raise_opset(model: ir.Model, opset: int, version: int) -> None:
    """At least this opset and IR version."""
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], opset)
    model.ir_version = max(model.ir_version, version)


def run(model: ir.Model, *steps: Callable[[ir.Model], ir.passes.PassResult]) -> bool:
    """Run library steps; whether one changed something."""
    changed = False
    for step in steps:  # not any(...), which would stop at the first that changes something
        changed |= step(model).modified
    return changed


def first_input(node: ir.Node) -> ir.Value:
    """The value that a node works on."""
    value = node.inputs[0]
    assert value is not None
    return value


def levels(quantiser: ir.Node) -> tuple[int, int, ir.Node]:
    """Lowest and highest level, zero point taken off, and the node that gives the integers."""
    zero = required(quantiser.inputs[2])
    info, last = np.iinfo(zero.dtype), quantiser
    low, high = int(info.min), int(info.max)
    for reader in readers(quantiser.outputs[0]):
        if reader.op_type == "Clip":
            low, high, last = *(int(required(reader.inputs[index])) for index in (1, 2)), reader
    return low - int(zero), high - int(zero), last


def remove_unread(model: ir.Model, *unread: ir.Node) -> None:
    """Remove those of the nodes, the last reader first, that are there and whose output nothing reads."""
    for node in unread:
        if node.graph is not None and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)
