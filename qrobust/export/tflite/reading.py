"""An ONNX graph between Quantize and Dequantize, as the writer of a .tflite file asks for it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ...errors import ExportError

Array = npt.NDArray[Any]
MOVES = ("Pad", "Flatten", "Reshape", "Concat", "Transpose")  # integers pass them as they are
PICKS = ("MaxPool", "Flatten", "Reshape")  # numbers leave them as they come, in another order
BOUNDS = ("Relu", "Clip")  # of floats: a quantiser behind them takes their bounds


@dataclass(frozen=True)
class Weights:
    """Numbers of a layer: integers with a scale for each output channel, or floats without."""

    values: Array
    scale: Array | None = None

    def floats(self) -> Array:
        """float32."""
        if self.scale is None:
            return self.values.astype(np.float32)
        columns = self.scale.reshape(-1, *[1] * (self.values.ndim - 1))
        return (self.values * columns).astype(np.float32)


@dataclass(frozen=True)
class Quantiser:
    """A QuantizeLinear with the Clips around it: levels from low to high, of which `zero` stands for 0.

    source: the value that it rounds. name: of the value that holds its levels.
    """

    source: str
    name: str
    scale: float
    zero: int
    low: int
    high: int


class Graph:
    """The nodes of a model, who makes and reads each value, constants and shapes."""

    def __init__(self, data: bytes) -> None:
        proto = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
        self.nodes, self.inputs = list(proto.graph.node), list(proto.graph.input)
        self.outputs = [value.name for value in proto.graph.output]
        self.constants = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
        self.makers = {name: node for node in self.nodes for name in node.output}
        self.readers = defaultdict[str, list[onnx.NodeProto]](list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        known = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
        self._shapes = {one.name: [size.dim_value for size in one.type.tensor_type.shape.dim] for one in known}

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a value, with one image and channels last."""
        sizes = self._shapes.get(name, [])
        if not all(sizes[1:]) or not sizes:
            raise ExportError(f"expected a known shape of {name}, got {sizes}; choose ort-cpu")
        return (1, *sizes[2:], sizes[1]) if len(sizes) > 2 else (1, *sizes[1:])

    def rank(self, name: str) -> int:
        """How many dimensions a value has."""
        return len(self._shapes.get(name, []))

    def is_constant(self, node: onnx.NodeProto) -> bool:
        """Whether it makes a layer's weight or bias."""
        source = node.input[0]
        return source in self.constants or (source in self.makers and self.is_constant(self.makers[source]))

    def weights(self, name: str) -> Weights | None:
        """What a layer reads by this name; None for what is computed. Raises ExportError for a zero point."""
        if name in self.constants:
            return Weights(self.constants[name])
        node = self.makers.get(name)
        if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in self.constants:
            return None
        values, scale = self.constants[node.input[0]], self.constants[node.input[1]]
        if len(node.input) > 2 and self.constants[node.input[2]].any():
            raise ExportError(f"{name}: expected weights without a zero point, got one; quantise them symmetrically")
        return Weights(values, np.broadcast_to(scale.reshape(-1), (len(values),)).astype(np.float32))

    def quantiser(self, node: onnx.NodeProto) -> Quantiser:
        """Of a QuantizeLinear, with the Clip that alone reads it, and those of floats before it: rounding is monotone,
        so that their bounds are levels.
        """
        scale, zero = self.constants[node.input[1]], self.constants[node.input[2]]
        if scale.size != 1 or zero.dtype != np.uint8:
            raise ExportError(f"{node.output[0]}: expected one scale and uint8, got {scale.size} and {zero.dtype}")
        low, high, name, source = 0, 255, node.output[0], node.input[0]
        readers = self.readers[name]
        if len(readers) == 1 and readers[0].op_type == "Clip" and name not in self.outputs:
            low, high = (int(self.constants[bound]) for bound in readers[0].input[1:3])
            name = readers[0].output[0]
        while source in self.makers and self.makers[source].op_type in BOUNDS:
            bounds = self.bounds(self.makers[source])
            levels = np.clip(np.rint(np.array(bounds, np.float32) / scale) + int(zero), 0, 255)
            low, high = (int(one) for one in (np.clip(levels[0], low, high), np.clip(levels[1], low, high)))
            source = self.makers[source].input[0]
        return Quantiser(source, name, float(scale), int(zero), low, high)

    def bounds(self, node: onnx.NodeProto) -> tuple[float, float]:
        """Of a Relu or a Clip of floats."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        given = [self.constants.get(name) for name in (*node.input[1:], "", "")[:2]]
        low, high = given
        return (-np.inf if low is None else float(low)), (np.inf if high is None else float(high))

    def is_rounded(self, name: str) -> bool:
        """Whether quantisers alone read a value of floats, through bounds perhaps."""
        return name not in self.outputs and all(
            reader.op_type == "QuantizeLinear" or (reader.op_type in BOUNDS and self.is_rounded(reader.output[0]))
            for reader in self.readers[name]
        )

    def grid_below(self, name: str) -> tuple[float, int]:
        """Scale and zero point with which a given value of integers is read, behind what moves it."""
        for node in self.readers[name]:
            if node.op_type == "DequantizeLinear":
                return float(self.constants[node.input[1]]), int(self.constants[node.input[2]])
            if node.op_type in MOVES:
                return self.grid_below(node.output[0])
        return 1.0, 0


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Its settings by name."""
    return {one.name: helper.get_attribute_value(one) for one in node.attribute}
