"""A walk over an exported program: torch computes what depends on no image, the table lowers the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils._pytree import tree_leaves, tree_map

from ...errors import ExportError
from ...quant.operator import QUANTIZE
from . import layers, pointwise, shaping  # noqa: F401  # their entries
from .building import Building
from .forms import Form
from .lowering import TABLE, Lowering, Quantised, aten, is_batch
from .quantised import Activation, Levels, Pixels, Weight

NHWC_TO_NCHW = [0, 3, 1, 2]
SAME = (  # what gives its input as it is
    aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default,
    aten.contiguous.default, aten.detach.default, aten.detach_.default, aten.alias.default,
)  # fmt: skip
COPIES = (aten.clone.default, aten.lift_fresh_copy.default)
FILLED = {aten.new_zeros.default: 0, aten.zeros_like.default: 0, aten.new_ones.default: 1, aten.ones_like.default: 1}
SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float)
ASSERTIONS = ("_assert", "sym_constrain", "_check")
WRAPPERS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}  # where the wrapped graph stands


@dataclass(frozen=True)
class Names:
    """Of the image and the logits. short: the fewest bytes for all others. explicit: attributes that are usual too."""

    image: str
    logits: str
    short: bool
    explicit: bool = False


def lower_program(
    program: ExportedProgram, form: Form, *, opset: int, takes_bytes: bool, names: Names
) -> tuple[ir.Model, list[Quantised]]:
    """The graph of a program in a format, and its quantised activations in the order of execution.

    Raises ExportError for an operator that has no entry, by operator and module.
    """
    graph = Building(opset=opset, half=form.half, names=(names.image, names.logits), explicit=names.explicit)
    placeholder = next(
        node
        for node, spec in _inputs(program)
        if spec.kind == InputKind.USER_INPUT and isinstance(node.meta["val"], Tensor)
    )
    image, start = _image(graph, placeholder, names.image, takes_bytes)
    walk = _Walk(program.graph_module, Lowering(graph, form, image))
    walk.low.env.update({**_stored(program, walk), placeholder: start})
    walk.low.stored.update({node: str(spec.target) for node, spec in _inputs(program) if spec.target is not None})
    (result, *others) = walk.run()
    if others:
        raise ExportError(
            f"expected a network that gives logits alone, got {len(others) + 1} outputs; return them alone"
        )
    form.check()
    last = _logits(walk.low, result, program, names.logits)
    model = graph.finish([image], [last], short=names.short)
    found = [
        Quantised(module, str(value.name) if value is not None else "", zero) for module, value, zero in walk.low.named
    ]
    return model, found


class _Walk:
    """Over one graph; what nodes change in place is read anew through all that shares it."""

    def __init__(self, module: fx.GraphModule, low: Lowering) -> None:
        self.module, self.low = module, low
        self.order = {node: index for index, node in enumerate(module.graph.nodes)}
        self.same: dict[fx.Node, fx.Node] = {}  # the first node of the same values
        self.root: dict[fx.Node, fx.Node] = {}  # of which it is a view
        self.sharing = defaultdict[fx.Node, list[fx.Node]](list)
        self.changed = set[fx.Node]()
        for node in module.graph.nodes:
            self._trace(node)

    def run(self) -> list[Any]:
        """What the graph gives."""
        for node in self.module.graph.nodes:
            if node.op == "get_attr":
                self.low.env[node] = attrgetter(str(node.target))(self.module)
            elif node.op == "output":
                return [self.low.env[leaf] for leaf in tree_leaves(node.args) if isinstance(leaf, fx.Node)]
            elif node.op == "call_function":
                self._visit(node)
        return []

    def _trace(self, node: fx.Node) -> None:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        writes, views = _effects(node)
        same = source is not None and (writes or node.target in SAME)
        self.same[node] = self.same[source] if source is not None and same else node
        self.root[node] = self.root[source] if source is not None and (same or views) else node
        self.sharing[self.root[node]].append(node)
        if writes and source is not None:
            self.changed.add(self.root[source])

    def _visit(self, node: fx.Node) -> None:
        low = self.low
        low.node, low.where, low.main = node, _module(node)[0], _main(low, node)
        try:
            low.env[node] = result = self._computed(node)
        except ExportError as error:
            raise ExportError(f"{low.where or 'the network'}: {_operator(node)}: {error}") from error
        low.graph.settle(low.main, list(_values(result)))
        if _effects(node)[0] and not isinstance(result, Tensor):
            self._write(node)

    def _write(self, node: fx.Node) -> None:
        """What shares the values that a node changed in place is its result, if it is read again."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        for other in self.sharing[self.root[source]]:
            read = any(self.order.get(user, 0) > self.order[node] for user in other.users)
            if other is node or not read or self.order[other] > self.order[node]:
                continue
            if self.same[other] is not self.same[source]:
                raise ExportError(
                    f"{self.low.where or 'the network'}: expected no change in place of values that a view shares, got "
                    f"{_operator(node)}; write y = f(x) in its place"
                )
            self.low.env[other] = self.low.env[node]

    def _computed(self, node: fx.Node) -> Any:
        low, target = self.low, node.target
        if node in low.ahead:
            return low.ahead[node]
        given = [low.env.get(one) for one in node.all_input_nodes]
        if getattr(target, "__name__", "") in WRAPPERS:
            return self._wrapped(node, WRAPPERS[getattr(target, "__name__", "")])
        if isinstance(node.meta.get("val"), SIZES):
            return node.meta["val"]
        if given and all(isinstance(one, SIZES) for one in given):  # a tensor of a size, whose number is asked next
            return given[0]
        if target is QUANTIZE:
            return _quantised(low, node)
        if _operator(node).startswith(ASSERTIONS):
            return None
        if _is_fixed(node) and all(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
            with torch.no_grad():
                args, kwargs = tree_map(
                    lambda one: low.env[one] if isinstance(one, fx.Node) else one, (node.args, dict(node.kwargs))
                )
                return target(*args, **kwargs)  # type: ignore[operator]
        if target in FILLED and _is_fixed(node):
            return torch.full(node.meta["val"].shape, FILLED[target], dtype=node.meta["val"].dtype)
        if target in SAME or target in COPIES:
            return given[0]
        entry = TABLE.get(target) or TABLE.get(_not_in_place(target))
        if entry is None:
            raise ExportError("expected an operator that has a form in ONNX here; replace it by others")
        return entry(low, *node.args, **node.kwargs)

    def _wrapped(self, node: fx.Node, place: int) -> Any:
        """A graph inside, as torch.no_grad() leaves one."""
        inner, *given = node.args[place:]
        walk = _Walk(self.low.env[inner], self.low)  # type: ignore[index]
        placeholders = [one for one in walk.module.graph.nodes if one.op == "placeholder"]
        self.low.env.update({one: self.low.env[source] for one, source in zip(placeholders, given, strict=True)})  # type: ignore[index]
        return walk.run()


def _quantised(low: Lowering, node: fx.Node) -> Any:
    x, scale, zero_point, lowest, highest = cast(Any, node.args)
    grid = low.constant(scale), None if zero_point is None else low.constant(zero_point), lowest, highest
    source = low.env[x]
    if isinstance(source, Tensor):
        return Weight.of(source, *grid)
    module, count = low.owner(scale), len(low.named)
    read = source if isinstance(source, Pixels) else cast(ir.Value, low.value(x))
    made = low.form.activation(
        low.graph, read, Levels.of(*grid), lambda value, zero: low.named.append((module, value, zero))
    )
    if len(low.named) == count:
        low.named.append((module, None, 0))
    return made


def _inputs(program: ExportedProgram) -> Iterator[tuple[fx.Node, Any]]:
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    return zip(placeholders, program.graph_signature.input_specs, strict=True)


def _stored(program: ExportedProgram, walk: _Walk) -> dict[fx.Node, Any]:
    """Parameters, buffers and constants; copied where the network changes them in place."""
    found = {}
    for node, spec in _inputs(program):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            tensor = program.state_dict[target] if target in program.state_dict else program.constants[target]
            found[node] = tensor.detach().clone() if node in walk.changed else tensor.detach()
    return found


def _image(graph: Building, placeholder: fx.Node, name: str, takes_bytes: bool) -> tuple[ir.Value, Any]:
    """What the graph takes, and what stands for it inside: floats, or a camera's pixels."""
    batch, *shape = placeholder.meta["val"].shape
    if not is_batch(batch):
        raise ExportError(
            f"expected a network for any number of images, got one for {batch}; reshape with -1, not numbers"
        )
    if not takes_bytes:
        image = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", *shape]))
        start = graph.op("Cast", image, to=graph.float_type) if graph.half else image
    else:
        channels, height, width = shape
        image = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(["batch", height, width, channels])
        )
        start = Pixels(graph.op("Transpose", image, perm=NHWC_TO_NCHW))
    graph.settle("")
    return image, start


