"""Steps to QONNX, where one Quant node stands for what takes ONNX three."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .graph import Array, first_input, initialiser, levels, nodes, readers, remove_unread, replace, required, weights

DOMAIN = "qonnx.custom_op.general"


def to_qonnx(model: ir.Model) -> bool:
    """Requires: clips and batch-norm folded. Ensures: Quant(x, scale, zero, bits) for weights and activations.

    Quant gives s·(round(clip(x/s + z)) - z), rounding half to even: the definition is that of
    github.com/fastmachinelearning/qonnx (docs/qonnx-custom-ops/quant_op.md).
    """
    changed = False
    for node, integers, scale in list(weights(model)):
        factor = scale.reshape(-1, *[1] * (integers.ndim - 1)) if scale.ndim else scale
        floats = initialiser(model, (integers * factor).astype(np.float32))
        replace(node, _quant(model, node, floats, factor, _weight_bits(integers), signed=True, narrow=True))
        changed = True
    for node in nodes(model, "QuantizeLinear"):
        _replace_activation(model, node)
        changed = True
    if changed:
        model.graph.opset_imports[DOMAIN] = 2
    return changed


def _replace_activation(model: ir.Model, quantiser: ir.Node) -> None:
    low, high, last = levels(quantiser)
    bits, narrow = math.ceil(math.log2(high - low + 1)), low == -high
    scale = required(quantiser.inputs[1])
    value = _quant(model, quantiser, first_input(quantiser), scale, bits, signed=low < 0, narrow=narrow)
    for reader in readers(last.outputs[0]):
        replace(reader, value)
    remove_unread(model, last, quantiser)


def _quant(
    model: ir.Model, reader: ir.Node, x: ir.Value, scale: Array, bits: int, *, signed: bool, narrow: bool
) -> ir.Value:
    numbers = [np.asarray(scale, np.float32), np.array(0, np.float32), np.array(bits, np.float32)]
    attributes: dict[str, int | str] = {"signed": int(signed), "narrow": int(narrow), "rounding_mode": "ROUND"}
    node = ir.node("Quant", [x, *(initialiser(model, number) for number in numbers)], attributes, domain=DOMAIN)
    reader.prepend(node)
    return node.outputs[0]


def _weight_bits(integers: Array) -> int:
    """Of the narrow signed range that holds them, 2 or more."""
    return math.ceil(math.log2(max(1, int(np.abs(integers.astype(np.int16)).max())) + 1)) + 1
