"""Does the file compute what torch computed? Counted in quantisation steps, tensor by tensor, not in floats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import helper
from torch import Tensor, fx, nn

from .. import devices, quant
from ..errors import ExportError, ParityError
from ..quant import Quantizer, quantizers
from ..runtime import ArtifactError, Verdict
from .sessions import OPENVINO, OpenVinoSession, open_session
from .target import Target

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], list[Array]]  # a graph's inputs by name → its outputs
LEVELS = ("disable", "basic", "extended", "all")
# Seen of right files, layer by layer: one step at ties; in float16, where sums lose digits, seven.
STEPS, HALF_STEPS = 1, 16
FORCED = 64  # images that layers are judged on alone
HINT = "choose another target, or replace what its runtime computes in another way"


@dataclass(frozen=True)
class Difference:
    """Of one tensor: its width, the step of its grid, its elements, the share that differs, the largest difference
    in steps. module: path of its quantiser in the torch network.
    """

    name: str
    bits: int
    step: float
    elements: int
    share: float
    largest: int
    module: str = ""


@dataclass(frozen=True)
class Parity:
    """A file against the torch network that it came from, on n images.

    runtime: who executed the file. flips: share of other labels. logits: largest difference, in steps of the
    classifier's accumulator (s_x · s_w) or, for a float one, as it is. layers: every quantised activation.
    change: how far the median image's logits moved, as a share of their length.
    """

    runtime: str
    n: int
    flips: float
    logits: float
    layers: tuple[Difference, ...]
    change: float = 0.0

    @property
    def first(self) -> str | None:
        """The first tensor, in the order of execution, that differs anywhere."""
        return next((layer.name for layer in self.layers if layer.share), None)

    @property
    def share(self) -> float:
        """Of all activations, how many differ."""
        total = sum(layer.elements for layer in self.layers)
        return sum(layer.share * layer.elements for layer in self.layers) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with `first` and `share`."""
        return {**asdict(self), "first": self.first, "share": self.share}


@devices.exact_products()
def parity(
    model: nn.Module,
    data: bytes,
    images: Tensor,
    *,
    runtime: str = "all",
    forced: bool = False,
    batch_size: int = 100,
) -> Parity:
    """Run torch and the file on the same images and count where they differ.

    model: in eval mode, from `quantize` or float. data: the bytes that `lower` made of it. images: (n, c, h, w)
    in [0,1], on the 8-bit grid. runtime: a level of onnxruntime's optimisation ("disable" to "all", which
    fuses), "reference": onnx' own evaluator, the judge of what the file means, or "openvino" where installed.
    forced: whatever reads a quantised activation gets torch's integers, so that each difference is a layer's
    own; else one early step can echo through a deep network.
    Raises ExportError for another runtime, or a file that holds other quantisers than the network.
    """
    proto = onnx.load_from_string(data)
    values = _levels(proto)
    names, watched = list(_executed(model)), [quantizer for _, quantizer in _executed(model)]
    pixels = proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if pixels and len(watched) == len(values) + 1:
        names, watched = names[1:], watched[1:]  # a camera's pixels lie on the first grid already
    if len(watched) != len(values):
        raise ExportError(f"expected {len(watched)} quantised activations in the file, got {len(values)}; export again")
    source = proto.graph.input[0].name
    if forced:
        _force(proto, values, _torch_levels(model, watched, images[:1])[1])
    run = _runner(_exposing(proto, [value.name for value in values]), runtime)
    counts = [np.zeros(3, np.int64) for _ in values]
    flips, furthest, step, changes = 0, 0.0, _logit_step(model), list[float]()
    for batch in torch.split(images, batch_size):
        logits, expected = _torch_levels(model, watched, batch)
        feeds = {source: _as_input(batch, pixels)}
        if forced:
            feeds |= {value.fed: value.integers(want) for value, want in zip(values, expected, strict=True)}
        outputs = run(feeds)
        flips += int((outputs[0].argmax(1) != logits.argmax(1)).sum())
        furthest = max(furthest, float((np.abs(outputs[0] - logits) / step).max()))
        lengths = np.linalg.norm(logits, axis=1)
        changes += (np.linalg.norm(outputs[0] - logits, axis=1) / np.maximum(lengths, 1e-30)).tolist()
        for count, value, got, want in zip(counts, values, outputs[1:], expected, strict=True):
            distance = np.abs(np.rint(got.astype(np.float32)) - value.zero - want).astype(np.int64)
            count += (distance.size, int((distance > 0).sum()), 0)
            count[2] = max(count[2], distance.max(initial=0))
    layers = tuple(
        Difference(value.name, own.bits, own.scale().item(), int(total), float(differing / total), int(largest), path)
        for value, (path, own), (total, differing, largest) in zip(values, names, counts, strict=True)
    )
    return Parity(runtime, len(images), flips / len(images), furthest, layers, float(np.median(changes)))


