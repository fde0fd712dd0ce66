"""Steps from Brevitas' QCDQ graph to one that runs as integers and is stored at its true width.

Each step changes an onnx-ir model in place and says whether it did. Run them in the order of `LOWERING`:
a step may rely on what the ones before it ensure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

Array = npt.NDArray[Any]
WEIGHTED = ("Conv", "Gemm")
# Smallest integer types that hold a symmetric range, with the opset and IR version that brought them.
NARROW = ((1, ir.DataType.INT2, 25, 13), (7, ir.DataType.INT4, 21, 10))
LARGEST_BIAS = 2**30


def tidy(model: ir.Model) -> bool:
    """Ensures: constants are initialisers, no initialiser is an input, nothing is unused."""
    steps = (
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    return _run(model, *steps)


def fold_weight_clips(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: no Clip has a constant input (onnxruntime does not fuse behind one)."""
    changed = False
    for node in _nodes(model, "Clip"):
        values = constant(node.inputs[0])
        if values is not None:
            low, high = constant(node.inputs[1]), constant(node.inputs[2])
            folded = _initialiser(model, np.clip(values, low, high).astype(values.dtype))
            _replace(node, folded)
            changed = True
    return changed


def fold_batch_norm(model: ir.Model) -> bool:
    """Requires: weight clips folded. Ensures: no batch-norm behind a convolution that feeds it alone.

    y = γ(Wx + b - μ)/σ + β with σ = √(var + ε) becomes W' = (γ/σ)W, b' = β + (γ/σ)(b - μ). Integer weights
    keep their integers: the scale takes |γ/σ| and a negative γ flips the channel's signs.
    """
    changed = False
    for node in _nodes(model, "BatchNormalization"):
        source = node.inputs[0]
        conv = source.producer() if source is not None else None
        if conv is None or conv.op_type != "Conv" or len(conv.outputs[0].uses()) != 1:
            continue
        gamma, beta, mean, variance = (_required(value).astype(np.float64) for value in node.inputs[1:5])
        factor = gamma / np.sqrt(variance + node.attributes["epsilon"].as_float())
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        shifted = beta + factor * ((0 if bias is None else bias) - mean)
        _scale_weight(model, conv, factor)
        _set_input(conv, 2, _initialiser(model, shifted.astype(np.float32)))
        _replace(node, conv.outputs[0])
        changed = True
    return changed


def quantise_biases(model: ir.Model) -> bool:
    """Requires: batch-norm folded. Ensures: biases of integer layers are int32 with scale s_x · s_w.

    A channel whose scale is so small that its bias would not fit (γ near 0) gets a larger scale, at which
    its weights round to what little they are.
    """
    changed = False
    for node in _nodes(model, *WEIGHTED):
        x, weight = (_dequantiser(value) for value in node.inputs[:2])
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if x is None or weight is None or bias is None:
            continue
        x_scale = float(_required(x.inputs[1]))
        scale = _required(weight.inputs[1]).astype(np.float64) * np.ones(len(bias))
        fitting = np.maximum(scale, np.abs(bias) / (x_scale * LARGEST_BIAS))
        if (fitting > scale).any():
            _rescale_weight(model, weight, scale, fitting)
        bias_scale = (x_scale * fitting).astype(np.float32)
        integers = np.rint(bias / bias_scale.astype(np.float64)).astype(np.int32)
        _set_input(node, 2, _dequantise(model, node, integers, bias_scale))
        changed = True
    return changed


