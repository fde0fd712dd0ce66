"""An ONNX graph under construction: its nodes in their order, the constants that they read, and all names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor

from ...errors import ExportError

Array = npt.NDArray[Any]
LEAST_OPSET = 20
VERSIONS = {20: 9, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}  # of the file format that each opset came with
FEW = 1024  # numbers of a constant that equal ones share
# What is added to the name of what a node reads, for its own; others are called by their module, or kind and number.
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
# What an attribute is taken for when it is missing.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Conv": {"group": 1},
    "ConvTranspose": {"group": 1},
    "DequantizeLinear": {"axis": 1},
    "Flatten": {"axis": 1},
    "AveragePool": {"ceil_mode": 0, "count_include_pad": 0},
    "MaxPool": {"ceil_mode": 0},
    "Softmax": {"axis": -1},
}
ONES, ZEROS = ("dilations", "strides"), ("pads", "output_padding")
HALF = np.finfo(np.float16)


class Building:
    """Nodes are added by `op`, and named by `settle` together with all since the last call.

    opset: the highest that the target reads. explicit: attributes stand there that are usual too. half: floats are
    float16, but for constants that are asked to be exact.
    """

    def __init__(self, *, opset: int, half: bool = False, names: Sequence[str] = (), explicit: bool = False) -> None:
        self.most, self.half, self.opset = opset, half, LEAST_OPSET
        self.explicit = explicit
        self.nodes: list[ir.Node] = []
        self.domains: dict[str, int] = {}
        self._taken, self._kinds = Counter(names), Counter[str]()
        self._of: dict[ir.Node, str] = {}
        self._shared: dict[Any, ir.Value] = {}
        self._read: list[Tensor] = []  # whose ids stand in `_shared`
        self._waiting: list[ir.Node] = []
        self._silent: list[ir.Node] = []

    @property
    def float_type(self) -> int:
        """What a Cast to floats gives."""
        return int(ir.DataType.FLOAT16 if self.half else ir.DataType.FLOAT)

    def require(self, opset: int, what: str) -> None:
        """Raise the opset. Raises ExportError beyond the target's."""
        if opset > self.most:
            raise ExportError(f"expected opset {opset} or higher for {what}, got {self.most}; raise the target's opset")
        self.opset = max(self.opset, opset)

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        """What a new node gives: a value, or a list of `outputs`. Attributes that are None or usual are left out."""
        node = self._node(kind, inputs, attributes, domain, outputs)
        self.nodes.append(node)
        self._waiting.append(node)
        return node.outputs[0] if outputs == 1 else list(node.outputs)

    def _node(
        self, kind: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any], domain: str, outputs: int
    ) -> ir.Node:
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        kept = {name: value for name, value in attributes.items() if value is not None}
        if not self.explicit:
            kept = {name: value for name, value in kept.items() if not _is_usual(kind, name, value)}
        return ir.node(kind, given, kept, domain=domain, num_outputs=outputs)

    def part(self, name: str, kind: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """What a node gives that makes a layer's weight: it has no name of its own, its value this one."""
        node = self._node(kind, inputs, attributes, domain, 1)
        self.nodes.append(node)
        self._silent.append(node)
        self._of[node] = node.outputs[0].name = self._free(name)
        return node.outputs[0]

    def constant(
        self,
        array: Tensor | Array | np.generic | float,
        kind: ir.DataType | None = None,
        *,
        name: str = "",
        own: bool = False,
        exact: bool = False,
    ) -> ir.Value:
        """A number, array or tensor of the file.

        kind: for types that numpy lacks, like INT4. name: else that of the first node that reads it. own: no other
        node reads it. exact: in float32 where the others are float16, and in the type of the array.
        """
        key: Any = ("tensor", id(array), kind, exact) if isinstance(array, Tensor) and not own else None
        if key in self._shared:
            return self._shared[key]
        values = _as_array(array, self.half and not exact)
        if not own and values.size <= FEW:
            key = (values.tobytes(), str(values.dtype), values.shape, kind)
            if key in self._shared:
                return self._shared[key]
        elif isinstance(array, Tensor):
            self._read.append(array)
        tensor = ir.tensor(values) if kind is None else ir.tensor(values.astype(kind.numpy()), dtype=kind)
        value = ir.Value(name=self._free(name) if name else None, const_value=tensor)
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(values.shape)
        if key is not None:
            self._shared[key] = value
        return value

    def integers(self, *numbers: int) -> ir.Value:
        """One-dimensional, INT64: sizes, axes, pads."""
        return self.constant(np.array(numbers, np.int64))

    def settle(self, main: str, results: Sequence[ir.Value] = ()) -> None:
        """Name all nodes added since: the one that gives a result is `main`, others by what they read, or as parts of
        it; without `main` by kind and number.
        """
        makers = [value.producer() for value in results]
        for node in self._waiting:
            kind = node.op_type.lower()
            if main and node in makers:
                name = main
            elif node.op_type in SUFFIX:
                name = self._beside(node)
            elif main:
                name = f"{main}.{kind}"
            else:
                self._kinds[kind] += 1
                name = f"{kind}{self._kinds[kind]}"
            self._of[node] = node.name = free = self._free(name)
            for index, value in enumerate(node.outputs):
                value.name = free if index == 0 else f"{free}:{index}"
        self._waiting.clear()

    def is_free(self, name: str) -> bool:
        """Whether nothing has this name."""
        return not self._taken[name]

    def finish(self, inputs: Sequence[ir.Value], results: Sequence[ir.Value], *, short: bool) -> ir.Model:
        """The model, with what its outputs hang on. short: values are numbered, nodes have no names."""
        graph = ir.Graph(
            inputs, results, nodes=self.nodes, opset_imports={"": self.opset, **self.domains}, name="qrobust"
        )
        model = ir.Model(graph, ir_version=VERSIONS[self.opset])
        common.RemoveUnusedNodesPass()(model)
        for node in self._silent:
            node.name = None  # the graph has named it
        constants: dict[ir.Value, None] = {}
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is not None and value.const_value is not None:
                    if value.name is None:
                        value.name = self._free(f"{self._of[node]}.{ROLES.get((node.op_type, index), index)}")
                    constants[value] = None
        if short:
            _shorten(list(constants), graph)
        for value in constants:
            assert value.const_value is not None
            value.const_value.name = value.name
            value.type = value.shape = None  # a reader knows them by the tensor
            graph.register_initializer(value)
        return model

    def _beside(self, node: ir.Node) -> str:
        """By the name of what a node reads."""
        source = node.inputs[0]
        maker = source.producer() if source is not None else None
        stem = self._of[maker] if maker is not None else "x"
        whole, _, last = stem.rpartition(".")
        return f"{whole if last in PARTIAL else stem}.{SUFFIX[node.op_type]}"

    def _free(self, name: str) -> str:
        self._taken[name] += 1
        return name if self._taken[name] == 1 else self._free(f"{name}_{self._taken[name]}")


def _is_usual(kind: str, name: str, value: Any) -> bool:
    """Whether an attribute says what its absence says too."""
    if name in DEFAULTS.get(kind, {}) and DEFAULTS[kind][name] == value:
        return True
    usual = 1 if name in ONES else 0 if name in ZEROS else None
    return usual is not None and set(value) == {usual}


def _as_array(array: Tensor | Array | np.generic | float, half: bool) -> Array:
    """Floats as float32, or float16. Raises ExportError where that is infinite."""
    values = np.asarray(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)
    if not np.issubdtype(values.dtype, np.floating):
        return values
    values = np.ascontiguousarray(values.astype(np.float32, copy=False)).reshape(values.shape)
    return to_half(values) if half else values


def to_half(array: Array, *, divides: bool = False) -> Array:
    """float16. Raises ExportError where finite numbers become infinite, or a divisor zero."""
    with np.errstate(over="ignore"):
        small = array.astype(np.float16)
    if (np.isfinite(array) & ~np.isfinite(small)).any() or (divides and not small.all()):
        raise ExportError(f"expected weights and scales in the range of float16, got {np.abs(array).max():.3g}")
    return small


def _shorten(constants: Sequence[ir.Value], graph: ir.Graph) -> None:
    """The fewest bytes; inputs and outputs of the graph keep their names."""
    numbers = count()
    for value in constants:
        value.name = _short(next(numbers))
    for node in graph:
        node.name = None
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = _short(next(numbers))


def _short(number: int) -> str:
    return f"_{''.join(reversed(list(_digits(number))))}"


def _digits(number: int) -> Iterator[str]:
    while True:
        number, rest = divmod(number, 36)
        yield "0123456789abcdefghijklmnopqrstuvwxyz"[rest]
        if not number:
            return


def as_numbers(tensor: Tensor) -> Array:
    """A tensor's numbers in float64."""
    numbers: Array = tensor.detach().cpu().to(torch.float64).numpy()
    return numbers
