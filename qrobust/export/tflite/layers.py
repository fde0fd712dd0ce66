"""The operators of ONNX that have a form in LiteRT, each on int8 levels or on floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ...errors import ExportError
from .flat import Tensor
from .reading import Weights, attributes
from .writing import Output, Writing

Array = npt.NDArray[Any]
ONCE, LARGEST, MOST_SUM = 0.5, 127, 2**30


Layer = Callable[[Writing, onnx.NodeProto, Output], Tensor]
LAYERS: dict[str, Layer] = {}


def layer(*kinds: str) -> Callable[[Layer], Layer]:
    """What writes these operators of ONNX."""

    def add(function: Layer) -> Layer:
        LAYERS.update(dict.fromkeys(kinds, function))
        return function

    return add


def refuse(node: onnx.NodeProto, expected: str, got: object) -> ExportError:
    """That a form of an operator has none in LiteRT."""
    return ExportError(f"{node.name or node.output[0]}: expected {expected} for LiteRT, got {got}; choose ort-cpu")


@layer("Conv")
def conv(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """CONV_2D or DEPTHWISE_CONV_2D."""
    stated, x = attributes(node), to.read(node.input[0], output)
    weights, group = to.graph.weights(node.input[1]), stated.get("group", 1)
    if weights is None or weights.values.ndim != 4 or len(x.shape) not in (2, 4):
        raise refuse(node, "a convolution of images by constant weights", "another")
    x = to.shaped(x, (1, 1, 1, x.shape[1]), node.input[0]) if len(x.shape) == 2 else x
    weights = _without_padding(weights, x.shape[3]) if group == 1 else weights
    depthwise = group > 1 and group == x.shape[3] and weights.values.shape[1] == 1
    if group > 1 and not depthwise:
        raise refuse(node, "a plain or a depthwise convolution", f"{group} groups of {x.shape[3]} channels")
    x, padding = padded(to, node, x, weights.values.shape[2:])
    bias = to.graph.weights(node.input[2]) if len(node.input) > 2 else None
    return _weighted(to, output, x, Window(weights, bias, padding, stated, depthwise))


@dataclass(frozen=True)
class Window:
    """What a convolution slides over its input. padding: of the schema. stated: the node's attributes."""

    weights: Weights
    bias: Weights | None
    padding: int
    stated: dict[str, Any]
    depthwise: bool


