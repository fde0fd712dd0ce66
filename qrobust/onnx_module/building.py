"""From a graph to the steps of a module: chains of quantisation become one step, constants are computed once."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import onnx
import torch
from torch import Tensor

from ..errors import GraphError
from .node import Backward, Node, reason, shown
from .operators import LARGEST, TABLE, Function, fake_quantise, find, title
from .operators.table import INTEGERS
from .qoperators import DYNAMIC, WRITERS, expand
from .reading import Graph, Input

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
                attributes = {"low": bounds[0], "high": bounds[1], "output_dtype": onnx.TensorProto.INT32}
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


Values = dict[str, Tensor]
GIVES_FLOATS = ("DequantizeLinear", FAKE)  # of integers
SHORT = 8  # numbers: one for each axis of a tensor
SMALL = 4096  # elements: no operator makes much memory of so few


@dataclass(frozen=True)
class Step:
    """One call: the function of a node, and the values that nothing later reads."""

    node: Node
    function: Function
    frees: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """All of a module. batch: images that one pass takes, None for any number. classes: None if not known."""

    images: Input
    output: str
    steps: tuple[Step, ...]
    constants: Values
    backward: Backward
    batch: int | None
    classes: int | None


def covered() -> list[str]:
    """Names of all operators that an `OnnxModule` computes, with their domain if it is not ONNX's own."""
    return sorted({title(*key) for key in (*TABLE, *WRITERS)} | {"Constant"})


def plan(graph: Graph, backward: Backward) -> Plan:
    """The steps for a graph. Raises GraphError for an operator that is not covered, or used as ONNX forbids."""
    nodes = [part for node in _needed(graph.nodes, graph.output) for part in expand(node, graph.opset)]
    _check_covered(nodes)
    constants = dict(graph.constants)
    nodes, output = fuse(_fold(nodes, constants, dict(graph.kinds), backward), constants, graph.output)
    if output in constants or not nodes:
        raise GraphError(f"expected logits that depend on images, got constants in {shown(output)}; pass a classifier")
    steps = tuple(_steps(nodes, output))
    used = {name for node in nodes for name in node.inputs}
    constants = {name: value for name, value in constants.items() if name in used}
    batch, classes = _tried(graph.images, steps, constants, output)
    return Plan(graph.images, output, steps, constants, backward, batch, classes)


def execute(
    steps: Iterable[Step], values: Values, *, checked: bool = False, keep: bool = False
) -> Mapping[str, Tensor]:
    """Run the steps on values by name, which the results join; those not needed any more leave, unless `keep`.

    checked: what goes wrong becomes a GraphError that names the node.
    """
    for step in steps:
        if checked and (missing := [name for name in step.node.inputs if name and name not in values]):
            raise GraphError(f"expected {step.node} to read results that are covered, got {shown(missing[0])}")
        inputs = [values[name] if name else None for name in step.node.inputs]
        results = _guarded(step, inputs) if checked else step.function(step.node, *inputs)
        values.update(zip(step.node.outputs, results if isinstance(results, tuple) else (results,), strict=False))
        for name in () if keep else step.frees:
            values.pop(name, None)
    return values


def _guarded(step: Step, inputs: list[Tensor | None]) -> Any:
    try:
        results = step.function(step.node, *inputs)
        for result in results if isinstance(results, tuple) else (results,):
            if result is not None and result.numel() > LARGEST:
                raise ValueError(f"a tensor of {result.numel()} elements is more than {LARGEST}")
    except Exception as error:  # a hostile graph makes torch raise anything
        shapes = ", ".join("-" if value is None else str(tuple(value.shape)) for value in inputs)
        raise GraphError(f"expected {step.node} to take inputs of shapes {shapes}, got: {reason(error)}") from error
    return results


def _needed(nodes: Iterable[Node], output: str) -> list[Node]:
    """The nodes that an output depends on, in order."""
    wanted, needed = {output}, []
    for node in reversed(tuple(nodes)):
        if wanted & set(filter(None, node.outputs)):
            wanted |= set(node.inputs)
            needed.append(node)
    return needed[::-1]


