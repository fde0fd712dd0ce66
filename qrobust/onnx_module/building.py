"""From a graph to the steps of a module: constants are computed once, chains of quantisation become one step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import GraphError
from .file import reason, shown
from .fusing import DEQUANTISE, FAKE, QUANTISE, fuse
from .node import Backward, Node, rounded_to
from .operators import LARGEST, TABLE, Function, fake_quantise, find, title
from .operators.table import INTEGERS, NARROW
from .qoperators import DYNAMIC, WRITERS, expand
from .reading import Graph, Input

Values = dict[str, Tensor]
GIVES_FLOATS = (DEQUANTISE, FAKE)  # of integers
GIVES_INTEGERS = (QUANTISE, DYNAMIC)  # of floats
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
    nodes, output = fuse(_fold(nodes, constants, graph.kinds, backward), constants, graph.output)
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
    raise GraphError(f"expected operators that OnnxModule computes, got {kinds}, first at node {first}; write it with "
                     "others: qrobust.onnx_module.covered() lists them")  # fmt: skip


def _fold(nodes: Iterable[Node], constants: Values, kinds: Mapping[str, int], backward: Backward) -> list[Node]:
    """Nodes that images reach, knowing their constants; the results of others join the constants."""
    left, whole = [], {name for name, kind in kinds.items() if kind in INTEGERS}
    narrow = {name: NARROW[kind] for name, kind in kinds.items() if kind in NARROW}
    for node in nodes:
        node = replace(
            node,
            backward=backward,
            whole=_is_whole(node, whole),
            narrow=_narrow(node, narrow),
            kinds=tuple(kinds.get(name) for name in node.inputs),
            numbers=tuple(_number(constants.get(name)) for name in node.inputs),
            lists=tuple(_short(constants.get(name)) for name in node.inputs),
        )
        if _gives_whole(node):
            whole.update(node.outputs[::2] if node.op == DYNAMIC else node.outputs)
        if node.narrow and node.op not in GIVES_INTEGERS:
            narrow.update(dict.fromkeys(node.outputs, node.narrow))
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


def _narrow(node: Node, narrow: dict[str, torch.dtype]) -> torch.dtype | None:
    """The type of 16 bits in which the file computes here, if it does."""
    if node.op == "Cast":
        return NARROW.get(node.integer("to", 1))
    named = node.inputs[1:2] if node.op in (DEQUANTISE, "CastLike") else node.inputs
    return next((narrow[name] for name in named if name in narrow), None)


def _gives_whole(node: Node) -> bool:
    if node.op == "Cast":
        return node.integer("to", 1) in INTEGERS
    return node.op in GIVES_INTEGERS or (node.whole and node.op not in GIVES_FLOATS)


def _number(value: Tensor | None) -> float | None:
    return float(value) if value is not None and value.numel() == 1 else None


def _short(value: Tensor | None) -> list[float] | None:
    return value.tolist() if value is not None and value.dim() == 1 and len(value) <= SHORT else None


def _function(node: Node) -> Function:
    function: Callable[..., Any] | None = fake_quantise if node.op == FAKE else find(node)
    assert function is not None
    return function if node.narrow is None or node.op in GIVES_INTEGERS else _rounding(function)


def _rounding(function: Function) -> Function:
    def rounded(node: Node, *inputs: Tensor | None) -> Any:
        results = function(node, *inputs)
        if isinstance(results, tuple):
            return tuple(one if one is None or not one.is_floating_point() else rounded_to(one, node.narrow)
                         for one in results)  # fmt: skip
        return rounded_to(results, node.narrow) if results.is_floating_point() else results

    return rounded


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
