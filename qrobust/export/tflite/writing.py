"""What layers write with: the tensors made so far, and the forms that all results share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import ExportError
from .flat import Flat, Grid, Tensor
from .reading import Graph

LEAST, MOST = -128, 127


@dataclass(frozen=True)
class Output:
    """What a layer's result is called and lies on; floats without a grid.

    least: the lowest level of its quantiser. moves: levels stay those that they are.
    """

    name: str
    grid: Grid | None = None
    shift: int = 0
    least: int = -128
    moves: bool = False

    @property
    def on_integers(self) -> bool:
        """Whether the layer reads levels."""
        return self.moves or self.grid is not None


class Writing:
    """A file under construction. tensors: by name of the ONNX value whose numbers they hold."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.flat = graph, Flat()
        self.tensors: dict[str, Tensor] = {}
        self.floats: dict[str, Tensor] = {}  # of levels, where a float layer reads them

    def requantised(self, x: Tensor, output: Output) -> Tensor:
        """Floats, or levels of another grid, on this one."""
        if x.grid == output.grid and x.least >= output.least:
            return replace(x, shift=output.shift)
        made, _ = self.make(output, x.shape, nonnegative=x.nonnegative)
        self.flat.op("QUANTIZE", [x.index], made.index, "QuantizeOptions")
        return self.bounded(made, output)

    def make(self, output: Output, shape: Sequence[int], *, nonnegative: bool = False) -> tuple[Tensor, bool]:
        """The tensor of an output, and whether a RELU that its operator may fuse is its lower bound.

        nonnegative: nothing below 0 can come.
        """
        if output.grid is None:
            return self.flat.tensor(output.name, shape), False
        least = max(LEAST, output.grid.zero) if nonnegative else LEAST
        relu = output.least > least and output.least == output.grid.zero
        made = self.flat.tensor(output.name, shape, output.grid, shift=output.shift, least=least)
        return made, relu

    def bounded(self, x: Tensor, output: Output, *, relu: bool = False) -> Tensor:
        """No lower than the output's least level. relu: its operator has fused one."""
        if output.grid is None or x.least >= output.least:
            return x
        if relu:
            return replace(x, least=output.least)
        made = self.flat.tensor(f"{output.name}.bounded", x.shape, x.grid, shift=x.shift, least=output.least)
        level = np.array([output.least], np.int8)
        scale, zero = np.array([output.grid.scale], np.float32), output.grid.zero
        bound = self.flat.constant(f"{output.name}.least", level, scale, zero=zero)
        self.flat.op("MAXIMUM", [x.index, bound], made.index, "MaximumMinimumOptions")
        return made

    def read(self, name: str, output: Output) -> Tensor:
        """What a layer reads: levels where it computes on integers, else floats."""
        weights = self.graph.weights(name) if name not in self.tensors else None
        if weights is not None:
            raise ExportError(f"{name}: expected a value that is computed, got a constant; choose ort-cpu")
        x = self.tensors[name]
        if output.on_integers or x.grid is None:
            return x
        if name not in self.floats:
            self.floats[name] = made = self.flat.tensor(f"{name}.f", x.shape)
            self.flat.op("DEQUANTIZE", [x.index], made.index, "DequantizeOptions")
        return self.floats[name]

    def shaped(self, x: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """The same numbers in another shape, in the order in which they lie."""
        if x.shape == tuple(shape):
            return x
        made = self.flat.tensor(f"{name}.shaped", shape, x.grid, shift=x.shift, least=x.least)
        sizes = np.array([-1, *shape[1:]], np.int32)
        index = self.flat.constant(f"{name}.shape", sizes)
        self.flat.op("RESHAPE", [x.index, index], made.index, "ReshapeOptions", newShape=sizes.tolist())
        return made