def _check_covered(nodes: Iterable[Node]) -> None:
    missing = [node for node in nodes if find(node) is None]
    if not missing:
        return
    counts = Counter(title(node.domain, node.op) for node in missing)
    kinds = ", ".join(f"{name} ({count})" for name, count in list(counts.items())[:10])
    first = shown(missing[0].name)
    raise GraphError(f"expected operators that OnnxModule computes, got {kinds}, first at node {first}; "
                     f"covered: {', '.join(covered())}")  # fmt: skip


def _fold(nodes: Iterable[Node], constants: Values, kinds: dict[str, int], backward: Backward) -> list[Node]:
    """Nodes that images reach, knowing their constants; the results of others join the constants."""
    left, whole = [], {name for name, kind in kinds.items() if kind in INTEGERS}
    for node in nodes:
        node = replace(
            node,
            backward=backward,
            whole=_is_whole(node, whole),
            kinds=tuple(kinds.get(name) for name in node.inputs),
            numbers=tuple(_number(constants.get(name)) for name in node.inputs),
            lists=tuple(_short(constants.get(name)) for name in node.inputs),
        )
        if _gives_whole(node):
            whole.update(node.outputs[::2] if node.op == DYNAMIC else node.outputs)
        if any(name and name not in constants for name in node.inputs):
            left.append(node)
            continue
        step = Step(node, _function(node), ())
        given = {name: constants[name] for name in node.inputs if name}
        if any(value.numel() > SMALL for value in given.values()):
            execute([step], {name: _without_data(value) for name, value in given.items()}, checked=True)
        results = execute([step], given, checked=True)
        constants.update({name: results[name].detach() for name in node.outputs if name in results})
    return left


def _is_whole(node: Node, whole: set[str]) -> bool:
    """Whether what a node works on is of an integer type in the file."""
    first = 1 if node.op == "Where" else 0
    return len(node.inputs) > first and node.inputs[first] in whole


def _gives_whole(node: Node) -> bool:
    if node.op == "Cast":
        return node.integer("to", 1) in INTEGERS
    return node.op in (QUANTISE, DYNAMIC) or (node.whole and node.op not in GIVES_FLOATS)


def _number(value: Tensor | None) -> float | None:
    return float(value) if value is not None and value.numel() == 1 else None


def _short(value: Tensor | None) -> list[float] | None:
    return value.tolist() if value is not None and value.dim() == 1 and len(value) <= SHORT else None


def _function(node: Node) -> Function:
    function: Callable[..., Any] | None = fake_quantise if node.op == FAKE else find(node)
    assert function is not None
    return function


def _steps(nodes: list[Node], output: str) -> Iterable[Step]:
    last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    for index, node in enumerate(nodes):
        frees = tuple(name for name in node.inputs if name and last[name] == index and name != output)
        yield Step(node, _function(node), frees)


def _without_data(value: Tensor) -> Tensor:
    """As torch's meta tensor, which has a shape alone; sizes, indices and single numbers as they are."""
    return value if value.dtype in (torch.int64, torch.bool) or value.dim() == 0 else value.to("meta")


def _tried(images: Input, steps: Iterable[Step], constants: Values, output: str) -> tuple[int | None, int | None]:
    """Images of a pass and classes, found by a pass of shapes without data."""
    batch, *given = images.shape
    sizes = [size for size in given if size is not None]
    steps = tuple(steps)
    # A range of all images at once would make the logits of one depend on the others.
    alone = batch is None and any(step.node.op == DYNAMIC for step in steps)
    if len(sizes) < len(given):
        return 1 if alone else batch, None
    # A file may leave the batch open and still reshape to one image.
    counts = (1,) if alone else (2, 1) if batch is None else (batch,)
    for count in counts:
        values = {name: _without_data(value) for name, value in constants.items()}
        values[images.name] = torch.empty(count, *sizes, dtype=images.dtype, device="meta")
        try:
            found = execute(steps, values, checked=True).get(output)
            shape = () if found is None else tuple(found.shape)
        except GraphError:
            if count == counts[-1]:
                raise
            continue
        if len(shape) == 2 and shape[0] == count:
            return (None if batch is None and count == 2 else count), shape[1]
    raise GraphError(f"expected logits (batch, classes) in {shown(output)}, got shape {shape} for {count} images")