def _logits(low: Lowering, result: Any, program: ExportedProgram, name: str) -> ir.Value:
    low.main = ""
    value = low.graph.constant(result) if isinstance(result, Tensor) else result
    if not isinstance(value, ir.Value):
        value = low.value(value)
    assert value is not None
    if low.form.half:
        value = low.graph.op("Cast", value, to=int(ir.DataType.FLOAT))
    elif value.producer() is None:
        value = low.graph.op("Identity", value)
    low.graph.settle("")
    (leaf,) = (leaf for node in program.graph.nodes if node.op == "output" for leaf in tree_leaves(node.args))
    shape = ["batch" if is_batch(size) else int(size) for size in leaf.meta["val"].shape]
    value.name, value.type, value.shape = name, ir.TensorType(ir.DataType.FLOAT), ir.Shape(shape)
    return value


def _values(result: Any) -> Iterator[ir.Value]:
    for one in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(one, (ir.Value, Activation)):
            yield one.integers if isinstance(one, Activation) else one


def _effects(node: fx.Node) -> tuple[bool, bool]:
    """Whether an operator changes its first input in place, and whether it gives a view of it."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.arguments:
        return False, False
    writes = any(one.alias_info is not None and one.alias_info.is_write for one in schema.arguments)
    return writes, any(one.alias_info is not None for one in schema.returns)


def _not_in_place(target: Any) -> Any:
    """The operator that gives what this one writes: relu for relu_."""
    name, _, overload = str(target).removeprefix("aten.").partition(".")
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, overload, None)


def _is_fixed(node: fx.Node) -> bool:
    """Whether the sizes of what a node gives are known."""
    values = [leaf for leaf in tree_leaves(node.meta.get("val")) if isinstance(leaf, Tensor)]
    return not any(is_batch(size) for value in values for size in value.shape)


def _operator(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.") if node.op == "call_function" else node.name


def _module(node: fx.Node) -> tuple[str, str]:
    """Path and type of the innermost module that a node is called in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", "")
    return str(path), kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def _main(low: Lowering, node: fx.Node) -> str:
    """What a node of one of torch's own modules is called: its path, once."""
    path, kind = _module(node)
    if not path or not kind.startswith("torch.nn.modules."):
        return ""
    return path if low.graph.is_free(path) else f"{path}.{_operator(node).partition('.')[0]}"