def unsigned_activations(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: activations are uint8; signed ones move by a zero point of 128.

    QLinearAdd takes two inputs of one type, and signed ones behind relu do not fuse.
    """
    changed = False
    for node in _nodes(model, "QuantizeLinear"):
        zero_point = constant(node.inputs[2])
        if zero_point is not None and zero_point.dtype == np.int8:
            _shift_to_unsigned(model, node)
            changed = True
    return changed


def drop_zero_points(model: ir.Model) -> bool:
    """Ensures: weights and biases carry no zero point (0 is the default)."""
    changed = False
    for node in _nodes(model, "DequantizeLinear"):
        if constant(node.inputs[0]) is not None and len(node.inputs) > 2 and node.inputs[2] is not None:
            node.resize_inputs(2)
            changed = True
    return changed


def narrow_storage(model: ir.Model) -> bool:
    """Requires: clips folded, zero points dropped. Ensures: integer weights lie at the least width that fits.

    A Cast to INT8 follows: onnxruntime folds it when it loads the file and then fuses integer convolutions,
    while sub-byte weights straight into DequantizeLinear run as float, slower than a float network.
    """
    changed = False
    for node in _nodes(model, "DequantizeLinear"):
        values = constant(node.inputs[0])
        if values is None or values.dtype != np.int8:
            continue
        for largest, dtype, opset, version in NARROW:
            if np.abs(values).max(initial=0) <= largest:
                stored = _initialiser(model, values, dtype)
                cast_node = ir.node("Cast", [stored], {"to": ir.DataType.INT8})
                node.prepend(cast_node)
                node.replace_input_with(0, cast_node.outputs[0])
                model.graph.opset_imports[""] = max(model.graph.opset_imports[""], opset)
                model.ir_version = max(model.ir_version, version)
                changed = True
                break
    return changed


def share_constants(model: ir.Model) -> bool:
    """Ensures: equal small constants are stored once, and unused ones not at all."""
    steps = (common.DeduplicateInitializersPass(), common.RemoveUnusedNodesPass())
    return _run(model, *steps)


LOWERING: tuple[Callable[[ir.Model], bool], ...] = (
    tidy,
    fold_weight_clips,
    fold_batch_norm,
    quantise_biases,
    unsigned_activations,
    drop_zero_points,
    narrow_storage,
    share_constants,
)


def constant(value: ir.Value | None) -> Array | None:
    """The array behind an initialiser, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _run(model: ir.Model, *steps: Callable[[ir.Model], ir.passes.PassResult]) -> bool:
    changed = False
    for step in steps:  # not any(...), which would stop at the first that changes something
        changed |= step(model).modified
    return changed


def _required(value: ir.Value | None) -> Array:
    array = constant(value)
    if array is None:
        raise ValueError(f"expected a constant, got {value}")
    return array


def _nodes(model: ir.Model, *kinds: str) -> Iterator[ir.Node]:
    return iter([node for node in model.graph if node.op_type in kinds])


def _initialiser(model: ir.Model, array: Array, dtype: ir.DataType | None = None) -> ir.Value:
    name = f"constant_{len(model.graph.initializers)}"
    while name in model.graph.initializers:
        name += "_"
    if dtype is None:
        tensor: ir.TensorProtocol = ir.tensor(array, name=name)
    else:
        tensor = ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _replace(node: ir.Node, value: ir.Value) -> None:
    old = node.outputs[0]
    if old.is_graph_output():
        value.name, value.type, value.shape = old.name, old.type, old.shape
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    cast(ir.Graph, node.graph).remove(node, safe=True)


def _set_input(node: ir.Node, index: int, value: ir.Value) -> None:
    if len(node.inputs) <= index:
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def _dequantiser(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _dequantise(model: ir.Model, reader: ir.Node, integers: Array, scale: Array) -> ir.Value:
    inputs = [_initialiser(model, integers), _initialiser(model, scale)]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0})
    reader.prepend(node)
    return node.outputs[0]


def _scale_weight(model: ir.Model, conv: ir.Node, factor: Array) -> None:
    """Multiply a convolution's output channels by `factor` (float64, channels)."""
    weight = _dequantiser(conv.inputs[1])
    if weight is None:
        scaled = _required(conv.inputs[1]) * factor.reshape(-1, 1, 1, 1)
        _set_input(conv, 1, _initialiser(model, scaled.astype(np.float32)))
        return
    integers, scale = _required(weight.inputs[0]), _required(weight.inputs[1]).astype(np.float64)
    flipped = integers * np.sign(factor).astype(np.int8).reshape(-1, 1, 1, 1)
    new_scale = np.where(factor == 0, scale, scale * np.abs(factor)).astype(np.float32)
    _set_input(conv, 1, _dequantise(model, conv, flipped.astype(np.int8), new_scale))


def _rescale_weight(model: ir.Model, weight: ir.Node, old: Array, new: Array) -> None:
    integers = _required(weight.inputs[0])
    ratio = (old / new).reshape(-1, *[1] * (integers.ndim - 1))
    weight.replace_input_with(0, _initialiser(model, np.rint(integers * ratio).astype(np.int8)))
    weight.replace_input_with(1, _initialiser(model, new.astype(np.float32)))
    weight.attributes["axis"] = ir.AttrInt64("axis", 0)


def _shift_to_unsigned(model: ir.Model, quantiser: ir.Node) -> None:
    """int8 with zero point z → uint8 with z + 128, from a QuantizeLinear to all DequantizeLinear behind."""
    shifted = _initialiser(model, (_required(quantiser.inputs[2]).astype(np.int16) + 128).astype(np.uint8))
    quantiser.replace_input_with(2, shifted)
    readers = [quantiser]
    while readers:
        node = readers.pop()
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        for reader in node.outputs[0].consumers():
            if reader.op_type == "DequantizeLinear":
                reader.replace_input_with(2, shifted)
                continue
            if reader.op_type == "Clip":
                for index in (1, 2):
                    bound = (_required(reader.inputs[index]).astype(np.int16) + 128).astype(np.uint8)
                    reader.replace_input_with(index, _initialiser(model, bound))
            readers.append(reader)
