"""The formats of a target: how integer weights, biases and quantised activations lie in its graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from .building import Array, Building, to_half
from .quantised import Activation, Levels, Pixels, Weight

QONNX = "qonnx.custom_op.general"
SYMMETRIC = (-128, 127)
# Smallest integer types that hold a symmetric range, with the opset that brought them.
NARROW = ((1, ir.DataType.INT2, 25), (7, ir.DataType.INT4, 21))
Source = ir.Value | Pixels
Note = Callable[[ir.Value, int], None]  # takes the value that holds an activation's integers, and their zero point


@dataclass(frozen=True)
class Layer:
    """What a convolution or linear layer computes with. x: where it reads integers. bias: float64."""

    name: str
    weight: Weight
    bias: Array | None
    x: Activation | None


class Form:
    """What the formats share: float32 weights and biases, activations rounded in float.

    carries: what only moves values moves integers. half: the graph is float16. fits: scales grow with biases.
    storage: "cast", "direct" or "bytes". linear: "matmulinteger" or "qdq".
    """

    carries = half = fits = False

    def __init__(self, storage: str = "bytes", linear: str = "qdq") -> None:
        self.storage, self.linear = storage, linear
        self.layers: list[bool] = []  # of every quantised layer, whether it reads integers

    def layer(self, graph: Building, layer: Layer) -> tuple[ir.Value, ir.Value | None]:
        """Weight and bias of a quantised layer."""
        weight, bias, x = layer.weight, layer.bias, layer.x
        self.layers.append(x is not None)
        if self.fits and x is not None and bias is not None:
            weight = weight.fitting(bias, float(x.scale))
        made = self.weight(graph, weight, f"{layer.name}.weight")
        if bias is None:
            return made, None
        return made, self.bias(graph, replace(layer, weight=weight), bias)

    def weight(self, graph: Building, weight: Weight, name: str) -> ir.Value:
        """An integer weight as the floats that a layer reads."""
        return graph.constant(weight.floats(), name=name)

    def factor(self, graph: Building, layer: Layer) -> ir.Value:
        """The weight (inputs, outputs) of a linear layer of tokens, as the floats that a product reads."""
        self.layers.append(layer.x is not None)
        return self.weight(graph, layer.weight, f"{layer.name}.weight")

    def product(self, _: Building, __: Layer, /) -> ir.Value | None:
        """Such a layer's product as one of integers, None where the format has none."""
        return None

    def bias(self, graph: Building, layer: Layer, bias: Array) -> ir.Value:
        """A layer's bias, float64, as it reads it."""
        return graph.constant(bias, name=f"{layer.name}.bias")

    def activation(self, graph: Building, x: Source, grid: Levels, note: Note) -> Activation | ir.Value:
        """x on a grid."""
        if isinstance(x, Pixels):
            if grid.is_of_pixels():
                floats = graph.op("Cast", x.integers, to=graph.float_type)
                return graph.op("Mul", floats, graph.constant(grid.scale))  # type: ignore[no-any-return]
            x = as_floats(graph, x)
        return self._rounded(graph, x, grid, note)

    def check(self) -> None:
        """After the last layer: raises ExportError for a graph that the format is not for."""

    def _rounded(self, graph: Building, x: ir.Value, grid: Levels, note: Note, /) -> ir.Value:
        """s·clip(round(x/s)) in float; onnxruntime would make 8-bit weights of float ones that stand between a
        Dequantize and a Quantize.
        """
        if graph.half:
            to_half(np.asarray(grid.scale), divides=True)
        scale = graph.constant(grid.scale)
        low, high = (graph.constant(np.float32(level - grid.zero)) for level in (grid.low, grid.high))
        clipped = graph.op("Clip", graph.op("Round", graph.op("Div", x, scale)), low, high)
        note(clipped, 0)
        return graph.op("Mul", clipped, scale)  # type: ignore[no-any-return]


