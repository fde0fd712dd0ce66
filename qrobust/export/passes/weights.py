"""Steps on weights: what is constant is folded into them, and how they lie in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from .graph import (
    WEIGHTED,
    Array,
    before,
    constant,
    dequantise,
    initialiser,
    maker,
    nodes,
    raise_opset,
    replace,
    required,
    set_input,
    weights,
)

LARGEST_BIAS = 2**30
NOT_FOLDED = ("QuantizeLinear", "DequantizeLinear", "Clip")  # of weights: they stay integers


def fold_constants(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: what is computed of constants alone (pads, shapes) is one; integer weights stay."""
    changed = False
    for node in list(model.graph):
        values = [constant(value) for value in node.inputs]
        if node.op_type in NOT_FOLDED or len(node.outputs) != 1 or any(value is None for value in values):
            continue
        replace(node, initialiser(model, _evaluated(node, values)))
        changed = True
    return changed


def _evaluated(node: ir.Node, values: Sequence[Array | None]) -> Array:
    """What a node gives, by ONNX's own evaluator."""
    names = [f"i{index}" for index in range(len(values))]
    proto = onnx.helper.make_node(node.op_type, names, ["o"])
    proto.attribute.extend(ir.to_proto(attribute) for attribute in node.attributes.values())
    feeds: dict[str, Any] = dict(zip(names, values, strict=True))
    (result,) = ReferenceEvaluator(proto).run(None, feeds)
    return np.asarray(result)


