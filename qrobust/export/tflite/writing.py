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
    """A file under construction. tensors: by name of the ONNX value whose numbers they hold.

    through_floats: sums, levels that change their grid, and lower bounds that nothing fuses are computed as floats
    between DEQUANTIZE and QUANTIZE, as torch does. XNNPACK's ADD of int8 has factors of some 20 bits, by which up to 3
    sums in 10,000 fall a step away; its QUANTIZE of int8 has 8, by which 3 levels in 100 do; it has no MAXIMUM of int8,
    which breaks a file into parts. Floats take up to 5 % longer in a ResNet-20. Kernels of microcontrollers stay on
    integers.
    """

    def __init__(self, graph: Graph, *, through_floats: bool) -> None:
        self.graph, self.flat, self.through_floats = graph, Flat(), through_floats
        self.tensors: dict[str, Tensor] = {}
        self.floats: dict[int, Tensor] = {}  # by index of levels, where floats are read

    def requantised(self, x: Tensor, output: Output) -> Tensor:
        """Floats, or levels of another grid, on this one."""
        if x.grid == output.grid and x.least >= output.least:
            return replace(x, shift=output.shift)
        if self.through_floats:
            return self.rounded(self.in_floats(x, f"{output.name}.before"), output)
        made, _ = self.make(output, x.shape, nonnegative=x.nonnegative)
        self.flat.op("QUANTIZE", [x.index], made.index, "QuantizeOptions")
        return self.bounded(made, output)

    def rounded(self, x: Tensor, output: Output) -> Tensor:
        """Floats on the grid of an output; rounding is monotone, so that its least level may bound what is rounded."""
        assert output.grid is not None
        if output.least > LEAST:
            bounded = self.flat.tensor(f"{output.name}.bounded", x.shape)
            if output.least == output.grid.zero:
                self.flat.op("RELU", [x.index], bounded.index)
            else:
                least = np.array([(output.least - output.grid.zero) * output.grid.scale], np.float32)
                bound = self.flat.constant(f"{output.name}.least", least)
                self.flat.op("MAXIMUM", [x.index, bound], bounded.index, "MaximumMinimumOptions")
            x = bounded
        made = self.flat.tensor(output.name, x.shape, output.grid, shift=output.shift, least=output.least)
        self.flat.op("QUANTIZE", [x.index], made.index, "QuantizeOptions")
        return made

    def in_floats(self, x: Tensor, name: str) -> Tensor:
        """What levels stand for; floats are their own."""
        if x.grid is None:
            return x
        if x.index not in self.floats:
            self.floats[x.index] = made = self.flat.tensor(name, x.shape)
            self.flat.op("DEQUANTIZE", [x.index], made.index, "DequantizeOptions")
        return self.floats[x.index]

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
        if self.through_floats:
            return self.rounded(self.in_floats(x, f"{output.name}.before"), output)
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
        return x if output.on_integers else self.in_floats(x, f"{name}.f")

    def shaped(self, x: Tensor, shape: Sequence[int], name: str) -> Tensor:
        """The same numbers in another shape, in the order in which they lie."""
        if x.shape == tuple(shape):
            return x
        made = self.flat.tensor(f"{name}.shaped", shape, x.grid, shift=x.shift, least=x.least)
        sizes = np.array([-1, *shape[1:]], np.int32)
        index = self.flat.constant(f"{name}.shape", sizes)
        self.flat.op("RESHAPE", [x.index, index], made.index, "ReshapeOptions", newShape=sizes.tolist())
        return made
