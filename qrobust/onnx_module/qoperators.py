"""QOperator form, which computes on integers, written as what it means: dequantise, compute, quantise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import GraphError
from .node import Node
from .operators import CONTRIB


class Scribe:
    """Writes the standard nodes that stand for one node of QOperator form."""

    def __init__(self, node: Node, opset: int) -> None:
        self.node, self.opset = node, opset
        self.nodes: list[Node] = []

    def inputs(self, count: int) -> list[str]:
        """The node's inputs, "" for those left out at the end."""
        return [*self.node.inputs, *[""] * (count - len(self.node.inputs))]

    def write(
        self, op: str, inputs: Sequence[str], *, last: bool = False, domain: str = "", count: int = 1, **attributes: Any
    ) -> str:
        """Add a node; returns the name of its first value, that of the whole if it is the last; of others: with /i."""
        name = self.node.outputs[0] if last else f"{self.node.outputs[0]}/{len(self.nodes)}"
        outputs = (name, *(f"{name}/{index}" for index in range(1, count)))
        self.nodes.append(Node(op, self.node.name, tuple(inputs), outputs, self.opset, domain, attributes))
        return name

    def add(self, value: str, bias: str) -> None:
        """The last node: value + bias, or value alone."""
        self.write("Add" if bias else "Identity", [value, bias] if bias else [value], last=True)

    def dequantise(self, triple: Sequence[str], axis: int = 1) -> str:
        """The float behind (integers, scale, zero point)."""
        return self.write("DequantizeLinear", triple, axis=axis)

    def quantise(self, value: str, scale: str, zero_point: str) -> None:
        """The last node."""
        self.write("QuantizeLinear", [value, scale, zero_point], last=True)

    def bias(self, integers: str, *scales: str) -> list[str]:
        """An int32 bias, whose scale is the product of these."""
        if not integers:
            return []
        return [self.dequantise([integers, self.write("Mul", scales), ""], axis=0)]


DYNAMIC = "DynamicQuantizeLinear"  # by the range of its input
Writer = Callable[[Scribe], None]
WRITERS: dict[tuple[str, str], Writer] = {}
# Those whose first inputs are (integers, scale, zero point), one or two of them, then scale and zero point of
# the result; and the operator that they are.
PLAIN = {
    "QLinearAdd": ("Add", 2),
    "QLinearMul": ("Mul", 2),
    "QLinearSigmoid": ("Sigmoid", 1),
    "QLinearLeakyRelu": ("LeakyRelu", 1),
    "QLinearSoftmax": ("Softmax", 1),
    "QLinearAveragePool": ("AveragePool", 1),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", 1),
    "QLinearReduceMean": ("ReduceMean", 1),
}


def expand(node: Node, opset: int) -> list[Node]:
    """The node itself, or the standard nodes of `opset` that it stands for."""
    writer = WRITERS.get((node.domain, node.op))
    if writer is None:
        return [node]
    if node.integer("channels_last", 0):
        raise GraphError(f"expected channels first, got channels_last in {node}; pass the graph as it was quantised")
    scribe = Scribe(node, opset)
    writer(scribe)
    return scribe.nodes


def _writer(name: str, domain: str = "") -> Callable[[Writer], Writer]:
    def enter(function: Writer) -> Writer:
        WRITERS[domain, name] = function
        return function

    return enter


def _plain(op: str, count: int) -> Writer:
    def write(scribe: Scribe) -> None:
        given = scribe.inputs(3 * count + 2)
        values = [scribe.dequantise(given[3 * index : 3 * index + 3]) for index in range(count)]
        scribe.opset = scribe.node.integer("opset", scribe.opset)  # softmax says which it means
        value = scribe.write(op, values, **scribe.node.attributes)
        scribe.quantise(value, *given[3 * count : 3 * count + 2])

    return write


for _name, (_op, _count) in PLAIN.items():
    _writer(_name, CONTRIB)(_plain(_op, _count))


@_writer("QLinearConv")
def _conv(scribe: Scribe) -> None:
    given = scribe.inputs(9)
    x, weight = scribe.dequantise(given[:3]), scribe.dequantise(given[3:6], axis=0)
    bias = scribe.bias(given[8], given[1], given[4])
    value = scribe.write("Conv", [x, weight, *bias], **scribe.node.attributes)
    scribe.quantise(value, *given[6:8])


@_writer("QLinearMatMul")
def _matmul(scribe: Scribe) -> None:
    given = scribe.inputs(8)
    value = scribe.write("MatMul", [scribe.dequantise(given[:3], axis=-2), scribe.dequantise(given[3:6], axis=-1)])
    scribe.quantise(value, *given[6:8])


@_writer("QGemm", CONTRIB)
def _gemm(scribe: Scribe) -> None:
    """The bias has scale alpha·a_scale·b_scale; without scale of the result it is a float."""
    given, attributes = scribe.inputs(9), dict(scribe.node.attributes)
    alpha, transposed = attributes.pop("alpha", 1.0), attributes.get("transB", 0)
    if alpha != 1.0:
        raise GraphError(f"expected alpha 1, got {alpha} in {scribe.node}; put it into the weight's scale")
    a, b = scribe.dequantise(given[:3]), scribe.dequantise(given[3:6], axis=0 if transposed else 1)
    bias = scribe.bias(given[6], given[1], given[4])
    value = scribe.write("Gemm", [a, b, *bias], last=not given[7], **attributes)
    if given[7]:
        scribe.quantise(value, *given[7:9])


@_writer("MatMulIntegerToFloat", CONTRIB)
def _matmul_to_float(scribe: Scribe) -> None:
    a, b, a_scale, b_scale, a_zero, b_zero, bias = scribe.inputs(7)
    values = [scribe.dequantise([a, a_scale, a_zero], axis=-2), scribe.dequantise([b, b_scale, b_zero], axis=-1)]
    scribe.add(scribe.write("MatMul", values), bias)


@_writer("DynamicQuantizeMatMul", CONTRIB)
def _dynamic_matmul(scribe: Scribe) -> None:
    a, b, scale, zero, bias = scribe.inputs(5)
    integers = scribe.write(DYNAMIC, [a], count=3)
    x = scribe.dequantise([integers, f"{integers}/1", f"{integers}/2"])
    scribe.add(scribe.write("MatMul", [x, scribe.dequantise([b, scale, zero], axis=-1)]), bias)


@_writer("QAttention", CONTRIB)
def _attention(scribe: Scribe) -> None:
    x, weight, bias, x_scale, scale, mask, x_zero, zero, past = scribe.inputs(9)
    values = [scribe.dequantise([x, x_scale, x_zero]), scribe.dequantise([weight, scale, zero], axis=-1)]
    scribe.write("Attention", [*values, bias, mask, past], last=True, domain=CONTRIB, **scribe.node.attributes)


@_writer("QLinearWhere", CONTRIB)
def _where(scribe: Scribe) -> None:
    given = scribe.inputs(9)
    value = scribe.write("Where", [given[0], scribe.dequantise(given[1:4]), scribe.dequantise(given[4:7])])
    scribe.quantise(value, *given[7:9])


@_writer("QLinearConcat", CONTRIB)
def _concat(scribe: Scribe) -> None:
    given = scribe.inputs(2)
    triples = [given[index : index + 3] for index in range(2, len(given), 3)]
    value = scribe.write("Concat", [scribe.dequantise(triple) for triple in triples], **scribe.node.attributes)
    scribe.quantise(value, *given[:2])