def fold_weight_clips(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: no Clip has a constant input (onnxruntime does not fuse behind one)."""
    changed = False
    for node in nodes(model, "Clip"):
        values = constant(node.inputs[0])
        if values is not None:
            low, high = constant(node.inputs[1]), constant(node.inputs[2])
            replace(node, initialiser(model, np.clip(values, low, high).astype(values.dtype)))
            changed = True
    return changed


def fold_batch_norm(model: ir.Model) -> bool:
    """Requires: weight clips folded. Ensures: no batch-norm behind a convolution that feeds it alone.

    y = γ(Wx + b - μ)/σ + β with σ = √(var + ε) becomes W' = (γ/σ)W, b' = β + (γ/σ)(b - μ). Integer weights
    keep their integers: the scale takes |γ/σ| and a negative γ flips the channel's signs.
    """
    changed = False
    for node in nodes(model, "BatchNormalization"):
        conv = maker(node.inputs[0], "Conv")
        if conv is None or len(conv.outputs[0].uses()) != 1:
            continue
        gamma, beta, mean, variance = (required(value).astype(np.float64) for value in node.inputs[1:5])
        factor = gamma / np.sqrt(variance + node.attributes["epsilon"].as_float())
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        shifted = beta + factor * ((0 if bias is None else bias) - mean)
        _scale_weight(model, conv, factor)
        set_input(conv, 2, initialiser(model, shifted.astype(np.float32)))
        replace(node, conv.outputs[0])
        changed = True
    return changed


def fit_biases(model: ir.Model) -> bool:
    """Requires: batch-norm folded. Ensures: every bias of an integer layer fits int32 at scale s_x · s_w.

    A channel whose scale is so small that its bias would not fit (γ near 0, dead weights) gets a larger scale, at
    which its weights round to what little they are. A runtime that quantises float biases itself needs it too.
    """
    changed = False
    for _, weight, bias, scale, x_scale in _biased(model):
        fitting = np.maximum(scale, np.abs(bias) / (x_scale * LARGEST_BIAS))
        if (fitting > scale).any():
            _rescale_weight(model, weight, scale, fitting)
            changed = True
    return changed


def quantise_biases(model: ir.Model) -> bool:
    """Requires: biases fit. Ensures: biases of integer layers are int32 with scale s_x · s_w."""
    changed = False
    for node, _, bias, scale, x_scale in _biased(model):
        bias_scale = (x_scale * scale).astype(np.float32)
        integers = np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32)
        set_input(node, 2, dequantise(model, node, integers, bias_scale))
        changed = True
    return changed


def _biased(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Node, Array, Array, float]]:
    """Integer layers with a float bias: layer, what makes its weight, bias, scale by channel, scale of the input."""
    for node in nodes(model, *WEIGHTED):
        x, weight = (maker(value, "DequantizeLinear") for value in node.inputs[:2])
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if x is not None and weight is not None and bias is not None:
            scale = required(weight.inputs[1]).astype(np.float64) * np.ones(len(bias))
            yield node, weight, bias, scale, float(required(x.inputs[1]))


def _scale_weight(model: ir.Model, conv: ir.Node, factor: Array) -> None:
    """Multiply a convolution's output channels by `factor` (float64, channels)."""
    weight = maker(conv.inputs[1], "DequantizeLinear")
    if weight is None:
        scaled = required(conv.inputs[1]) * factor.reshape(-1, 1, 1, 1)
        set_input(conv, 1, initialiser(model, scaled.astype(np.float32)))
        return
    integers, scale = required(weight.inputs[0]), required(weight.inputs[1]).astype(np.float64)
    flipped = integers * np.sign(factor).astype(np.int8).reshape(-1, 1, 1, 1)
    new_scale = np.where(factor == 0, scale, scale * np.abs(factor)).astype(np.float32)
    set_input(conv, 1, dequantise(model, conv, flipped.astype(np.int8), new_scale))


def _rescale_weight(model: ir.Model, weight: ir.Node, old: Array, new: Array) -> None:
    integers = required(weight.inputs[0])
    ratio = (old / new).reshape(-1, *[1] * (integers.ndim - 1))
    weight.replace_input_with(0, initialiser(model, np.rint(integers * ratio).astype(np.int8)))
    weight.replace_input_with(1, initialiser(model, new.astype(np.float32)))
    weight.attributes["axis"] = ir.AttrInt64("axis", 0)


# Smallest integer types that hold a symmetric range, with the opset and IR version that brought them.
NARROW = ((1, ir.DataType.INT2, 25, 13), (7, ir.DataType.INT4, 21, 10))


def own_constants(model: ir.Model) -> bool:
    """Requires: constants shared. Ensures: what makes one layer's weight makes no other's: integers and zero point.

    With `session.x64quantprecision` onnxruntime rewrites both in place, layer by layer, and refuses a file where
    another layer has done it before. It also makes no integer layer of a weight without a zero point, and a layer
    that it leaves in float cannot run then; so every INT8 weight has one.
    """
    changed = False
    for node, _, _ in list(weights(model)):
        for index in (0, 2):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = constant(value)
            if value is not None and array is not None and len(value.uses()) > 1:
                node.replace_input_with(index, initialiser(model, array, value.dtype))
                changed = True
    return changed


def narrow_storage(model: ir.Model, *, opset: int = 25, cast: bool = True) -> bool:
    """Requires: clips folded. Ensures: INT8 weights lie at the least width that fits.

    opset: the highest that the target reads, which decides what widths there are. cast: a Cast to INT8
    follows; onnxruntime folds it when it loads the file and then fuses integer convolutions, while INT4
    straight into DequantizeLinear runs as float, slower than a float network, from fewer bytes. INT2 has the
    Cast in any case: onnxruntime 1.31 makes an integer convolution of it that it cannot run.
    """
    changed = False
    for node, integers, _ in list(weights(model)):
        found = _least(integers, opset)
        if found is not None:
            dtype, needed, version = found
            raise_opset(model, needed, version)
            stored = initialiser(model, integers, dtype)
            if cast or dtype == ir.DataType.INT2:
                stored = before(node, "Cast", [stored], {"to": int(ir.DataType.INT8)})
            else:
                node.resize_inputs(2)  # a zero point would have to be as narrow
            node.replace_input_with(0, stored)
            changed = True
    return changed


def weights_as_arithmetic(model: ir.Model) -> bool:
    """Ensures: integer weights become floats by Cast and Mul, which a runtime computes once, at load.

    A DequantizeLinear is kept for integer kernels, and without those it would run with every image.
    """
    changed = False
    for node, integers, scale in list(weights(model)):
        source, floats = node.inputs[0], {"to": int(ir.DataType.FLOAT)}
        assert source is not None
        factor = initialiser(model, _beside(scale, integers))
        replace(node, before(node, "Mul", [before(node, "Cast", [source], floats), factor]))
        changed = True
    return changed


def weights_as_floats(model: ir.Model) -> bool:
    """Ensures: weights and biases are float32 initialisers."""
    changed = False
    for node, integers, scale in list(weights(model)):
        replace(node, initialiser(model, (integers * _beside(scale, integers)).astype(np.float32)))
        changed = True
    return changed


def _least(integers: Array, opset: int) -> tuple[ir.DataType, int, int] | None:
    if integers.dtype != np.int8:
        return None
    largest = np.abs(integers).max(initial=0)
    for level, dtype, needed, version in NARROW:
        if largest <= level and needed <= opset:
            return dtype, needed, version
    return None


def _beside(scale: Array, integers: Array) -> Array:
    """A scale for each output channel in a shape that multiplies the weight."""
    shape = scale.shape and (-1, *[1] * (integers.ndim - 1))
    return scale.reshape(shape).astype(np.float32)
