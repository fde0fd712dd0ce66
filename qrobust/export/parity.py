"""Does the file compute what torch computed? Counted in quantisation steps, tensor by tensor, not in floats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

from .. import devices, quant
from ..errors import ExportError, ParityError
from ..quant import quantizers
from ..runtime import LITERT, OPENVINO, ArtifactError, OpenVinoSession, Verdict
from .levels import (
    LOGITS,
    Executed,
    Levels,
    Quantised,
    dynamic,
    executed_levels,
    exposing,
    force,
    found_levels,
    matched,
    named_levels,
    results,
    shown_first,
)
from .sessions import open_session
from .target import Target

Array = npt.NDArray[Any]
Run = Callable[[dict[str, Array]], list[Array]]  # a graph's inputs by name → its outputs
LEVELS = ("disable", "basic", "extended", "all")
# Seen of right files, layer by layer: one step at ties; in float16, where sums lose digits, seven.
STEPS, HALF_STEPS = 1, 16
FORCED = 64  # images that layers are judged on alone
MOST = 2**26  # integers of a batch that are compared at a time: some 700 MB with what torch and the session need
# Of what a layer gives, as a share of its largest number: what sums of floats may lose.
NEAR, HALF_NEAR = 1e-3, 3e-2
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
        """The first tensor, in the order of execution, that differs anywhere: path of its quantiser."""
        return next((layer.module or layer.name for layer in self.layers if layer.share), None)

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
    activations: Sequence[Quantised] | None = None,
    runtime: str = "all",
    forced: bool = False,
    batch_size: int = 100,
) -> Parity:
    """Run torch and the file on the same images and count where they differ.

    model: in eval mode, from `quantize` or float, or with Brevitas' own quantisers. data: the bytes that `lower` made
    of it, activations: what their writer says of them; None: they are found in the graph. images: (n, c, h, w)
    in [0,1], on the 8-bit grid. runtime: a level of onnxruntime's optimisation ("disable" to "all", which
    fuses), "reference": onnx' own evaluator, the judge of what the file means, or "openvino" where installed; or a
    provider of LiteRT, on which the .tflite file of it runs.
    forced: whatever reads a quantised activation gets torch's integers, so that each difference is a layer's
    own; else one early step can echo through a deep network. batch_size: at most; fewer where activations are large.
    Raises ExportError for another runtime, or a file that holds other quantisers than the network.
    """
    pair = _Pair(model, data, images, activations, forced=forced)
    run = _runner(exposing(pair.proto, [value.name for value in pair.values]), runtime)
    counts = [np.zeros(3, np.int64) for _ in pair.values]
    flips, furthest, step, changes = 0, 0.0, _logit_step(model, pair.executed), list[float]()
    for batch in torch.split(images, pair.batch_size(batch_size)):
        logits, wanted, feeds = pair.torch(batch)
        outputs = run(feeds)
        flips += int((outputs[0].argmax(1) != logits.argmax(1)).sum())
        furthest = max(furthest, float((np.abs(outputs[0] - logits) / step).max()))
        changes += _changes(outputs[0], logits)
        for count, value, got, want in zip(counts, pair.values, outputs[1:], wanted, strict=True):
            distance = value.distances(got, want)
            count += (distance.size, int((distance > 0).sum()), 0)
            count[2] = max(count[2], distance.max(initial=0))
    layers = tuple(map(_difference, pair.values, pair.executed, counts))
    return Parity(runtime, len(images), flips / len(images), furthest, layers, float(np.median(changes)))


class _Pair:
    """A network and its file. values: the file's quantised activations, executed: the network's, one image's, beside.

    forced: the file takes the network's integers for all that reads them.
    """

    def __init__(
        self, model: nn.Module, data: bytes, images: Tensor, activations: Sequence[Quantised] | None, *, forced: bool
    ) -> None:
        self.model, self.proto, self.forced = model, onnx.load_from_string(data), forced
        source = self.proto.graph.input[0]
        self.source, self.pixels = source.name, source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        one, two = (executed_levels(model, images[:1].expand(n, *images.shape[1:]))[1] for n in (1, 2))
        self.values = found_levels(self.proto) if activations is None else named_levels(self.proto, activations)
        self.places = matched([each.path for each in one], self.values, first_is_given=self.pixels)
        self.executed = [one[place] for place in self.places]
        if forced:
            shapes = [dynamic(one[place].levels.shape, two[place].levels.shape) for place in self.places]
            force(self.proto, self.values, shapes)

    def batch_size(self, most: int) -> int:
        """So few images that their activations fit."""
        return _batch_size(most, sum(each.levels.size for each in self.executed))

    def torch(self, x: Tensor) -> tuple[Array, list[Array], dict[str, Array]]:
        """The network's logits and integers, and what the file takes."""
        logits, seen = executed_levels(self.model, x)
        wanted = [seen[place].levels for place in self.places]
        feeds = {self.source: _as_input(x, self.pixels)}
        if self.forced:
            feeds |= {value.fed: value.integers(want) for value, want in zip(self.values, wanted, strict=True)}
        return logits, wanted, feeds

    def differing(self, x: Tensor, paths: Sequence[str], near: float) -> list[str]:
        """Of these layers those whose results, which the file calls by their paths, are not the network's.

        near: what share of the largest number is no difference.
        """
        names = {name for node in self.proto.graph.node for name in node.output}
        named = [path for path in paths if path in names]
        run = _runner(exposing(self.proto, named), "extended")
        with results(self.model, named) as seen:
            _, _, feeds = self.torch(x)
        outputs = run(feeds)[1:]
        return [path for path, got in zip(named, outputs, strict=True) if _distance(got, seen[path]) > near]