def _weighted(to: Writing, output: Output, x: Tensor, window: Window) -> Tensor:
    weights, padding, stated, depthwise = window.weights, window.padding, window.stated, window.depthwise
    kernel = weights.values.shape[2:]
    strides, dilations = (stated.get(key, [1, 1]) for key in ("strides", "dilations"))
    sizes = [
        -(-(x.shape[1 + d] - (0 if padding == 0 else (kernel[d] - 1) * dilations[d])) // strides[d]) for d in (0, 1)
    ]
    made, relu = to.make(output, (1, *sizes, len(weights.values)))
    read = parameters(to, output, x, weights, window.bias, order=(1, 2, 3, 0) if depthwise else (0, 2, 3, 1))
    settings = {
        "padding": padding, "strideH": strides[0], "strideW": strides[1],
        "dilationHFactor": dilations[0], "dilationWFactor": dilations[1], "fusedActivationFunction": int(relu),
    }  # fmt: skip
    if depthwise:
        multiplier = len(weights.values) // x.shape[3]
        to.flat.op(
            "DEPTHWISE_CONV_2D", [x.index, *read], made.index, "DepthwiseConv2DOptions",
            depthMultiplier=multiplier, **settings,
        )  # fmt: skip
    else:
        to.flat.op("CONV_2D", [x.index, *read], made.index, "Conv2DOptions", **settings)
    return to.bounded(made, output, relu=relu)


def _without_padding(weights: Weights, channels: int) -> Weights:
    """Without those of channels that a Pad added, which are 0 whatever they are multiplied by."""
    return replace(weights, values=weights.values[:, :channels])


def parameters(
    to: Writing, output: Output, x: Tensor, weights: Weights, bias: Weights | None, order: tuple[int, ...]
) -> list[int]:
    """The indices of a layer's weight, its dimensions in this order, and of its bias."""
    axis, count = order.index(0), len(weights.values)
    if output.grid is None or x.grid is None or weights.scale is None:
        biases = np.zeros(count, np.float32) if bias is None else bias.floats()
        laid = np.ascontiguousarray(weights.floats().transpose(order))
        return [to.flat.constant(f"{output.name}.weight", laid), to.flat.constant(f"{output.name}.bias", biases)]
    steps = (np.float64(x.grid.scale) * weights.scale.astype(np.float64)).astype(np.float32)
    integers = np.zeros(count, np.int64) if bias is None else _in_steps(output, bias, steps)
    times = boosts(weights, integers, steps / np.float32(output.grid.scale))
    scale = (weights.scale / times).astype(np.float32)
    column = times.reshape(-1, *[1] * (weights.values.ndim - 1))
    laid = np.ascontiguousarray((weights.values * column).transpose(order).astype(np.int8))
    biases, steps = (integers * times).astype(np.int32), (steps / times).astype(np.float32)
    return [
        to.flat.constant(f"{output.name}.weight", laid, scale, axis),
        to.flat.constant(f"{output.name}.bias", biases, steps),
    ]


def _in_steps(output: Output, bias: Weights, steps: Array) -> Array:
    """A bias in steps of its layer's sums. Raises ExportError for integers on another grid."""
    if bias.scale is None:
        return np.rint(bias.values / steps.astype(np.float64)).astype(np.int64)
    if not np.allclose(bias.scale, steps, rtol=1e-6, atol=0):
        raise ExportError(f"{output.name}: expected a bias in steps of its sums, got another; export again")
    return bias.values.astype(np.int64)


def boosts(weights: Weights, bias: Array, ratio: Array) -> Array:
    """By output channel a power of two that its weights and bias are multiplied with, and its scale divided by.

    Kernels of microcontrollers round a sum twice where its step is less than half of the output's (`ratio`); of larger
    sums the first rounding loses less. It changes nothing else, and costs nothing: weights have a byte anyway.
    """
    most = np.maximum(np.abs(weights.values.astype(np.int64)).reshape(len(bias), -1).max(1), 1)
    room = np.minimum(LARGEST / most, MOST_SUM / np.maximum(np.abs(bias), 1))
    times = 2.0 ** np.floor(np.log2(np.maximum(room, 1)))
    return np.where(ratio >= ONCE, 1, times).astype(np.int64)


def padded(to: Writing, node: onnx.NodeProto, x: Tensor, kernel: tuple[int, ...]) -> tuple[Tensor, int]:
    """x and the schema's padding, SAME (0) where that means what the node says, else VALID (1) behind a PAD."""
    stated = attributes(node)
    if stated.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID") or stated.get("ceil_mode"):
        raise refuse(node, "pads in numbers and sizes rounded down", "auto_pad or ceil_mode")
    strides, dilations, pads = (stated.get(key, [n] * count) for key, n, count in
                                (("strides", 1, 2), ("dilations", 1, 2), ("pads", 0, 4)))  # fmt: skip
    want = [[pads[0], pads[2]], [pads[1], pads[3]]]
    if not any(pads):
        return x, 1
    if want == [_same(x.shape[1 + d], kernel[d], strides[d], dilations[d]) for d in (0, 1)]:
        return x, 0
    return _pad(to, x, [[0, 0], *want, [0, 0]], node.output[0]), 1


def _same(size: int, kernel: int, stride: int, dilation: int) -> list[int]:
    """What SAME adds before and behind."""
    total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return [total // 2, total - total // 2]


def _pad(to: Writing, x: Tensor, pads: list[list[int]], name: str) -> Tensor:
    shape = [size + sum(pair) for size, pair in zip(x.shape, pads, strict=True)]
    made = to.flat.tensor(f"{name}.padded", shape, x.grid, shift=x.shift, least=x.least)
    index = to.flat.constant(f"{name}.pads", np.array(pads, np.int32))
    to.flat.op("PAD", [x.index, index], made.index, "PadOptions")
    return made


@layer("Pad")
def pad(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """PAD, with what stands for 0; channels that convolutions alone read are not added."""
    pads = [int(one) for one in to.graph.constants[node.input[1]]]
    x, rank = to.read(node.input[0], output), len(pads) // 2
    value = to.graph.constants[node.input[2]].item() if len(node.input) > 2 and node.input[2] else 0
    zero = x.grid.zero - x.shift if x.grid is not None and output.moves else 0
    if attributes(node).get("mode", b"constant") != b"constant" or rank != 4 or min(pads) < 0 or value != zero:
        raise refuse(node, "a Pad of images with zeros", "another")
    pairs = [[pads[d], pads[rank + d]] for d in (0, 2, 3, 1)]
    if not any(map(sum, pairs[:3])) and pairs[3][0] == 0 and _by_convolutions(to, node.output[0]):
        return x
    if output.grid is not None:
        return to.requantised(_pad(to, x, pairs, output.name), output)
    return _pad(to, x, pairs, output.name)


def _by_convolutions(to: Writing, name: str) -> bool:
    """Whether convolutions alone read a value, by weights that are 0 for channels that were added."""
    for reader in to.graph.readers[name]:
        if reader.op_type == "DequantizeLinear":
            if not _by_convolutions(to, reader.output[0]):
                return False
        elif reader.op_type != "Conv" or attributes(reader).get("group", 1) != 1:
            return False
    return True


@layer("Add", "Mul")
def pointwise(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """ADD or MUL of two values."""
    one, other = (to.read(name, output) for name in node.input)
    rank = max(len(one.shape), len(other.shape))
    one, other = (
        to.shaped(x, (1, 1, 1, x.shape[1]), name) if len(x.shape) == 2 and rank == 4 else x
        for x, name in zip((one, other), node.input, strict=True)
    )
    made, relu = to.make(output, np.broadcast_shapes(one.shape, other.shape))
    kind = node.op_type
    to.flat.op(kind.upper(), [one.index, other.index], made.index, f"{kind}Options", fusedActivationFunction=int(relu))
    return to.bounded(made, output, relu=relu)


@layer("Relu", "Clip")
def bounds(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """RELU, or MAXIMUM and MINIMUM; of floats, since quantisers take bounds before them as their own."""
    x = to.read(node.input[0], output)
    if output.grid is not None or x.grid is not None:
        raise refuse(node, "bounds of floats, or one Clip behind a quantiser", "another of levels")
    low, high = to.graph.bounds(node)
    for kind, bound in (("MAXIMUM", low), ("MINIMUM", high)):
        if np.isfinite(bound):
            made = to.flat.tensor(f"{output.name}.{kind.lower()}", x.shape)
            if kind == "MAXIMUM" and bound == 0:
                to.flat.op("RELU", [x.index], made.index)
            else:
                index = to.flat.constant(f"{made.index}.bound", np.array([bound], np.float32))
                to.flat.op(kind, [x.index, index], made.index, "MaximumMinimumOptions")
            x = made
    return x


@layer("MaxPool")
def max_pool(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """MAX_POOL_2D on the grid of what it reads; zeros stand for what lies outside, where nothing is less."""
    stated, x = attributes(node), to.read(node.input[0], output)
    kernel, strides = stated["kernel_shape"], stated.get("strides", [1, 1])
    if len(x.shape) != 4 or set(stated.get("dilations", [1])) != {1} or len(node.output) > 1:
        raise refuse(node, "a MaxPool of images without dilations", "another")
    inner, padding = padded(to, node, x, tuple(kernel))
    if padding == 1 and inner is not x and (x.grid is None or x.least < x.grid.zero):
        raise refuse(node, "values that are 0 or more where a MaxPool is padded unevenly", "others")
    sizes = [-(-(inner.shape[1 + d] - (0 if padding == 0 else kernel[d] - 1)) // strides[d]) for d in (0, 1)]
    shape = (1, *sizes, x.shape[3])
    made = to.flat.tensor(f"{output.name}.pooled", shape, x.grid, shift=x.shift, least=x.least)
    to.flat.op(
        "MAX_POOL_2D", [inner.index], made.index, "Pool2DOptions", padding=padding, strideH=strides[0],
        strideW=strides[1], filterHeight=kernel[0], filterWidth=kernel[1],
    )  # fmt: skip
    return made if output.grid is None else to.requantised(made, output)


@layer("AveragePool")
def average_pool(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """A depthwise convolution by ones, which rounds once: AVERAGE_POOL_2D with another grid behind it would twice."""
    stated, x = attributes(node), to.read(node.input[0], output)
    kernel = tuple(stated["kernel_shape"])
    if len(x.shape) != 4 or (any(stated.get("pads", [0])) and not stated.get("count_include_pad")):
        raise refuse(node, "an AveragePool of images that counts what it adds", "another")
    inner, padding = padded(to, node, x, kernel)
    ones, count = np.ones((x.shape[3], 1, *kernel), np.int8), kernel[0] * kernel[1]
    weights = Weights(ones, np.full(x.shape[3], 1 / count, np.float32))
    return _weighted(to, output, inner, Window(weights, None, padding, stated, depthwise=True))


@layer("GlobalAveragePool")
def global_average_pool(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """MEAN to (n, c): kept dimensions cost a kernel a quarter of a step."""
    x = to.read(node.input[0], output)
    made, _ = to.make(output, (1, x.shape[-1]), nonnegative=x.nonnegative)
    axes = to.flat.constant(f"{output.name}.axes", np.array([1, 2], np.int32))
    to.flat.op("MEAN", [x.index, axes], made.index, "ReducerOptions", keepDims=False)
    return to.bounded(made, output)


@layer("Concat")
def concat(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """CONCATENATION of parts on one grid."""
    axis, parts = attributes(node)["axis"] % to.graph.rank(node.input[0]), [to.read(n, output) for n in node.input]
    if axis == 0 or len({len(part.shape) for part in parts}) > 1:
        raise refuse(node, "parts of each image", "images behind one another")
    if output.moves:
        first = parts[0]
        output = Output(output.name, first.grid, first.shift, min(part.least for part in parts))
    if output.grid is not None:
        named = zip(parts, node.input, strict=True)
        parts = [to.requantised(part, replace(output, name=f"{output.name}.{name}")) for part, name in named]
    laid = {1: len(parts[0].shape) - 1, 2: 1, 3: 2}[axis]
    shape = list(parts[0].shape)
    shape[laid] = sum(part.shape[laid] for part in parts)
    least = min(part.least for part in parts)
    made = to.flat.tensor(output.name, shape, output.grid, shift=output.shift, least=least)
    to.flat.op("CONCATENATION", [part.index for part in parts], made.index, "ConcatenationOptions", axis=laid)
    return made


@layer("Flatten", "Reshape")
def flatten(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """RESHAPE to (n, features), channels first as the layer behind it has them."""
    x, shape = to.read(node.input[0], output), to.graph.shape(node.output[0])
    if len(shape) != 2:
        raise refuse(node, "a row for each image", shape)
    if len(x.shape) == 4 and x.shape[1:3] != (1, 1):
        first = (1, x.shape[3], *x.shape[1:3])
        turned = to.flat.tensor(f"{output.name}.turned", first, x.grid, shift=x.shift, least=x.least)
        order = to.flat.constant(f"{output.name}.order", np.array([0, 3, 1, 2], np.int32))
        to.flat.op("TRANSPOSE", [x.index, order], turned.index, "TransposeOptions")
        x = turned
    made = to.shaped(x, shape, output.name)
    return made if output.grid is None else to.requantised(made, output)


@layer("Gemm")
def gemm(to: Writing, node: onnx.NodeProto, output: Output) -> Tensor:
    """FULLY_CONNECTED."""
    stated, x, weights = attributes(node), to.read(node.input[0], output), to.graph.weights(node.input[1])
    plain = (stated.get("alpha", 1.0), stated.get("beta", 1.0), stated.get("transA", 0)) == (1.0, 1.0, 0)
    if weights is None or not plain or not (stated.get("transB") or weights.scale is None):
        raise refuse(node, "a linear layer by constant weights", "another")
    if not stated.get("transB"):
        weights = Weights(np.ascontiguousarray(weights.values.T))
    bias = to.graph.weights(node.input[2]) if len(node.input) > 2 else None
    made, relu = to.make(output, (1, len(weights.values)))
    read = parameters(to, output, x, weights, bias, order=(0, 1))
    settings = {"fusedActivationFunction": int(relu)}
    to.flat.op("FULLY_CONNECTED", [x.index, *read], made.index, "FullyConnectedOptions", **settings)
    return to.bounded(made, output, relu=relu)