def judge(whole: Parity, alone: Parity, target: Target) -> list[Verdict]:
    """Whether a file computes what its network does: `whole` as it runs, `alone` layer by layer (forced).

    A layer alone may miss torch's integers by a step where a value lies between two, or in float16 by what that format
    rounds; logits alone by what the target says. As it runs, every tie on the way moves a deep network's logits, so
    only labels are judged there: they may flip as the target says, and one image of a few.
    """
    worst = max(alone.layers, key=lambda layer: layer.largest, default=None)
    wrong = next((layer for layer in alone.layers if layer.largest > _most_steps(target)), worst)
    flips, most = max(target.limits.label_flips, 1 / whole.n), target.limits.logit_change
    measured = [
        ("steps", worst.largest if worst else 0, _most_steps(target),
         f"{wrong.module if wrong else 'logits'} differs from torch's by {wrong.largest if wrong else 0} steps"),
        ("label_flips", whole.flips, flips, f"{whole.flips:.2%} of labels differ from torch's"),
        ("logit_change", alone.change, np.inf if most is None else most,
         f"logits of the median image moved by {alone.change:.2g} of their length"),
    ]  # fmt: skip
    return [
        Verdict(name, found <= limit + 1e-9, float(found), float(limit), reason, HINT)
        for name, found, limit, reason in measured
    ]


def check_parity(model: nn.Module, data: bytes, images: Tensor, target: Target) -> Parity:
    """The parity of a file as its target runs it; arguments as of `parity`.

    Raises ParityError, with the layer, for one beyond the target's limits; ExportError for a network whose biases the
    file had to round, so that another was evaluated.
    """
    unrounded = quant.first_unrounded(model) if target.format == "integer" else None
    if unrounded is not None:
        raise ExportError(
            f"{unrounded}: expected a bias on its accumulator's grid, got one between two steps; "
            "call qrobust.quant.round_biases(model), evaluate, and export again"
        )
    level = target.session.graph_optimization_level
    whole = parity(model, data, images, runtime=level)
    alone = parity(model, data, images[:FORCED], runtime=level, forced=True) if whole.layers else whole
    for verdict in judge(whole, alone, target):
        if not verdict.passed:
            raise ParityError(
                f"{target.name}: expected a file that computes what torch does, but {verdict.reason}, tolerated "
                f"{verdict.limit:g}; {verdict.hint}"
            )
    return whole


def _most_steps(target: Target) -> int:
    return HALF_STEPS if target.format == "float16" else STEPS


@dataclass(frozen=True)
class _Levels:
    """A tensor of a file that holds the integers of an activation, its type and their zero point."""

    name: str
    kind: int
    zero: int

    @property
    def fed(self) -> str:
        """The input that stands for it when it is forced."""
        return f"{self.name}.torch"

    def integers(self, levels: Array) -> Array:
        """Torch's levels, as the file holds them."""
        return (levels + self.zero).astype(helper.tensor_dtype_to_np_dtype(self.kind))


