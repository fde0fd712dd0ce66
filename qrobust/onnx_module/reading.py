"""From a file to nodes and constants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, external_data_helper, numpy_helper
from torch import Tensor

from ..errors import GraphError
from .file import domain_of, file_bytes, parsed, reason, shown, text_of
from .node import Node
from .operators.table import FLOATS, LARGEST, NARROW, torch_type

SCALARS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
ONE_FILE = "save it in one file without external data: onnx.save(onnx.load(PATH), NEW)"


@dataclass(frozen=True)
class Input:
    """Where images go in; shape: (batch, ...), None where the file leaves a size open. narrow: a type of 16 bits that
    they are rounded to.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype
    narrow: torch.dtype | None = None


@dataclass(frozen=True)
class Graph:
    """A classifier as its file states it; kinds: ONNX element types of images and constants."""

    images: Input
    output: str
    opset: int
    nodes: tuple[Node, ...]
    constants: dict[str, Tensor] = field(repr=False)
    kinds: dict[str, int] = field(repr=False)


def read(source: str | Path | bytes, output: str | None = None) -> Graph:
    """The graph in a file or in its bytes, down to one of its outputs.

    Raises GraphError for what is no ONNX classifier in a single file.
    """
    model = parsed(source if isinstance(source, bytes) else file_bytes(Path(source)))
    if model.graph.sparse_initializer:
        raise GraphError("expected dense initialisers, got sparse ones; write them densely")
    opsets = {domain_of(entry.domain): int(entry.version) for entry in model.opset_import}
    return _graph(model.graph, opsets, output)


def _graph(graph: GraphProto, opsets: dict[str, int], output: str | None) -> Graph:
    constants, kinds = {}, {}
    for name, tensor in _tensors(graph):
        constants[name], kinds[name] = tensor_of(tensor), tensor.data_type
    nodes = tuple(_node(proto, opsets) for proto in graph.node if proto.op_type != "Constant" or proto.domain)
    images = _images(graph, set(constants))
    kinds[images.name] = next(one for one in graph.input if one.name == images.name).type.tensor_type.elem_type
    _check_order(nodes, {images.name, *constants})
    return Graph(images, _output(graph, output), opsets[""], nodes, constants, kinds)


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Initialisers and Constant nodes, by the name of their value."""
    for tensor in graph.initializer:
        yield text_of(tensor.name), tensor
    for node in graph.node:
        if node.op_type == "Constant" and not node.domain:
            if len(node.attribute) != 1 or len(node.output) != 1:
                raise GraphError(f"expected one value in Constant (node {shown(node.name)}), got another number")
            yield text_of(node.output[0]), _constant(node, node.attribute[0])


def _constant(node: NodeProto, attribute: AttributeProto) -> TensorProto:
    if attribute.name == "value":
        return attribute.t
    if attribute.name not in SCALARS:
        kind = shown(attribute.name)
        raise GraphError(f"expected numbers in Constant (node {shown(node.name)}), got {kind}; write a dense tensor")
    value = onnx.helper.get_attribute_value(attribute)
    return numpy_helper.from_array(np.asarray(value, dtype=SCALARS[attribute.name]))


def tensor_of(tensor: TensorProto) -> Tensor:
    """A stored tensor; integers under 8 bits are widened. Raises GraphError for data that lie elsewhere."""
    if external_data_helper.uses_external_data(tensor):
        raise GraphError(f"expected all data in the file, got {shown(tensor.name)} stored outside it; {ONE_FILE}")
    try:
        kind = torch_type(tensor.data_type)
        array = numpy_helper.to_array(tensor)
        if tensor.data_type in FLOATS and array.dtype.kind == "V":  # numpy has no bfloat16
            array = array.astype(np.float32)
        wide = array.astype(np.int64) if kind is torch.int64 else array
        if tensor.data_type not in FLOATS and tensor.data_type != TensorProto.BOOL and array.dtype.kind not in "iu":
            wide = array.astype(np.int8 if kind is torch.int8 else np.uint8)  # ml_dtypes' types of 2 and 4 bits
        return torch.from_numpy(np.array(wide)).to(kind)
    except Exception as error:  # damaged tensors raise anything
        raise GraphError(f"expected numbers in tensor {shown(tensor.name)}, got: {reason(error)}") from error


def _node(proto: NodeProto, opsets: dict[str, int]) -> Node:
    domain, op = domain_of(proto.domain), text_of(proto.op_type)
    ends = tuple(map(text_of, proto.input)), tuple(map(text_of, proto.output))
    name = text_of(proto.name) or next(iter(ends[1]), op)
    try:
        attributes = {text_of(attribute.name): _value(attribute) for attribute in proto.attribute}
    except ValueError as error:
        raise GraphError(f"expected attributes in {shown(op)} (node {shown(name)}), got: {error}") from error
    return Node(op, name, *ends, opsets.get(domain, 1), domain, attributes)


def _value(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return tensor_of(value) if isinstance(value, TensorProto) else value


def _images(graph: GraphProto, constants: set[str]) -> Input:
    inputs = [value for value in graph.input if text_of(value.name) not in constants]
    if len(inputs) != 1:
        names = ", ".join(shown(value.name) for value in inputs[:5])
        raise GraphError(f"expected a graph with one input, images, got {len(inputs)}: {names}; pass a classifier")
    kind = inputs[0].type.tensor_type
    dims = tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    known = [dim for dim in dims if dim is not None]
    if kind.elem_type not in FLOATS or len(dims) < 2 or min(known, default=1) < 1 or math.prod(known) > LARGEST:
        got = f"element type {kind.elem_type}, shape {dims}"
        raise GraphError(f"expected images as floats (batch, ...) in {shown(inputs[0].name)}, got {got}")
    return Input(inputs[0].name, dims, FLOATS[kind.elem_type], NARROW.get(kind.elem_type))


def _output(graph: GraphProto, wanted: str | None) -> str:
    names = [text_of(value.name) for value in graph.output]
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted is None or wanted not in names:
        known = ", ".join(map(shown, names[:5]))
        raise GraphError(f"expected an output of {known or 'the graph'}, got {wanted!r}; pass output=NAME")
    return str(wanted)


def _check_order(nodes: tuple[Node, ...], known: set[str]) -> None:
    for node in nodes:
        for name in node.inputs:
            if name and name not in known:
                raise GraphError(f"expected nodes in order, but {node} reads {shown(name)}, which none before gives")
        if not node.outputs or not node.outputs[0]:
            raise GraphError(f"expected a value from every node, got none from {node}")
        for name in filter(None, node.outputs):
            if name in known:
                raise GraphError(f"expected every value given once, but {node} gives {shown(name)} again")
            known.add(name)