class Compact(Form):
    """Integer weights, uint8 activations, float biases: the smallest file."""

    fits = True

    def weight(self, graph: Building, weight: Weight, name: str) -> ir.Value:
        """Stored at the least width; without a Cast no zero point, which would have to be as narrow."""
        stored, narrow = self.stored(graph, weight, name)
        if narrow and stored.producer() is None and not weight.zero.any():
            zero = None
        else:
            zero = graph.constant(_by_channel(weight.zero, weight), name=f"{name}.zero", own=True)
        scale = graph.constant(_squeezed(weight), name=f"{name}.scale")
        return graph.part(f"{name}.f", "DequantizeLinear", stored, scale, zero, axis=weight.axis)

    def stored(self, graph: Building, weight: Weight, name: str) -> tuple[ir.Value, bool]:
        """The integers as a layer reads them, INT8 behind a Cast; whether they lie at less than 8 bits.

        onnxruntime folds the Cast when it loads the file and then fuses integer convolutions, while INT4 straight into
        DequantizeLinear runs as float, slower than a float network, from fewer bytes. INT2 has the Cast in any case:
        onnxruntime makes an integer convolution of it that it cannot run. Of no two layers they are the same value:
        with `session.x64quantprecision` onnxruntime rewrites them in place, and refuses what it finds rewritten.
        """
        kind, opset = self._least(graph, weight)
        if kind is None:
            return graph.constant(weight.integers, name=name, own=True), False
        graph.require(opset, kind.name)
        value = graph.constant(weight.integers, kind, name=name, own=True)
        if self.storage == "cast" or kind == ir.DataType.INT2:
            value = graph.part(f"{name}.i", "Cast", value, to=int(ir.DataType.INT8))
        return value, True

    def _least(self, graph: Building, weight: Weight) -> tuple[ir.DataType | None, int]:
        largest = int(np.abs(weight.integers.astype(np.int16)).max(initial=0))
        if self.storage != "bytes" and weight.integers.dtype == np.int8:
            for level, kind, opset in NARROW:
                if largest <= level and opset <= graph.most:
                    return kind, opset
        return None, 0

    def activation(self, graph: Building, x: Source, grid: Levels, note: Note) -> Activation | ir.Value:
        """uint8; signed levels move by 128: QLinearAdd takes two inputs of one type, and signed ones behind relu do
        not fuse.
        """
        if isinstance(x, Pixels):
            if grid.is_of_pixels():
                return Activation(x.integers, grid.scale, np.array(0, np.uint8), of_image=True)
            x = as_floats(graph, x)
        moved = 128 if grid.low < 0 else 0
        zero = np.array(grid.zero + moved, np.uint8)
        q = graph.op("QuantizeLinear", x, graph.constant(grid.scale), graph.constant(zero))
        bounds = (grid.low + moved, grid.high + moved)
        if bounds != (0, 255):
            q = graph.op("Clip", q, *(graph.constant(np.array(bound, np.uint8)) for bound in bounds))
        note(q, int(zero))
        return Activation(q, grid.scale, zero, of_image=x.producer() is None)


class Integer(Compact):
    """What runtimes make integer layers of: biases are int32 too, integers pass through what moves them."""

    carries = True

    def product(self, graph: Building, layer: Layer, /) -> ir.Value | None:
        """MatMulInteger, times both scales. That of the activation passes a DequantizeLinear, which onnxruntime does
        not fold: it looks for two scales, to make one MatMulIntegerToFloat of all with the bias.
        """
        if layer.x is None or self.linear != "matmulinteger":
            return None
        name, weight, x = f"{layer.name}.weight", layer.weight, layer.x
        stored, narrow = self.stored(graph, weight, name)
        if narrow and stored.producer() is None:
            stored = graph.part(f"{name}.i", "Cast", stored, to=int(ir.DataType.INT8))
        zeros = [graph.constant(x.zero)]
        if weight.zero.any():
            zeros.append(graph.constant(_by_channel(weight.zero, weight), name=f"{name}.zero", own=True))
        total = graph.op("Cast", graph.op("MatMulInteger", x.integers, stored, *zeros), to=int(ir.DataType.FLOAT))
        one = graph.op("DequantizeLinear", graph.constant(np.array(1, np.int8)), graph.constant(x.scale))
        scale = graph.op("Mul", one, graph.constant(_squeezed(weight), name=f"{name}.scale"))
        return graph.op("Mul", total, scale)  # type: ignore[no-any-return]

    def bias(self, graph: Building, layer: Layer, bias: Array) -> ir.Value:
        """int32 where the layer reads integers, in steps of its sums."""
        if layer.x is None:
            return super().bias(graph, layer, bias)
        steps = layer.weight.bias_scale(float(layer.x.scale))
        integers = np.rint(bias / steps.astype(np.float64)).astype(np.int32)
        stored = graph.constant(integers, name=f"{layer.name}.bias", own=True)
        scale = graph.constant(steps, name=f"{layer.name}.bias.scale")
        return graph.part(f"{layer.name}.bias.f", "DequantizeLinear", stored, scale, axis=0)


class Half(Compact):
    """float16 for providers without integer layers; weights are integers in the file, multiplied by their scales in
    float32: onnxruntime does it once, at load, but would multiply float16 with every image.
    """

    half, fits = True, False

    def weight(self, graph: Building, weight: Weight, name: str) -> ir.Value:
        """By Cast and Mul: a DequantizeLinear is kept for integer layers, and without those runs with every image."""
        to_half(weight.floats())
        stored, _ = self.stored(graph, weight, name)
        value = graph.part(f"{name}.i32", "Cast", stored, to=int(ir.DataType.FLOAT))
        if weight.zero.any():
            zero = graph.constant(weight.zero.astype(np.float32), name=f"{name}.zero", exact=True)
            value = graph.part(f"{name}.z", "Sub", value, zero)
        scale = graph.constant(weight.scale, name=f"{name}.scale", exact=True)
        value = graph.part(f"{name}.f32", "Mul", value, scale)
        return graph.part(f"{name}.f", "Cast", value, to=int(ir.DataType.FLOAT16))

    def activation(self, graph: Building, x: Source, grid: Levels, note: Note) -> Activation | ir.Value:
        """As of floats."""
        return Form.activation(self, graph, x, grid, note)


