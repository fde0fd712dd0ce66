"""Steps on the images that a graph takes and on what flows between layers: Quantize → Clip → Dequantize."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...errors import ExportError
from .graph import (
    WEIGHTED,
    Array,
    before,
    constant,
    first_input,
    initialiser,
    levels,
    maker,
    nodes,
    readers,
    remove_unread,
    replace,
    required,
    set_input,
)

NHWC_TO_NCHW = [0, 3, 1, 2]


def byte_input(model: ir.Model) -> bool:
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


CARRIES_INTEGERS = ("Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Pad")
SIGNED_LEVELS = 127  # of a symmetric INT8
IMAGE_STEPS = ("QuantizeLinear", "Transpose")  # between an image and its first layer
ALIGNMENT = 4  # input channels that onnxruntime's integer convolution reads at once


def unsigned_activations(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: activations are uint8; signed ones move by a zero point of 128.

    QLinearAdd takes two inputs of one type, and signed ones behind relu do not fuse.
    """
    changed = False
    for node in nodes(model, "QuantizeLinear"):
        zero_point = constant(node.inputs[2])
        if zero_point is not None and zero_point.dtype == np.int8:
            _shift_to_unsigned(model, node)
            changed = True
    return changed


def integers_through_shapes(model: ir.Model) -> bool:
    """Ensures: what only moves values, between a Dequantize and a Gemm or Conv, moves integers.

    The layer then reads a DequantizeLinear itself, which is what onnxruntime asks of an integer Gemm.
    """
    changed = False
    for node in nodes(model, *CARRIES_INTEGERS):
        source = maker(node.inputs[0], "DequantizeLinear")
        alone = source is not None and len(source.outputs[0].uses()) == 1 and not node.outputs[0].is_graph_output()
        if source is None or not alone or required(source.inputs[1]).ndim:
            continue
        if node.op_type == "Pad" and node.attributes.get_string("mode", "constant") == "constant":
            if constant(node.inputs[2] if len(node.inputs) > 2 else None) not in (None, 0):
                continue
            zero_point = source.inputs[2]
            assert zero_point is not None
            set_input(node, 2, zero_point)  # of 0
        node.replace_input_with(0, source.inputs[0])
        _dequantise_behind(node, source)
        remove_unread(model, source)
        changed = True
    return changed


def integers_through_parts(model: ir.Model) -> bool:
    """Ensures: a Concat of slices of one Dequantize, as circular padding is written, puts integers together."""
    changed = False
    for node in nodes(model, "Concat"):
        slices = [part for value in node.inputs if (part := maker(value, "Slice")) is not None]
        whole = [part.inputs[0] if (part := maker(value, "Slice")) else value for value in node.inputs]
        source = maker(whole[0], "DequantizeLinear")
        if source is None or any(value is not whole[0] for value in whole) or required(source.inputs[1]).ndim:
            continue
        if node.outputs[0].is_graph_output() or any(len(part.outputs[0].uses()) > 1 for part in slices):
            continue
        for reader in (*slices, node):
            for index, value in enumerate(reader.inputs):
                if value is whole[0]:
                    reader.replace_input_with(index, source.inputs[0])
        for part in slices:
            part.outputs[0].type = None
        _dequantise_behind(node, source)
        remove_unread(model, source)
        changed = True
    return changed


def _dequantise_behind(node: ir.Node, source: ir.Node) -> None:
    """What read the node's output reads it through a Dequantize like `source`."""
    moved = node.outputs[0]
    again = ir.node("DequantizeLinear", [moved, *source.inputs[1:]], dict(source.attributes))
    ir.convenience.replace_all_uses_with(moved, again.outputs[0])
    again.replace_input_with(0, moved)
    node.append(again)
    moved.type = None


