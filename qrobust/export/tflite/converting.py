"""An ONNX graph node by node to a .tflite file: layers between quantisers on integers, all others in float."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx

from ...errors import ExportError
from ...runtime import XNNPACK
from .flat import Grid, Tensor
from .layers import LAYERS
from .reading import MOVES, PICKS, Graph, Quantiser, attributes
from .writing import LEAST, MOST, Output, Writing

UINT8 = onnx.TensorProto.UINT8


@dataclass(frozen=True)
class Converted:
    """The bytes of a .tflite file, and by name of its ends what int8 levels lie above those of the ONNX graph."""

    data: bytes
    shifts: dict[str, int]


def to_tflite(data: bytes, provider: str = XNNPACK) -> Converted:
    """The .tflite file of an ONNX graph as the format `integer` writes it, or of a float one.

    data: of the ONNX file. provider: of LiteRT, whose kernels run it. It takes what the ONNX file takes, channels last,
    for any number of images, and gives the same outputs by the same names. A layer that reads quantised values and
    whose result is quantised computes on int8, but for what `Writing` has in floats; all others compute on floats.
    Raises ExportError for an operator, or a form of one, that has none here, by its name, and ArtifactError where the
    package ai-edge-litert is missing.
    """
    return _Converter(Graph(data), through_floats=provider == XNNPACK).run()


class _Converter(Writing):
    """done: values that stand behind a quantiser as parts of it."""

    def __init__(self, graph: Graph, *, through_floats: bool) -> None:
        super().__init__(graph, through_floats=through_floats)
        self.done: set[str] = set()

    def run(self) -> Converted:
        """The whole file."""
        inputs = {value.name: self.given(value) for value in self.graph.inputs}
        for node in self.graph.nodes:
            if node.op_type != "DequantizeLinear" or not self.graph.is_constant(node):
                self.node(node)
        outputs = {name: self.result(name) for name in self.graph.outputs}
        ends = inputs | outputs
        data = self.flat.finish(*({name: one.index for name, one in some.items()} for some in (inputs, outputs)))
        return Converted(data, {name: one.shift for name, one in ends.items() if one.grid is not None})

    def given(self, value: onnx.ValueInfoProto) -> Tensor:
        """An input: floats, a camera's bytes, or levels that stand for computed ones."""
        name = value.name
        if value.type.tensor_type.elem_type != UINT8:
            made = self.flat.tensor(name, self.graph.shape(name))
        elif any(reader.op_type == "Transpose" for reader in self.graph.readers[name]):
            made = self.pixels(value)
        else:
            scale, zero = self.graph.grid_below(name)
            made = self.flat.tensor(name, self.graph.shape(name), Grid(scale, zero + LEAST), shift=LEAST)
        self.tensors[name] = made
        return made

    def pixels(self, value: onnx.ValueInfoProto) -> Tensor:
        """Bytes (n, h, w, c), and behind the Transpose, which is dropped, the same as int8."""
        sizes = [one.dim_value for one in value.type.tensor_type.shape.dim]
        given = self.flat.tensor(value.name, (1, *sizes[1:]), Grid(1 / 255, 0), kind="UINT8")
        for reader in self.graph.readers[value.name]:
            if reader.op_type != "Transpose" or list(attributes(reader)["perm"]) != [0, 3, 1, 2]:
                raise ExportError(f"{value.name}: expected a Transpose to channels first, got {reader.op_type}")
            scale, zero = self.graph.grid_below(reader.output[0])
            made = self.flat.tensor(reader.output[0], given.shape, Grid(scale, zero + LEAST), shift=LEAST)
            self.flat.op("QUANTIZE", [given.index], made.index, "QuantizeOptions")
            self.tensors[reader.output[0]] = made
            self.done.add(reader.output[0])
        return replace(given, grid=None)

    def node(self, node: onnx.NodeProto) -> None:
        """Write a node; one that quantisers alone read waits for them. Raises ExportError for one without a form."""
        name, kind = node.output[0], node.op_type
        if name in self.done:
            return
        if kind == "DequantizeLinear":
            self.tensors[name] = self.tensors[node.input[0]]
        elif kind == "QuantizeLinear":
            self.quantised(self.graph.quantiser(node))
        elif kind not in LAYERS:
            known = ", ".join(sorted(LAYERS))
            raise ExportError(f"{node.name or name}: expected an operator out of {known}, got {kind}; choose ort-cpu")
        elif kind in (*MOVES, *PICKS) and self.reads_levels(node):
            self.tensors[name] = LAYERS[kind](self, node, Output(name, moves=True))
        elif not self.graph.is_rounded(name):
            self.tensors[name] = LAYERS[kind](self, node, Output(name))

    def reads_levels(self, node: onnx.NodeProto) -> bool:
        """Whether levels pass a node as they are: what only picks from them gives levels of their grid, behind a
        DequantizeLinear too.
        """
        read = [name for name in node.input if name in self.tensors]
        if node.op_type in PICKS:
            return self.tensors[read[0]].grid is not None
        dequantised = any(n in self.graph.makers and self.graph.makers[n].op_type == "DequantizeLinear" for n in read)
        return not dequantised and all(self.tensors[name].grid is not None for name in read)

    def quantised(self, to: Quantiser) -> None:
        """The value of a quantiser: its layer on integers, or a QUANTIZE of what is there."""
        # Saturation is the upper bound; the lower one is saturation too, a fused RELU, or costs a MAXIMUM.
        shift = MOST - to.high
        grid = Grid(to.scale, to.zero + shift)
        output = Output(to.name, grid, shift, least=max(to.low + shift, LEAST))
        maker = self.graph.makers.get(to.source)
        if to.source in self.tensors:
            made = self.requantised(self.tensors[to.source], output)
        elif maker is not None and self.on_integers(maker):
            made = LAYERS[maker.op_type](self, maker, output)
        elif maker is not None:
            made = self.requantised(LAYERS[maker.op_type](self, maker, Output(f"{to.source}.f")), output)
        else:
            raise ExportError(f"{to.name}: expected a value that is computed, got {to.source}; choose ort-cpu")
        self.tensors[to.name] = made
        if to.name != to.source:
            self.done.add(to.name)

    def on_integers(self, node: onnx.NodeProto) -> bool:
        """Whether all that a layer reads lies on grids, its weights too, and kernels have it right there."""
        if node.op_type == "Add" and self.through_floats:
            return False
        for name in node.input:
            weights = self.graph.weights(name) if name else None
            if name and weights is None and (name not in self.tensors or self.tensors[name].grid is None):
                return False
        weights = self.graph.weights(node.input[1]) if node.op_type in ("Conv", "Gemm") else None
        return weights is None or weights.scale is not None

    def result(self, name: str) -> Tensor:
        """An output of the file, in its graph's shape."""
        if name not in self.tensors:
            raise ExportError(f"{name}: expected a value that is computed, got none; choose ort-cpu")
        return self.shaped(self.tensors[name], self.graph.shape(name), name)
