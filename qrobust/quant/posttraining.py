"""A quantised network without training: weights and biases that repeat, layer by layer, what the float one gives.

The quantised graph is walked layer by layer with all calibration images, and the float one beside it. At every layer
stand then what it reads (behind all that was rounded before it) and what the float layer gives: AdaRound learns which
weights to round up, the bias takes the mean of what is left. Values of all images are held only where the network is
narrow; what lies between is computed anew for each layer, a few images at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from ..errors import ModelError
from ..models.inference import in_eval_mode, norm_factor
from .convert import QuantConfig, calibration_images, quantize
from .equalize import equalize, untie
from .graph import capture
from .layers import QuantizedConv2d, QuantizedLinear, round_biases
from .quantizer import Quantizer, quantizers

Layer = QuantizedConv2d | QuantizedLinear
STRETCH, LEARNING_RATE, FREE, SHARPEST, SOFTEST = 0.1, 1e-2, 0.2, 2.0, 20.0  # as AdaRound's authors set them
REGULARISATION = 0.1  # of the error that rounding to nearest leaves
MOST_ROWS = 2**14  # of what a layer reads, over all images: enough to know its second moments, and a bound on time
MOST_HELD = 2**29  # bytes of values, of all images, that each of both graphs goes on from
MOST_AT_ONCE = 2**26  # bytes of float values on the way, of images that run together; quantisers take some times that
FEWEST = 10  # calibration images: means of one image's outputs are that image's
PAD_MODES = {"zeros": "constant"}  # as torch's pad calls them


@dataclass(frozen=True)
class PtqConfig:
    """How `ptq` makes up for what rounding costs.

    bias_correction: whether each layer's bias takes the mean difference from the float layer (Nagel et al. 2019, arXiv
    1906.04721). adaround: steps in which each layer's rounding is learned (Nagel et al. 2020, arXiv 2004.10568); 0:
    to nearest. equalize: whether ranges of neighbouring layers' channels are made alike before (cross-layer
    equalisation, the former paper): for depthwise networks with ReLU. Raises ModelError for negative steps.
    """

    bias_correction: bool = True
    adaround: int = 0
    equalize: bool = False

    def __post_init__(self) -> None:
        if self.adaround < 0:
            raise ModelError(f"expected 0 or more steps of AdaRound, got {self.adaround}; 0 rounds to nearest")


@dataclass(frozen=True)
class LayerError:
    """What rounding costs a layer: mean squared difference of its outputs from the float network's, as a share of
    theirs; `nearest` before and `left` after AdaRound and bias correction.
    """

    name: str
    bits: int
    nearest: float
    left: float


@torch.no_grad()
def ptq(
    model: nn.Module,
    config: QuantConfig = QuantConfig(8, fat="none"),
    *,
    calibration: object,
    settings: PtqConfig = PtqConfig(),
) -> tuple[nn.Module, list[LayerError]]:
    """QM-n of a trained network without training it, and what rounding costs each layer.

    model, config, calibration: as of `quantize`; some hundred images (n, c, h, w), whose labels are not read. FAT
    changes weights and needs training: `fat="none"`. Batch-norm's statistics stay. Raises ModelError as `quantize`, and
    for fewer than 10 images.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    >>> qm4, errors = ptq(net, QuantConfig(4, fat="none"), calibration=torch.rand(16, 1, 8, 8))
    >>> [error.name for error in errors]
    ['0', '2']
    """
    if config.fat != "none":
        raise ModelError(f"expected fat='none' without training, got {config.fat!r}; FAT's masks are learned")
    batches = list(calibration_images(model, calibration))
    expect_images(sum(map(len, batches)))
    source = equalize(model, batches) if settings.equalize else model
    made = quantize(source, config, calibration=batches)
    if not isinstance(made, fx.GraphModule):
        return made, []
    untie(made)
    with in_eval_mode(source):
        reference = capture(source, tuple(batches[0].shape[1:])).eval()
    with in_eval_mode(made):
        errors = list(_repaired(made, reference, batches, settings))
    round_biases(made)
    return made, errors


def expect_images(count: int) -> None:
    """Raises ModelError for too few images to quantise by."""
    if count < FEWEST:
        raise ModelError(
            f"expected {FEWEST} calibration images or more without training, got {count}; give some hundred"
        )


def _repaired(
    made: fx.GraphModule, reference: fx.GraphModule, batches: Sequence[Tensor], settings: PtqConfig
) -> Iterator[LayerError]:
    """Repair each layer before what follows reads it."""
    walk, beside = _Walk(made, batches), _Walk(reference, batches)
    modules, n = dict(made.named_modules()), sum(map(len, batches))
    for node in made.graph.nodes:
        layer = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            name = str(node.target)
            inputs = walk.values(node.all_input_nodes[0], before=node)
            wanted = beside.values(beside.calls[name])
            follower = next(iter(node.users)) if len(node.users) == 1 else None
            norm = modules.get(str(follower.target)) if follower is not None else None
            rows = _rows(layer, getattr(layer, "groups", 1), zip(inputs, wanted, strict=True), n)
            yield _repair(name, layer, norm, rows, settings)


class _Walk:
    """A graph that is run on many images, a few at a time, up to one node after the other.

    What is held of each part of the images are the values that a later node reads, at the last place where those of all
    images take no more than `MOST_HELD`, and everything behind is run again. So layers may change that lie behind it.
    """

    def __init__(self, graph: fx.GraphModule, batches: Sequence[Tensor]) -> None:
        self.nodes = list(graph.graph.nodes)
        self.index = {node: place for place, node in enumerate(self.nodes)}
        self.calls = {str(node.target): node for node in self.nodes if node.op == "call_module"}
        self.interpreter = fx.Interpreter(graph)
        self.live = self._live(batches[0][:2])
        at_once = max(1, MOST_AT_ONCE // max(self.live))
        self.parts = [part for batch in batches for part in torch.split(batch, at_once)]
        self.held: list[dict[fx.Node, Any]] = [{} for _ in self.parts]
        self.place = 0  # the first node that is not run of what is held
        n = sum(map(len, batches))
        self.holdable = [n * size <= MOST_HELD for size in self.live]

    def values(self, wanted: fx.Node, before: fx.Node | None = None) -> Iterator[Tensor]:
        """What a node gives, part by part of the images. before: the node up to which nothing will change any more; the
        one behind it if None.
        """
        stop = self.index[wanted] + 1 if before is None else self.index[before]
        place = max((k for k in range(self.place + 1, stop + 1) if self.holdable[k]), default=self.place)
        for part in range(len(self.parts)):
            if place > self.place:
                self.held[part] = self._after(part, self.place, place)
        self.place = place
        for part in range(len(self.parts)):
            yield self._after(part, place, stop)[wanted]

    def _after(self, part: int, start: int, stop: int) -> dict[fx.Node, Any]:
        """Values that later nodes read, of a part of the images, once the nodes from `start` to `stop` have run."""
        run = self.interpreter
        run.env, run.args_iter = dict(self.held[part]), iter([self.parts[part]])
        for node in self.nodes[start:stop]:
            run.env[node] = run.run_node(node)
            for dead in run.user_to_last_uses.get(node, []):
                run.env.pop(dead, None)
        return run.env

    def _live(self, images: Tensor) -> list[int]:
        """Bytes of an image's values that later nodes read, before each node and at the end."""
        self.parts, self.held, found = [images], [{}], [0]
        for place in range(len(self.nodes)):
            self.held = [self._after(0, place, place + 1)]
            tensors = (one for one in tree_leaves(list(self.held[0].values())) if isinstance(one, Tensor))
            found.append(sum(one.nbytes for one in tensors) // len(images))
        return found


@dataclass(frozen=True)
class _Rows:
    """What a layer reads, (groups, rows, inputs), and should give, (groups, rows, outputs), with both means, (groups,
    ·), taken out of them.
    """

    inputs: Tensor
    wanted: Tensor
    mean_input: Tensor
    mean_wanted: Tensor

    def error(self, weight: Tensor) -> Tensor:
        """Mean squared error of weights (groups, outputs, inputs), by group and output."""
        return (self.inputs @ weight.mT - self.wanted).square().mean(1)


def _repair(name: str, layer: Any, norm: nn.Module | None, rows: _Rows, settings: PtqConfig) -> LayerError:
    groups = len(rows.inputs)
    quantizer = next(quantizers(layer.weight_quant))
    nearest = _quantised(layer, quantizer, groups)
    if settings.adaround:
        scale = quantizer.scale().expand(len(layer.weight), *[1] * (layer.weight.dim() - 1))
        found = adaround(
            _grouped(layer.weight, groups), _grouped(scale, groups), quantizer, rows, steps=settings.adaround
        )
        layer.weight.copy_(found.reshape(layer.weight.shape))
    left = _quantised(layer, quantizer, groups)
    if settings.bias_correction:
        _correct(layer, norm, rows.mean_wanted - (left @ rows.mean_input[..., None])[..., 0])
    whole = float(rows.wanted.square().mean(1).sum().clamp_min(1e-30))
    before, after = (float(rows.error(weight).sum()) / whole for weight in (nearest, left))
    return LayerError(name, quantizer.bits, before, after)


def _quantised(layer: Any, quantizer: Quantizer, groups: int) -> Tensor:
    return _grouped(quantizer(layer.weight)[0], groups)


def _grouped(weight: Tensor, groups: int) -> Tensor:
    """(groups, outputs, inputs) of a layer's weight (outputs, …)."""
    return weight.reshape(groups, len(weight) // groups, -1)


def _rows(layer: Any, groups: int, pairs: Iterable[tuple[Tensor, Tensor]], n: int) -> _Rows:
    """Some rows of each of n images, drawn at random; pairs: what a layer reads and should give, some images each.

    Image by image: the windows of many at once would take gigabytes.
    """
    generator, count, found = torch.Generator().manual_seed(0), -(-MOST_ROWS // n), []
    for x, y in pairs:
        for one, wanted in zip(torch.split(x, 1), torch.split(y, 1), strict=True):
            read, given = _windows(layer, one, groups), _outputs(wanted, groups)
            drawn = torch.randperm(read.shape[1], generator=generator)[:count].to(x.device)
            found.append((read[:, drawn], given[:, drawn]))
    read, given = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    mean_read, mean_given = read.mean(1), given.mean(1)
    return _Rows(read.sub_(mean_read[:, None]), given.sub_(mean_given[:, None]), mean_read, mean_given)


def _windows(layer: Any, x: Tensor, groups: int) -> Tensor:
    """Rows (groups, n · positions, inputs) that a layer multiplies by its weight."""
    if isinstance(layer, nn.Linear):
        return x.reshape(1, -1, x.shape[-1])
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        sides = layer._reversed_padding_repeated_twice
        x, padding = F.pad(x, sides, mode=PAD_MODES.get(layer.padding_mode, layer.padding_mode)), (0, 0)
    else:
        padding = layer.padding
    return _by_group(F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride), groups)


def _outputs(y: Tensor, groups: int) -> Tensor:
    """Rows (groups, n · positions, outputs) that a layer gives."""
    if y.dim() != 4:  # of a linear layer
        return y.reshape(1, -1, y.shape[-1])
    return _by_group(y.flatten(2), groups)


def _by_group(x: Tensor, groups: int) -> Tensor:
    """(n, channels, positions) as (groups, n · positions, channels of a group)."""
    n, channels, positions = x.shape
    return x.view(n, groups, channels // groups, positions).permute(1, 0, 3, 2).flatten(1, 2)


def _correct(layer: Any, norm: nn.Module | None, bias: Tensor) -> None:
    """What the bias (groups, outputs) of a layer must be for its mean outputs to be the float layer's.

    A layer without one leaves the difference to the batch-norm that alone reads it.
    """
    bias = bias.flatten()
    if layer.bias is not None:
        layer.bias.copy_(bias)
    elif isinstance(norm, nn.BatchNorm2d) and norm.bias is not None:
        norm.bias.add_(norm_factor(norm, None)[0] * bias)


def adaround(weight: Tensor, scale: Tensor, quantizer: Quantizer, rows: _Rows, *, steps: int) -> Tensor:
    """Weights (groups, outputs, inputs) on the grid of a scale that broadcasts, each rounded up or down so that
    outputs stay; where that leaves an output no better than rounding to nearest, rounded to nearest.

    By gradients of the whole squared error, through the second moments of what the layer reads: a step takes as long
    for ten images as for ten thousand (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
    Quantization", arXiv 2004.10568). Then single weights are turned as long as that helps, which finds most of the gain
    by itself.
    """
    low, high = quantizer.low, quantizer.high
    gram, crossed = (
        rows.inputs.mT @ rows.inputs / rows.inputs.shape[1],
        rows.wanted.mT @ rows.inputs / rows.inputs.shape[1],
    )
    nearest = (weight / scale).round().clamp(low, high)
    floor = (weight / scale).floor().clamp(low, high - 1)
    rest = (weight / scale - floor).clamp(0.01, 0.99)
    unit = rows.error(nearest * scale).sum().clamp_min(1e-30)
    with torch.enable_grad():
        free = (-((1 + 2 * STRETCH) / (rest + STRETCH) - 1).log()).requires_grad_(True)
        optimiser = torch.optim.Adam([free], lr=LEARNING_RATE)
        for step in range(steps):
            up = _up(free)
            tried = (floor + up) * scale
            error = ((tried @ gram - 2 * crossed) * tried).sum()
            share = (step / steps - FREE) / (1 - FREE)
            sharpness = SHARPEST + (SOFTEST - SHARPEST) * (1 - max(0.0, share))
            undecided = (1 - (2 * up - 1).abs().pow(sharpness)).sum() if share > 0 else up.sum() * 0
            loss = error / unit + REGULARISATION * undecided / len(weight.flatten())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    learned = _polished(floor, free.detach() > 0, scale, gram, crossed)
    better = rows.error(learned * scale) < rows.error(nearest * scale)
    return torch.where(better[..., None], learned, nearest) * scale


def _polished(floor: Tensor, up: Tensor, scale: Tensor, gram: Tensor, crossed: Tensor) -> Tensor:
    """Integers whose rounding is turned, of each output the one that helps most, until none helps."""
    scale = scale.expand_as(floor)
    curvature = gram.diagonal(dim1=-2, dim2=-1)[:, None] * scale.square()
    slope = ((floor + up) * scale @ gram - crossed) * 2
    for _ in range(floor.shape[-1]):
        turn = 1 - 2 * up.to(floor)
        gain = turn * slope * scale + curvature  # what turning a weight adds to the error
        least, which = gain.min(-1, keepdim=True)
        helps = least < 0
        if not helps.any():
            break
        move = torch.where(helps, turn.gather(-1, which) * scale.gather(-1, which), 0.0)
        slope += 2 * move * gram.gather(1, which.expand(-1, -1, gram.shape[-1]))
        up = up ^ torch.zeros_like(up).scatter(-1, which, helps)
    return floor + up


def _up(free: Tensor) -> Tensor:
    """The rectified sigmoid: how far up, in [0, 1]."""
    return (free.sigmoid() * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