def align_channels(model: ir.Model) -> bool:
    """Ensures: a convolution of the image reads a multiple of four channels; the added ones hold 0.

    onnxruntime's fast integer convolution takes no three channels: ResNet-20's first one needs 0.6 of its
    time with four, and a batch of 32 images 0.96 of its own.
    """
    changed = False
    for conv in nodes(model, "Conv"):
        x, weight = (maker(value, "DequantizeLinear") for value in conv.inputs[:2])
        integers = constant(weight.inputs[0]) if weight is not None else None
        if x is None or weight is None or integers is None or not _holds_image(x.inputs[0]):
            continue
        missing = -integers.shape[1] % ALIGNMENT
        if not missing or len(x.outputs[0].uses()) != 1 or conv.attributes.get_int("group", 1) != 1:
            continue
        pads = initialiser(model, np.array([0, 0, 0, 0, 0, missing, 0, 0], np.int64))
        set_input(x, 0, before(x, "Pad", [first_input(x), pads]))
        wider = np.pad(integers, [(0, 0), (0, missing), (0, 0), (0, 0)])
        weight.replace_input_with(0, initialiser(model, wider))
        changed = True
    return changed


def symmetric_activations(model: ir.Model) -> bool:
    """Requires: tidy. Ensures: every quantiser is INT8 with zero point 0, its bounds a Clip of floats before it.

    Unsigned levels up to 127 are levels of INT8. Those up to 255 are not: they are rounded as floats.
    Raises ExportError if no layer reads integers then.
    """
    changed = False
    for node in nodes(model, "QuantizeLinear"):
        low, high, last = levels(node)
        if high > SIGNED_LEVELS:
            _to_arithmetic(model, node)
            changed = True
            continue
        if last is node and required(node.inputs[2]).dtype == np.int8:
            continue  # the whole range, or done before
        changed, scale = True, required(node.inputs[1])
        bounds = _floats(model, [scale * low, scale * high])
        ir.convenience.replace_all_uses_with(last.outputs[0], node.outputs[0])
        set_input(node, 0, before(node, "Clip", [first_input(node), *bounds]))
        remove_unread(model, last)
        zero = initialiser(model, np.array(0, np.int8))
        for reader in (node, *readers(node.outputs[0])):
            reader.replace_input_with(2, zero)
        node.outputs[0].type = ir.TensorType(ir.DataType.INT8)
    layers = [node for node in nodes(model, *WEIGHTED) if maker(node.inputs[1], "DequantizeLinear")]
    if layers and not any(maker(layer.inputs[0], "DequantizeLinear") for layer in layers):
        raise ExportError(
            "expected activations of 7 bits or fewer, which a symmetric INT8 holds, got 8; "
            "quantise to 7 bits, or choose another target"
        )
    return changed


def activations_as_arithmetic(model: ir.Model) -> bool:
    """Requires: weights not in DequantizeLinear. Ensures: s · clip(round(x / s)) in float for every quantiser.

    For providers without integer layers; onnxruntime would make 8-bit weights of float ones that stand
    between a Dequantize and a Quantize.
    """
    changed = False
    for node in nodes(model, "QuantizeLinear"):
        _to_arithmetic(model, node)
        changed = True
    return changed


def half_precision(model: ir.Model) -> bool:
    """Requires: weights and activations as arithmetic. Ensures: float16, but for images, logits and scales of weights.

    Integers are multiplied by their scales in float32: onnxruntime does it once, at load, but would multiply float16
    with every image. Raises ExportError for a weight beyond float16's range, or a scale below it.
    """
    products = [node for node in nodes(model, "Mul") if all(_stored(value) is not None for value in node.inputs)]
    factors = [value for node in products for value in node.inputs]
    wide = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT and v.uses()]
    wide = [value for value in wide if value not in factors]
    products = [node for node in products if not any(reader.op_type == "Cast" for reader in readers(node.outputs[0]))]
    if not wide and not products:
        return False
    for value in wide:
        divides = any(reader.op_type == "Div" for reader in readers(value))
        ir.convenience.replace_all_uses_with(value, initialiser(model, _half(required(value), divides=divides)))
    for node in nodes(model, "Cast"):
        if node.attributes.get_int("to") == ir.DataType.FLOAT and node.outputs[0] not in factors:
            node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT16))
    for node in products:
        integers, scale = (_stored(value) for value in node.inputs)
        assert integers is not None
        assert scale is not None
        _half(integers.astype(np.float32) * scale)
        for reader in readers(node.outputs[0]):
            narrowed = before(reader, "Cast", [node.outputs[0]], {"to": int(ir.DataType.FLOAT16)})
            reader.replace_input_with(reader.inputs.index(node.outputs[0]), narrowed)
    _cast_ends(model)
    return True


