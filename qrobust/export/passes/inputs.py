"""Steps on the images that a graph takes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import before, constant, first_input, initialiser, maker, nodes, readers, replace, required, set_input

NHWC_TO_NCHW = [0, 3, 1, 2]


def camera_input(model: ir.Model) -> bool:
    """Ensures: the graph takes uint8 (batch, h, w, c), as a camera gives it.

    Images on the 8-bit grid are what the first quantiser gives, so it goes, and the result is the same to
    the bit; a network that reads floats gets a Cast and a division by 255.
    """
    source = model.graph.inputs[0]
    if source.dtype == ir.DataType.UINT8:
        return False
    assert source.shape is not None
    users, shape = readers(source), [source.shape[axis] for axis in (0, 2, 3, 1)]
    source.type, source.shape = ir.TensorType(ir.DataType.UINT8), ir.Shape(shape)
    turned = ir.node("Transpose", [source], {"perm": NHWC_TO_NCHW})
    model.graph[0].prepend(turned)
    floats = None
    for reader in users:
        if reader.op_type == "QuantizeLinear" and _is_pixel_grid(reader):
            replace(reader, turned.outputs[0])
        else:
            floats = floats or _to_unit(model, turned)
            for index, value in enumerate(reader.inputs):
                if value is source:
                    set_input(reader, index, floats)
    return True


def pixels_as_floats(model: ir.Model) -> bool:
    """Ensures: a camera's pixels become floats by Cast and Mul, where nothing else reads unsigned integers."""
    changed = False
    for node in nodes(model, "DequantizeLinear"):
        turned = maker(node.inputs[0], "Transpose")
        if turned is not None and first_input(turned).is_graph_input():
            floats = before(node, "Cast", [turned.outputs[0]], {"to": int(ir.DataType.FLOAT)})
            scale = initialiser(model, required(node.inputs[1]).astype(np.float32))
            replace(node, before(node, "Mul", [floats, scale]))
            changed = True
    return changed


def _is_pixel_grid(quantiser: ir.Node) -> bool:
    scale, zero = constant(quantiser.inputs[1]), constant(quantiser.inputs[2])
    return zero is not None and zero.dtype == np.uint8 and zero == 0 and scale == np.float32(1 / 255)


def _to_unit(model: ir.Model, pixels: ir.Node) -> ir.Value:
    floats = ir.node("Cast", pixels.outputs, {"to": int(ir.DataType.FLOAT)})
    unit = ir.node("Div", [*floats.outputs, initialiser(model, np.array(255, np.float32))])
    pixels.append([floats, unit])
    return unit.outputs[0]
