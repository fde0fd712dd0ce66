"""Quantised activations: as torch computes them, as a file holds them, and how one's stand for the other's."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor, fx, nn

from ..errors import ExportError

Array = npt.NDArray[Any]


class Quantised(Protocol):
    """What the writer of a file says of an activation.

    module: path of what quantises it in the network. value: name of the tensor that holds its integers, in which `zero`
    stands for 0; "" where none does, as for a camera's pixels, which lie on the grid as they come.
    """

    @property
    def module(self) -> str: ...

    @property
    def value(self) -> str: ...

    @property
    def zero(self) -> int: ...


@dataclass(frozen=True)
class Levels:
    """A tensor of a file that holds the integers of an activation, its type and their zero point.

    module: path of what quantises it, where the writer said so.
    """

    name: str
    kind: int
    zero: int
    module: str | None = None

    @property
    def fed(self) -> str:
        """The input that stands for it when it is forced."""
        return f"{self.name}.torch"

    def integers(self, levels: Array) -> Array:
        """Torch's levels, as the file holds them."""
        given: Array = (levels + self.zero).astype(helper.tensor_dtype_to_np_dtype(self.kind))
        return given

    def distances(self, got: Array, levels: Array) -> Array:
        """How many steps each of the file's integers lies from torch's."""
        steps: Array = np.abs(np.rint(got.astype(np.float32)) - self.zero - levels).astype(np.int64)
        return steps


def named_levels(proto: onnx.ModelProto, activations: Sequence[Quantised]) -> list[Levels]:
    """What the writer names. Raises ExportError for a tensor that the file does not hold."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = []
    for activation in activations:
        if activation.value and activation.value not in makers:
            raise ExportError(f"expected a tensor {activation.value} in the file, got none; export again")
        if activation.value:
            kind = _kind(activation.value, makers, constants)
            found.append(Levels(activation.value, kind, activation.zero, activation.module))
    return found


def _kind(name: str, makers: dict[str, onnx.NodeProto], constants: dict[str, onnx.TensorProto]) -> int:
    """The type of what a quantiser's last node gives: that of the last constant that it, or what it reads, reads."""
    node = makers[name]
    read = [constants[source].data_type for source in node.input if source in constants]
    return read[-1] if read else _kind(node.input[0], makers, constants)


