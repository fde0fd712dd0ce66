"""Steps that decide how weights lie in the file, and what a runtime makes of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import Array, before, constant, initialiser, raise_opset, replace, weights

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