def _distance(got: Array, expected: Sequence[Array]) -> float:
    """The largest difference to the nearest of these, as a share of its largest number; 0 if none has the shape."""
    alike = [want for want in expected if want.shape == got.shape]
    return min((float(np.abs(got - want).max() / (np.abs(want).max() + 1e-30)) for want in alike), default=0.0)


def _difference(value: Levels, own: Executed, count: Array) -> Difference:
    total, differing, largest = (int(number) for number in count)
    return Difference(value.name, own.bits, own.step, total, differing / total, largest, own.path)


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


def check_parity(
    model: nn.Module,
    data: bytes,
    images: Tensor,
    target: Target,
    *,
    activations: Sequence[Quantised] | None = None,
) -> Parity:
    """The parity of a file as its target runs it: labels of all images, and layer by layer on torch's integers, on
    which one flipped tie does not echo (in a transformer it reaches every token); arguments as of `parity`.

    Raises ParityError, with the layer, for one beyond the target's limits; ExportError for a network whose biases the
    file had to round, so that another was evaluated.
    """
    unrounded = quant.first_unrounded(model) if target.format == "integer" else None
    if unrounded is not None:
        raise ExportError(
            f"{unrounded}: expected a bias on its accumulator's grid, got one between two steps; "
            "call qrobust.quant.round_biases(model), evaluate, and export again"
        )
    level = target.provider if target.provider in LITERT else target.session.graph_optimization_level
    alone = parity(model, data, images[:FORCED], activations=activations, runtime=level, forced=True)
    if alone.layers:
        size = _batch_size(100, sum(layer.elements for layer in alone.layers) // alone.n)
        whole = replace(alone, n=len(images), flips=_flips(model, data, images, level, size))
    else:
        alone = whole = parity(model, data, images, runtime=level)
    for verdict in judge(whole, alone, target):
        if not verdict.passed:
            fault = None
            if verdict.name != "label_flips":  # as they run, all layers together flip them
                fault = first_fault(model, data, images[:FORCED], alone, target, activations=activations)
            raise ParityError(
                f"{target.name}: expected a file that computes what torch does, but {verdict.reason}, tolerated "
                f"{verdict.limit:g}; {f'{fault} computes something else: ' if fault else ''}{verdict.hint}"
            )
    return whole


def first_fault(
    model: nn.Module,
    data: bytes,
    images: Tensor,
    alone: Parity,
    target: Target,
    *,
    activations: Sequence[Quantised] | None = None,
) -> str | None:
    """Path of the first module that computes something else in the file, None if none is found; arguments as of
    `check_parity`, alone: their parity, forced.

    The first tensor beyond the limit, or the logits, shows the faults of all layers that no tensor before depends on:
    of those, the first whose own result differs; if none does, the quantiser of the tensor, or the last.
    """
    wrong = next((layer for layer in alone.layers if layer.largest > _most_steps(target)), None)
    shown = shown_first(model).get(wrong.module if wrong else LOGITS, ())
    pair = _Pair(model, data, images, activations, forced=True)
    near = HALF_NEAR if target.format == "float16" else NEAR
    differing = pair.differing(images[: pair.batch_size(FORCED)], shown, near)
    rest = [wrong.module] if wrong else reversed(shown)  # the last of them gives the logits, by another name
    return next(iter((*differing, *rest)), None)


@devices.exact_products()
def _flips(model: nn.Module, data: bytes, images: Tensor, runtime: str, batch_size: int) -> float:
    """Share of labels that the file, as it is, and torch give otherwise."""
    run, source, flips = _runner(data, runtime), onnx.load_from_string(data).graph.input[0], 0
    pixels = source.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for batch in torch.split(images, batch_size):
        logits = run({source.name: _as_input(batch, pixels)})[0]
        flips += int((logits.argmax(1) != executed_levels(model, batch, watched=False)[0].argmax(1)).sum())
    return flips / len(images)


def _batch_size(most: int, integers: int) -> int:
    """integers: quantised activations of one image."""
    return max(1, min(most, MOST // max(1, integers)))


def _most_steps(target: Target) -> int:
    return HALF_STEPS if target.format == "float16" else STEPS


def _runner(data: bytes, runtime: str) -> Run:
    if runtime in LEVELS or runtime in LITERT:
        session = open_session(data, runtime, runtime if runtime in LITERT else "CPUExecutionProvider")
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
        return lambda feeds: compiled.run(None, feeds)
    known = ", ".join((*LEVELS, "reference", OPENVINO, *LITERT))
    raise ExportError(f"expected a runtime out of {known}, got {runtime!r}")


def _as_input(x: Tensor, pixels: bool) -> Array:
    if pixels:
        return np.ascontiguousarray((x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(x.numpy())


def _changes(got: Array, logits: Array) -> list[float]:
    lengths = np.linalg.norm(logits, axis=1)
    changes: list[float] = (np.linalg.norm(got - logits, axis=1) / np.maximum(lengths, 1e-30)).tolist()
    return changes


def _logit_step(model: nn.Module, executed: Sequence[Executed]) -> float:
    """The smallest step of the classifier's accumulator, 1 for a float classifier."""
    weights = [q.scale().min().item() for q in quantizers(model) if not (q.masked or q.fixed)]
    return executed[-1].step * weights[-1] if executed and weights else 1.0