def found_levels(proto: onnx.ModelProto) -> list[Levels]:
    """Of a file whose writer says nothing: all that is quantised, in the order of execution.

    A Clip belongs to what it reads if nothing else reads that: hardswish on integers clips too.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    readers = defaultdict[str, list[onnx.NodeProto]](list)
    for node in proto.graph.node:
        for name in node.input:
            readers[name].append(node)
    found = []
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "Round") or node.input[0] in constants:
            continue
        following = readers[node.output[0]]
        last = following[0] if len(following) == 1 and following[0].op_type == "Clip" else node
        if node.op_type == "QuantizeLinear":
            zero = constants[node.input[2]]
            found.append(Levels(last.output[0], zero.data_type, int(onnx.numpy_helper.to_array(zero))))
        elif last is not node:  # floats
            found.append(Levels(last.output[0], constants[last.input[2]].data_type, 0))
    return found


def matched(executed: Sequence[str], values: Sequence[Levels], *, first_is_given: bool) -> list[int]:
    """For every tensor the place of its activation among those that torch executes, given by their modules' paths.

    By paths where the writer names them, the first call of a module to the first of its tensors; else, and where paths
    differ as of a layer that was replaced, by order. first_is_given: the file takes pixels, which may lie on the first
    grid as they come. Raises ExportError for other activations than the network's.
    """
    missing = len(executed) - len(values)
    if missing not in ((0, 1) if first_is_given else (0,)):
        raise ExportError(
            f"expected {len(executed)} quantised activations in the file, got {len(values)}; export again"
        )
    if Counter(value.module for value in values) != Counter(executed[missing:]):
        return list(range(missing, len(executed)))
    places = defaultdict[str | None, deque[int]](deque)
    for place, path in enumerate(executed[missing:], missing):
        places[path].append(place)
    return [places[value.module].popleft() for value in values]


def exposing(proto: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The same model with these values among its outputs, after the logits."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    copied.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(copied.SerializeToString())


def dynamic(one: Sequence[int], two: Sequence[int]) -> list[int | None]:
    """A shape, None where sizes hang on the number of images: where one and two images have others.

    Without a name: onnxruntime lends what is called alike one buffer, and not every such size is that of the batch.
    """
    return [size if size == other else None for size, other in zip(one, two, strict=True)]


def force(proto: onnx.ModelProto, values: Sequence[Levels], shapes: Sequence[Sequence[int | None]]) -> None:
    """Let what reads these values read inputs of these shapes instead; they are still computed."""
    fed = {value.name: value.fed for value in values}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = fed.get(name, name)
    for value, shape in zip(values, shapes, strict=True):
        proto.graph.input.append(helper.make_tensor_value_info(value.fed, value.kind, shape))


class Executed(NamedTuple):
    """A quantised activation that torch computed: path of what quantises it, integers, step and width."""

    path: str
    levels: Array
    step: float
    bits: int


# What Brevitas calls the quantiser of an activation inside its layers, ours and its own.
OWN, INSIDE = ".act_quant", ".fused_activation_quant_proxy.tensor_quant"
LOGITS = ""  # no module's path
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def _activation_quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """With the path of the module that an activation passes."""
    for path, module in model.named_modules():
        if path.endswith(INSIDE):
            yield path.removesuffix(INSIDE).removesuffix(OWN), module


def executed_levels(model: nn.Module, x: Tensor, *, watched: bool = True) -> tuple[Array, list[Executed]]:
    """Logits, and every quantised activation in the order of execution, of a module called twice two."""
    seen: list[Executed] = []
    quantised = list(_activation_quantizers(model)) if watched else []
    handles = [quantizer.register_forward_hook(_noting(path, seen)) for path, quantizer in quantised]
    try:
        with torch.no_grad():
            logits: Tensor = model(x.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return logits.cpu().numpy(), seen


def _noting(path: str, seen: list[Executed]) -> Callable[[nn.Module, Any, tuple[Tensor, ...]], None]:
    def note(_: nn.Module, __: Any, result: tuple[Tensor, ...]) -> None:
        value, scale, _zero_point, bits = result
        levels = (value / scale).round().to(torch.int16 if bits <= 15 else torch.int32)
        seen.append(Executed(path, levels.cpu().numpy(), float(scale.max()), int(bits)))

    return note


def shown_first(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """By path of a quantiser, the layers whose results it is the first to depend on, in the order of execution; those
    of the logits under `LOGITS`.
    """
    if not isinstance(model, fx.GraphModule):
        return {}
    quantised = {path for path, _ in _activation_quantizers(model)}
    layers = {path for path, module in model.named_modules() if path and any(True for _ in module.parameters())}
    found, before = dict[str, tuple[str, ...]](), set[str]()
    for node in model.graph.nodes:
        path = LOGITS if node.op == "output" else str(node.target)
        if path in found or not (node.op == "output" or (node.op == "call_module" and path in quantised)):
            continue
        above = [str(one.target) for one in _above(node, quantised) if str(one.target) in layers - before]
        found[path] = tuple(dict.fromkeys(above))
        before.update(above)
    return found


def _above(node: fx.Node, quantised: set[str]) -> list[fx.Node]:
    """Calls of modules that a node depends on without a quantiser between, in the order of execution."""
    waiting, found = list(node.all_input_nodes), set[fx.Node]()
    while waiting:
        one = waiting.pop()
        if one not in found and not (one.op == "call_module" and str(one.target) in quantised):
            found.add(one)
            waiting += one.all_input_nodes
    return [one for one in node.graph.nodes if one in found and one.op == "call_module"]


@contextmanager
def results(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, list[Array]]]:
    """Inside, what the modules of these paths give is noted; of a layer that only batch-norm reads, which files fold
    into it, what batch-norm gives too.
    """
    seen: dict[str, list[Array]] = {path: [] for path in paths}
    watched = [(path, model.get_submodule(name)) for path in paths for name in (path, *_folded(model, path))]
    handles = [module.register_forward_hook(_keeping(seen[path])) for path, module in watched]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _keeping(seen: list[Array]) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_: nn.Module, __: Any, result: Any) -> None:
        if isinstance(result, Tensor):
            seen.append(result.detach().cpu().numpy())

    return keep


def _folded(model: nn.Module, path: str) -> Iterator[str]:
    """Path of the batch-norm that alone reads a layer."""
    for node in model.graph.nodes if isinstance(model, fx.GraphModule) else ():
        if node.op == "call_module" and node.target == path and len(node.users) == 1:
            reader = next(iter(node.users))
            if reader.op == "call_module" and isinstance(model.get_submodule(str(reader.target)), BATCH_NORMS):
                yield str(reader.target)