def _stored(value: ir.Value | None) -> Array | None:
    """The constant behind a value, cast or not."""
    cast = maker(value, "Cast")
    return constant(value if cast is None else cast.inputs[0])


def _half(array: Array, *, divides: bool = False) -> Array:
    """float16. Raises ExportError where that is infinite, or zero in a divisor."""
    with np.errstate(over="ignore"):
        small = array.astype(np.float16)
    if not np.isfinite(small).all() or (divides and not small.all()):
        raise ExportError(f"expected weights and scales in the range of float16, got {np.abs(array).max():.3g}")
    return small


def _cast_ends(model: ir.Model) -> None:
    for source in (value for value in model.graph.inputs if value.dtype == ir.DataType.FLOAT):
        cast = ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT16)})
        model.graph[0].prepend(cast)
        ir.convenience.replace_all_uses_with(source, cast.outputs[0])
        cast.replace_input_with(0, source)
    for index, result in enumerate(list(model.graph.outputs)):
        node = result.producer()
        assert node is not None
        cast = ir.node("Cast", [result], {"to": int(ir.DataType.FLOAT)})
        node.append(cast)
        final = cast.outputs[0]
        final.name, final.type, final.shape = result.name, result.type, result.shape
        result.name, result.type = f"{result.name}_half", None
        model.graph.outputs[index] = final


def _to_arithmetic(model: ir.Model, quantiser: ir.Node) -> None:
    low, high, last = levels(quantiser)
    scale, lowest, highest = _floats(model, [required(quantiser.inputs[1]), low, high])
    value = before(quantiser, "Div", [first_input(quantiser), scale])
    value = before(quantiser, "Clip", [before(quantiser, "Round", [value]), lowest, highest])
    value = before(quantiser, "Mul", [value, scale])
    for reader in readers(last.outputs[0]):
        replace(reader, value)
    remove_unread(model, last, quantiser)


def _floats(model: ir.Model, numbers: Sequence[Any]) -> list[ir.Value]:
    return [initialiser(model, np.asarray(number, np.float32)) for number in numbers]


def _holds_image(value: ir.Value | None) -> bool:
    while value is not None and (node := value.producer()) is not None and node.op_type in IMAGE_STEPS:
        value = node.inputs[0]
    return value is not None and value.is_graph_input()


def _shift_to_unsigned(model: ir.Model, quantiser: ir.Node) -> None:
    """int8 with zero point z → uint8 with z + 128, from a QuantizeLinear to all DequantizeLinear behind."""
    shifted = initialiser(model, _shift(required(quantiser.inputs[2])))
    quantiser.replace_input_with(2, shifted)
    waiting = [quantiser]
    while waiting:
        node = waiting.pop()
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        for reader in readers(node.outputs[0]):
            if reader.op_type == "DequantizeLinear":
                reader.replace_input_with(2, shifted)
                continue
            if reader.op_type == "Clip":
                for index in (1, 2):
                    reader.replace_input_with(index, initialiser(model, _shift(required(reader.inputs[index]))))
            if reader.op_type == "Pad" and len(reader.inputs) > 2:
                reader.replace_input_with(2, shifted)
            waiting.append(reader)


def _shift(bound: Array) -> Array:
    return (bound.astype(np.int16) + 128).astype(np.uint8)
