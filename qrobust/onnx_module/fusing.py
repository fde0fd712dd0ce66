"""Chains of quantisation become one step, whose gradient can be chosen; those that change nothing go."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import Tensor

from .node import Node

FAKE = "FakeQuantize"
CLOSE = 1e-4  # of a step: what float32 leaves of a product with 127
QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"
# Operators whose results are values of their first input, or 0.
MOVES = {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "MaxPool",
         "Relu", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}  # fmt: skip


def fuse(nodes: list[Node], constants: dict[str, Tensor], output: str) -> tuple[list[Node], str]:
    """Quantise → Clip becomes a narrower Quantise, and so does Clip → Quantise with whole steps as bounds.

    Quantise → Dequantise with one scale becomes a FakeQuantize, and so does Div → Round → Clip → Mul; one that finds
    its values on its steps already goes. Returns the nodes and the name that the output has then.
    """
    nodes = _narrowed(_bounded_before(_of_arithmetic(nodes, constants, output), output), output)
    return _once(*_paired(nodes, constants, output), constants)


def _readers(nodes: list[Node], output: str) -> dict[str, list[Node | None]]:
    """Who reads a value; None stands for the world outside."""
    readers: dict[str, list[Node | None]] = defaultdict(list)
    for node in nodes:
        for name in node.inputs:
            readers[name].append(node)
    readers[output].append(None)
    return readers


def _of_arithmetic(nodes: list[Node], constants: dict[str, Tensor], output: str) -> list[Node]:
    readers, fused, gone = _readers(nodes, output), dict[str, Node](), set[str]()
    for node in nodes:
        match _chain(node, readers):
            case [Node(op="Div") as divided, Node(op="Round"), Node(op="Clip") as clip, Node(op="Mul") as product]:
                bounds = _bounds(clip)
                scale, other = (
                    constants.get(one.inputs[1]) if len(one.inputs) > 1 else None for one in (divided, product)
                )
                if bounds is None or scale is None or other is None or not torch.equal(scale, other):
                    continue
                attributes = {"low": bounds[0], "high": bounds[1], "output_dtype": onnx.TensorProto.INT32, "divides": 1}
                fused[product.outputs[0]] = replace(
                    divided, op=FAKE, domain="", outputs=product.outputs, attributes=attributes
                )
                gone.update((divided.outputs[0], clip.inputs[0], clip.outputs[0]))
    left = (node for node in nodes if node.outputs[0] not in gone)
    return [fused.get(node.outputs[0], node) for node in left]


def _chain(node: Node, readers: dict[str, list[Node | None]]) -> list[Node]:
    """A node and the three behind it, each the only reader of the one before."""
    found = [node]
    while len(found) < 4:
        match readers[found[-1].outputs[0]]:
            case [Node() as only] if only.inputs[0] == found[-1].outputs[0]:
                found.append(only)
            case _:
                break
    return found


def _bounded_before(nodes: list[Node], output: str) -> list[Node]:
    """Bounds of floats before a quantiser are its range: gradients pass both in the chosen form."""
    readers, fused, gone = _readers(nodes, output), dict[str, Node](), set[str]()
    for node in nodes:
        match readers[node.outputs[0]] if node.op == "Clip" else []:
            case [Node(op="QuantizeLinear") as quantiser]:
                steps = _whole_steps(node, quantiser)
                if steps is not None:
                    gone.add(node.outputs[0])
                    attributes = {**quantiser.attributes, "low": steps[0], "high": steps[1]}
                    inputs = (node.inputs[0], *quantiser.inputs[1:])
                    fused[quantiser.outputs[0]] = replace(quantiser, inputs=inputs, attributes=attributes)
    return [fused.get(node.outputs[0], node) for node in nodes if node.outputs[0] not in gone]


def _whole_steps(clip: Node, quantiser: Node) -> tuple[float, float] | None:
    """The bounds of a Clip in steps of the quantiser behind it, if they are whole and its zero point is 0."""
    bounds, scale = _bounds(clip), quantiser.constant(1)
    shifted = len(quantiser.inputs) > 2 and quantiser.constant(2) != 0
    if bounds is None or not scale or shifted or not clip.inputs or any(map(math.isnan, (scale, *bounds))):
        return None
    low, high = (bound / scale for bound in bounds)
    nearest = [bound if math.isinf(bound) else float(round(bound)) for bound in (low, high)]
    if any(abs(a - b) > CLOSE for a, b in zip((low, high), nearest, strict=True) if math.isfinite(a)):
        return None
    return nearest[0], nearest[1]


def _narrowed(nodes: list[Node], output: str) -> list[Node]:
    readers, gone, left = _readers(nodes, output), set[str](), list[Node]()
    for node in nodes:
        if node.op == QUANTISE:
            bounds = None
            match readers[node.outputs[0]]:
                case [Node(op="Clip") as clip]:
                    bounds = _bounds(clip)
            if bounds is not None:
                gone.add(clip.outputs[0])
                node = replace(
                    node, outputs=clip.outputs, attributes={**node.attributes, "low": bounds[0], "high": bounds[1]}
                )
        elif node.outputs[0] in gone:
            continue
        left.append(node)
    return left


def _bounds(clip: Node) -> tuple[float, float] | None:
    """Of constant bounds; those left out are infinite."""
    if clip.opset < 11:
        return clip.number("min", -math.inf), clip.number("max", math.inf)
    found = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        given = len(clip.inputs) > index and clip.inputs[index]
        found.append(clip.constant(index) if given else default)
    low, high = found
    return None if low is None or high is None else (low, high)


def _paired(nodes: list[Node], constants: dict[str, Tensor], output: str) -> tuple[list[Node], str]:
    """The fused node has the name of the first Dequantise behind it; what the others gave is that, too."""
    readers, renamed, gone, left = _readers(nodes, output), dict[str, str](), set[str](), list[Node]()
    for node in nodes:
        if node.outputs[0] in gone:
            continue
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        behind = readers[node.outputs[0]]
        if node.op == QUANTISE and behind and all(_undoes(node, reader, constants) for reader in behind):
            ends = [reader.outputs[0] for reader in behind if reader is not None]
            gone.update(ends)
            renamed.update(dict.fromkeys(ends, ends[0]))
            node = replace(node, op=FAKE, domain="", outputs=(ends[0],))
        left.append(node)
    return left, renamed.get(output, output)


def _undoes(quantiser: Node, reader: Node | None, constants: dict[str, Tensor]) -> bool:
    """Whether a reader is a Dequantise with the same scale and zero point."""
    if reader is None or reader.op != DEQUANTISE or reader.inputs[0] != quantiser.outputs[0]:
        return False
    same = all(quantiser.attributes.get(key) == reader.attributes.get(key) for key in ("axis", "block_size"))
    ours, theirs = (tuple(filter(None, node.inputs[1:3])) for node in (quantiser, reader))
    values = [constants.get(name) for name in (*ours, *theirs)]
    if len(ours) != len(theirs) or any(value is None for value in values):
        return False
    scalar = all(value is not None and value.numel() == 1 for value in values)
    pairs = zip(ours, theirs, strict=True)
    return (same or scalar) and all(a == b or torch.equal(constants[a], constants[b]) for a, b in pairs)


def _once(nodes: list[Node], output: str, constants: dict[str, Tensor]) -> tuple[list[Node], str]:
    """Without quantisers of one scale whose input another gave with the same settings and that was only moved since.

    They change no value, but each would cut the soft form's gradient to a tenth: that of a value right on a step.
    """
    steps, renamed, left = dict[str, tuple[Any, ...]](), dict[str, str](), list[Node]()
    for node in nodes:
        node = replace(node, inputs=tuple(renamed.get(name, name) for name in node.inputs))
        own = _settings(node, constants) if node.op == FAKE else None
        if own is not None and steps.get(node.inputs[0]) == own:
            renamed[node.outputs[0]] = node.inputs[0]
            continue
        if own is None and node.op in MOVES and not node.domain:
            own = steps.get(node.inputs[0])
            if node.op == "Concat" and len({steps.get(name) for name in node.inputs}) > 1:
                own = None
        if own is not None:
            steps.update(dict.fromkeys(node.outputs, own))
        left.append(node)
    return left, renamed.get(output, output)


def _settings(node: Node, constants: dict[str, Tensor]) -> tuple[Any, ...] | None:
    """Scale, zero point, its type and bounds of a quantiser of one scale."""
    values = [constants.get(name) for name in node.inputs[1:3] if name]
    if any(value is None or value.numel() != 1 for value in values):
        return None
    numbers = tuple(float(value) for value in values if value is not None)
    return (*numbers, node.kind(2), *(node.attributes.get(key) for key in ("low", "high", "output_dtype")))