def _levels(proto: onnx.ModelProto) -> list[_Levels]:
    """Integers of all quantised activations, in the order of execution, whatever form the file gives them."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        if node.op_type not in ("QuantizeLinear", "Round") or node.input[0] in constants:
            continue
        behind = next((n for n in proto.graph.node if n.op_type == "Clip" and n.input[0] == node.output[0]), node)
        if node.op_type == "Round":  # floats, clipped
            found.append(_Levels(behind.output[0], constants[behind.input[2]].data_type, 0))
        else:
            zero = constants[node.input[2]]
            found.append(_Levels(behind.output[0], zero.data_type, int(onnx.numpy_helper.to_array(zero))))
    return found


def _force(proto: onnx.ModelProto, values: Sequence[_Levels], examples: Sequence[Array]) -> None:
    """Let what reads these values read inputs of their shape instead, but for the batch; they are still computed."""
    fed = {value.name: value.fed for value in values}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = fed.get(name, name)
    for value, example in zip(values, examples, strict=True):
        shape = ["batch", *example.shape[1:]]
        proto.graph.input.append(helper.make_tensor_value_info(value.fed, value.kind, shape))


def _exposing(proto: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """The same model with these values among its outputs, after the logits."""
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    copied.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return bytes(copied.SerializeToString())


def _runner(data: bytes, runtime: str) -> Run:
    if runtime in LEVELS:
        session = open_session(data, runtime, "CPUExecutionProvider")
        return lambda feeds: list(session.run(None, feeds))
    if runtime == "reference":
        from onnx.reference import ReferenceEvaluator

        evaluator = ReferenceEvaluator(onnx.load_from_string(data))
        return lambda feeds: list(evaluator.run(None, feeds))
    if runtime == OPENVINO:
        try:
            compiled = OpenVinoSession(data, threads=1)
        except ArtifactError as error:
            raise ExportError(str(error)) from error
        return lambda feeds: [np.array(value) for value in compiled.run(None, feeds)]
    raise ExportError(f"expected a runtime out of {', '.join((*LEVELS, 'reference', 'openvino'))}, got {runtime!r}")


def _executed(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Quantisers of activations by the path of their module, in the order of execution."""
    if isinstance(model, fx.GraphModule):
        for node in model.graph.nodes:
            if node.op == "call_module":
                module = model.get_submodule(str(node.target))
                yield from ((str(node.target), q) for q in quantizers(module) if q.masked or q.fixed)


def _torch_levels(model: nn.Module, watched: Sequence[Quantizer], x: Tensor) -> tuple[Array, list[Array]]:
    """Logits, and the integers of every watched activation."""
    seen: list[Tensor] = []
    device = next(model.parameters()).device
    with torch.no_grad(), ExitStack() as hooks:
        for quantizer in watched:
            hooks.enter_context(_hooked(quantizer, seen))
        logits = model(x.to(device))
    return logits.cpu().numpy(), [tensor.cpu().numpy() for tensor in seen]


@contextmanager
def _hooked(quantizer: Quantizer, seen: list[Tensor]) -> Iterator[None]:
    def note(_: nn.Module, __: Any, result: tuple[Tensor, ...]) -> None:
        seen.append((result[0] / result[1]).round())

    handle = quantizer.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


def _as_input(x: Tensor, pixels: bool) -> Array:
    if pixels:
        return np.ascontiguousarray((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(x.numpy())


def _logit_step(model: nn.Module) -> float:
    """The smallest step of the classifier's accumulator, 1 for a float classifier."""
    inputs = [q.scale().max().item() for _, q in _executed(model)]
    weights = [q.scale().min().item() for q in quantizers(model) if not (q.masked or q.fixed)]
    return inputs[-1] * weights[-1] if inputs and weights else 1.0
