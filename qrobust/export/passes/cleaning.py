"""Steps that change no result: what is unused, equal or said by default goes."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from .graph import nodes, required_shape, run

# What an attribute is taken for when it is missing; kernel_shape follows from the weight.
DEFAULTS: dict[str, dict[str, object]] = {
    "Conv": {"group": 1, "auto_pad": "NOTSET"},
    "Gemm": {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0},
    "Flatten": {"axis": 1},
    "DequantizeLinear": {"axis": 1},
    "QuantizeLinear": {"axis": 1},
}
ONES, ZEROS = ("dilations", "strides"), ("pads",)


def tidy(model: ir.Model) -> bool:
    """Ensures: constants are initialisers, no initialiser is an input, nothing is unused."""
    return run(
        model,
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )


def share_constants(model: ir.Model) -> bool:
    """Ensures: equal small constants are stored once, and unused ones not at all."""
    return run(model, common.DeduplicateInitializersPass(), common.RemoveUnusedNodesPass())


def explicit_pads(model: ir.Model) -> bool:
    """Ensures: no convolution has `auto_pad`, which onnxruntime computes with dilations of 1 alone.

    Torch's "same" asks for a stride of 1; the odd pixel is at the end.
    """
    changed = False
    for node in nodes(model, "Conv"):
        if node.attributes.get_string("auto_pad", "NOTSET") != "SAME_UPPER":
            continue
        kernel = required_shape(node.inputs[1])[2:]
        dilations = node.attributes.get_ints("dilations", [1] * len(kernel))
        total = [dilation * (size - 1) for dilation, size in zip(dilations, kernel, strict=True)]
        begin = [pad // 2 for pad in total]
        end = [pad - half for pad, half in zip(total, begin, strict=True)]
        del node.attributes["auto_pad"]
        node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])
        changed = True
    return changed


def drop_defaults(model: ir.Model) -> bool:
    """Ensures: no convolution, Gemm, Flatten or quantiser spells out a default."""
    changed = False
    for node in model.graph:
        known = DEFAULTS.get(node.op_type, {})
        for name, attribute in list(node.attributes.items()):
            default = name in known and attribute.value == known[name]
            if default or (node.op_type == "Conv" and _plain(attribute)):
                del node.attributes[name]
                changed = True
    return changed


def _plain(attribute: ir.Attr) -> bool:
    if attribute.name == "kernel_shape":
        return True
    usual = 1 if attribute.name in ONES else 0 if attribute.name in ZEROS else None
    return usual is not None and set(attribute.as_ints()) == {usual}


def drop_types(model: ir.Model) -> bool:
    """Ensures: only inputs and outputs state types and shapes; a reader infers the others."""
    changed = False
    values = [output for node in model.graph for output in node.outputs] + list(model.graph.initializers.values())
    for value in values:
        if not value.is_graph_output() and (value.type, value.shape) != (None, None):
            value.type = value.shape = None
            changed = True
    return changed