class Symmetric(Compact):
    """Every quantiser is INT8 with zero point 0, its bounds a Clip of floats before it.

    Unsigned levels up to 127 are levels of INT8. Those up to 255 are not: they are rounded as floats.
    """

    def activation(self, graph: Building, x: Source, grid: Levels, note: Note) -> Activation | ir.Value:
        """As the class says."""
        low, high = grid.low - grid.zero, grid.high - grid.zero
        if isinstance(x, Pixels) or high > SYMMETRIC[1] or low < SYMMETRIC[0]:
            return Form.activation(self, graph, x, grid, note)
        within: ir.Value = x
        if (low, high) != SYMMETRIC:
            bounds = (grid.scale * np.float32(low), grid.scale * np.float32(high))
            within = graph.op("Clip", x, *(graph.constant(bound) for bound in bounds))
        zero = np.array(0, np.int8)
        q = graph.op("QuantizeLinear", within, graph.constant(grid.scale), graph.constant(zero))
        note(q, 0)
        return Activation(q, grid.scale, zero)

    def check(self) -> None:
        """Raises ExportError if no layer reads integers."""
        if self.layers and not any(self.layers):
            raise ExportError(
                "expected activations of 7 bits or fewer, which a symmetric INT8 holds, got 8; "
                "quantise to 7 bits, or choose another target"
            )


class Qonnx(Form):
    """One Quant for every weight and activation, which gives s·(round(clip(x/s + z)) - z), rounding half to even.

    The definition is that of github.com/fastmachinelearning/qonnx (docs/qonnx-custom-ops/quant_op.md).
    """

    def weight(self, graph: Building, weight: Weight, name: str) -> ir.Value:
        """Of the narrow signed range that holds the integers, 2 bits or more."""
        largest = int(np.abs(weight.integers.astype(np.int16)).max(initial=0))
        if weight.zero.any():
            bits, narrow = 8, 0
        else:
            bits, narrow = math.ceil(math.log2(max(1, largest) + 1)) + 1, int(largest < 128)
        graph.domains[QONNX] = 2
        floats = graph.constant(weight.floats(), name=name, own=True)
        numbers = (("scale", weight.scale), ("zero", weight.zero.astype(np.float32)), ("bits", np.float32(bits)))
        constants = (graph.constant(np.asarray(number), name=f"{name}.{role}") for role, number in numbers)
        signed = int(weight.integers.dtype == np.int8)
        return graph.part(
            f"{name}.f", "Quant", floats, *constants,
            domain=QONNX, signed=signed, narrow=narrow, rounding_mode="ROUND",
        )  # fmt: skip

    def _rounded(self, graph: Building, x: ir.Value, grid: Levels, _: Note, /) -> ir.Value:
        graph.domains[QONNX] = 2
        bits, narrow = math.ceil(math.log2(grid.high - grid.low + 1)), grid.low == -grid.high
        numbers = (grid.scale, np.float32(grid.zero), np.float32(bits))
        return graph.op(  # type: ignore[no-any-return]
            "Quant", x, *(graph.constant(number) for number in numbers),
            domain=QONNX, signed=int(grid.low < 0), narrow=int(narrow), rounding_mode="ROUND",
        )  # fmt: skip


FORMS: dict[str, type[Form]] = {
    "integer": Integer,
    "compact": Compact,
    "float": Form,
    "float16": Half,
    "symmetric": Symmetric,
    "qonnx": Qonnx,
}


def as_floats(graph: Building, x: Activation | Pixels) -> ir.Value:
    """The floats that integers stand for, made where the first reader asks."""
    if x.floats is not None:
        return x.floats
    if isinstance(x, Pixels):
        floats = graph.op("Cast", x.integers, to=graph.float_type)
        x.floats = made = graph.op("Div", floats, graph.constant(np.float32(255)))
    else:
        scale, zero = graph.constant(x.scale), graph.constant(x.zero)
        x.floats = made = graph.op("DequantizeLinear", x.integers, scale, zero)
    return made  # type: ignore[no-any-return]


def _squeezed(weight: Weight) -> Array:
    """Scales as DequantizeLinear takes them: one, or one for each channel."""
    return weight.scale.reshape(-1) if weight.scale.ndim else weight.scale


def _by_channel(zero: Array, weight: Weight) -> Array:
    """In the shape of the scales."""
    return np.ascontiguousarray(np.broadcast_to(zero, weight.scale.shape).reshape(_squeezed(weight).shape))
