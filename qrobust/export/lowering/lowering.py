"""A table of torch's operators, and what its entries work with: values of the graph for nodes of the program."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from ...errors import ExportError
from .building import Building
from .forms import Form, as_floats
from .quantised import Activation, Pixels, Weight

aten = torch.ops.aten
Entry = Callable[..., Any]
TABLE: dict[Any, Entry] = {}
TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float64: ir.DataType.FLOAT,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
    torch.bool: ir.DataType.BOOL,
}


def lowers(*targets: Any) -> Callable[[Entry], Entry]:
    """An entry of the table: `entry(lowering, *arguments)` gives a value, or a list, for `lowering.node`."""

    def register(entry: Entry) -> Entry:
        TABLE.update(dict.fromkeys(targets, entry))
        return entry

    return register


@dataclass(frozen=True)
class Quantised:
    """An activation of the network in the file.

    module: path of what quantises it. value: name of the tensor that holds its levels, moved by `zero`; "" for a
    camera's pixels, which lie on the grid as they come, and where no runtime computes them.
    """

    module: str
    value: str
    zero: int


@dataclass
class Lowering:
    """What entries of the table work with. image: what the graph takes, channels first.

    env: what stands for a node of the program so far: a value of the graph, a Tensor for what depends on no image, or
    what lies on a grid. ahead: the same of nodes that are still to come, where one operator of ONNX does the work of
    several. stored: names of parameters and buffers in the network. turned: transposed weights. node: at
    work, in the module of the path `where`. main: the name of what is being made, "" for a number.
    """

    graph: Building
    form: Form
    image: ir.Value
    env: dict[fx.Node, Any] = field(default_factory=dict)
    ahead: dict[fx.Node, Any] = field(default_factory=dict)
    stored: dict[fx.Node, str] = field(default_factory=dict)
    turned: dict[fx.Node, Tensor] = field(default_factory=dict)
    node: fx.Node = field(init=False)
    where: str = ""
    main: str = ""
    named: list[tuple[str, ir.Value | None, int]] = field(default_factory=list)

    def op(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """What a new node gives that reads these: nodes of the program, values, tensors, numbers or None."""
        return self.graph.op(kind, *(self.value(one) for one in inputs), **attributes)

    def value(self, x: Any) -> ir.Value | None:
        """The value of the graph for anything, in floats where it lies on a grid."""
        x = self.env[x] if isinstance(x, fx.Node) else x
        if isinstance(x, (Activation, Pixels)):
            return as_floats(self.graph, x)
        if isinstance(x, Weight):
            return self.graph.constant(x.floats())
        if isinstance(x, (float, int)) and not isinstance(x, bool):
            return self.graph.constant(np.float32(x))
        if isinstance(x, torch.SymInt):
            raise ExportError("expected arithmetic without the number of images; use the mean or a constant")
        return self.graph.constant(x) if isinstance(x, (Tensor, bool, np.ndarray)) else x

    def floats(self, x: Any, like: fx.Node | None = None) -> ir.Value | None:
        """As `value`, a constant in the type of what `like` gives, or the node at work: ONNX mixes no types."""
        x = self.env[x] if isinstance(x, fx.Node) else x
        kind = (like or self.node).meta["val"].dtype
        if isinstance(x, Tensor) and x.dtype != kind and x.dtype != torch.bool:
            return self.graph.constant(x.to(kind))
        if isinstance(x, (int, float)) and not isinstance(x, bool) and not kind.is_floating_point:
            return self.graph.constant(np.array(x, np.int64 if kind == torch.int64 else np.int32))
        return self.value(x)

    def moved(self, x: fx.Node, move: Callable[[Any], Any]) -> Any:
        """What an operator gives that only moves values: on integers where the format carries them."""
        source = self.env[x]
        if self.form.carries and isinstance(source, Activation):
            return source.moved(move)
        return move(self.value(x))

    def parts(self, x: fx.Node, divide: Callable[[Any], Sequence[Any]]) -> list[Any]:
        """As `moved`, of an operator that gives several."""
        source = self.env[x]
        if self.form.carries and isinstance(source, Activation):
            return [Activation(part, source.scale, source.zero) for part in divide(source.integers)]
        return list(divide(self.value(x)))

    def constant(self, x: Any) -> Tensor:
        """What depends on no image. Raises ExportError for others."""
        x = self.env[x] if isinstance(x, fx.Node) else x
        if isinstance(x, Weight):
            return torch.from_numpy(x.floats())
        if not isinstance(x, Tensor):
            raise ExportError("expected a constant, got what depends on the image")
        return x

    def owner(self, x: fx.Node) -> str:
        """Path of the module whose parameter or buffer this is, quantised or not; else of the module at work."""
        while x not in self.stored and x.args and isinstance(x.args[0], fx.Node):
            x = x.args[0]
        return self.stored.get(x, f"{self.where}.").rpartition(".")[0]

    def batch(self) -> ir.Value:
        """The number of images, (1,)."""
        return self.graph.op("Shape", self.image, start=0, end=1)  # type: ignore[no-any-return]


def shape_of(node: fx.Node) -> list[Any]:
    """Sizes of what a node gives: numbers, but for the batch's."""
    return list(node.meta["val"].shape)


def rank_of(node: fx.Node) -> int:
    """How many dimensions that has."""
    return len(node.meta["val"].shape)


def is_batch(size: Any) -> bool:
    """Whether a size hangs on the batch's."""
    return isinstance(size, torch.SymInt) and not size.node.is_constant()


def sizes(low: Lowering, wanted: Sequence[Any]) -> ir.Value:
    """A shape for Reshape: what hangs on the batch is what is left. Raises ExportError for two of those."""
    numbers = [-1 if is_batch(size) else int(size) for size in wanted]
    if numbers.count(-1) > 1:
        raise ExportError("expected the batch in one dimension, got it in two; keep it the first")
    return low.graph.integers(*numbers)


def each(value: Any, count: int) -> list[int]:
    """One number for all dimensions, or one of each."""
    given = [value] if isinstance(value, int) else [int(one) for one in value]
    return given * count if len(given) == 1 else given


def filled(given: Sequence[Any], usual: Sequence[Any]) -> Sequence[Any]:
    """Settings of an operator, the usual ones where it names none."""
    return [*given, *usual[len(given) :]]


@lowers(operator.getitem)
def getitem(low: Lowering, x: fx.Node, index: int) -> Any:
    """A part of what gives several."""
    return low.env[x][index]
