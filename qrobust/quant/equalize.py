"""Cross-layer equalisation: ranges of neighbouring layers' channels made alike, so that one step suits all of them.

Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", arXiv 1906.04721: behind a
ReLU a channel may be divided by a positive number that the next layer's weights are multiplied by. What the network
computes stays.

Between bounds (ReLU6, hardtanh) that holds as long as a channel stays inside them. The paper puts ReLU in the place of
ReLU6, which is another network wherever a channel reaches 6. Here bounds stay, as the quantiser's clip has them, and a
channel is scaled no further than its largest value on calibration images allows; one that reaches a bound is not.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, fx, nn

from ..models.inference import in_eval_mode, norm_factor
from .graph import capture
from .reading import ACTIVATIONS

SWEEPS = 20  # over all pairs; a chain of depthwise layers needs several
SMALLEST, LARGEST = 1e-3, 1e3  # factor of a channel in a sweep
HEADROOM = 1.2  # of a channel's bound over its largest value on calibration images: others go further


@torch.no_grad()
def equalize(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """A copy whose channels have weights of like ranges before and behind them, where only ReLU, ReLU6 or hardtanh
    stands between.

    model: a float network in eval mode. batches: of images (n, c, h, w), on which it stays the same; on others too
    unless a channel goes beyond a bound by more than a fifth of its range on these.
    """
    copied = copy.deepcopy(model)
    untie(copied)
    graph = capture(copied, tuple(batches[0].shape[1:])).eval()
    pairs = list(_pairs(graph, dict(copied.named_modules())))
    reached = _reached(graph, [activation for *_, activation in pairs], batches)
    for _ in range(SWEEPS if pairs else 0):
        for first, norm, second, activation in pairs:
            _alike(first, norm, second, reached[activation])
    return copied


def untie(model: nn.Module) -> None:
    """Every layer gets tensors of its own in place of such as it shares: what is changed in one is not in another."""
    seen = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
                module._parameters[name] = own
            seen.add(id(module._parameters[name]))


def _reached(graph: fx.GraphModule, activations: Sequence[str], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """By activation, how much of the way to its bound each channel goes: 0 where there is none, infinite where it goes
    too near.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str, module: nn.Module, x: Tensor) -> None:
        low, high = (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0, float("inf"))
        part = x.amax((0, 2, 3)) / high
        if low < 0:
            part = torch.maximum(part, x.amin((0, 2, 3)) / low)
        found[name] = torch.maximum(found.get(name, torch.zeros_like(part)), part)

    hooks = [
        graph.get_submodule(name).register_forward_pre_hook(lambda module, x, name=name: watch(name, module, x[0]))
        for name in activations
    ]
    with in_eval_mode(graph):
        for batch in batches if activations else ():
            graph(batch)
    for hook in hooks:
        hook.remove()
    return {name: part.where(HEADROOM * part <= 1, float("inf")) for name, part in found.items()}


Pair = tuple[nn.Conv2d, nn.BatchNorm2d | None, nn.Conv2d, str]


def _pairs(graph: fx.GraphModule, modules: dict[str, nn.Module]) -> Iterator[Pair]:
    """Convolutions of which the second alone reads the first, by way of batch-norm or not, and an activation, named."""
    calls = Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_module")

    def module(node: fx.Node | None) -> nn.Module | None:
        once = node is not None and node.op == "call_module" and calls[str(node.target)] == 1
        return modules.get(str(node.target)) if node is not None and once else None

    for node in graph.graph.nodes:
        norm, after = None, _only_reader(node)
        if isinstance(module(after), nn.BatchNorm2d):
            norm, after = module(after), _only_reader(after)
        first, second = module(node), module(_only_reader(after))
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d) and _is_clipping(after, graph):
            scaled = norm is None or norm.weight is not None
            if scaled and second.groups in (1, second.in_channels):
                yield first, norm, second, str(after.target)  # type: ignore[misc, union-attr]


def _only_reader(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _is_clipping(node: fx.Node | None, graph: fx.GraphModule) -> bool:
    """Whether a module, of the network's or one that stands for a function, is linear between bounds and 0 at 0."""
    module = graph.get_submodule(str(node.target)) if node is not None and node.op == "call_module" else None
    if isinstance(module, nn.Hardtanh):
        return bool(module.min_val <= 0 < module.max_val)
    return isinstance(module, ACTIVATIONS)


def _alike(first: nn.Conv2d, norm: nn.BatchNorm2d | None, second: nn.Conv2d, reached: Tensor) -> None:
    """Each channel's largest weight before and behind it becomes the geometric mean of both, or as near it as a bound
    allows. reached: of `_reached`, which follows.
    """
    before = first.weight.abs().flatten(1).amax(1)
    if norm is not None:
        before = before * norm_factor(norm, None)[0].abs()
    depthwise, largest = second.groups == second.in_channels, second.weight.abs().flatten(2).amax(2)
    behind = largest.view(second.in_channels, -1).amax(1) if depthwise else largest.amax(0)
    factor = torch.where((before > 0) & (behind > 0), (behind / before).sqrt(), torch.ones_like(before))
    factor = factor.nan_to_num(1.0).clamp(SMALLEST, LARGEST)
    factor = torch.minimum(factor, 1 / (HEADROOM * reached)).where(reached.isfinite(), 1.0)
    reached.mul_(factor)
    for tensor in (norm.weight, norm.bias) if norm is not None else (first.weight, first.bias):
        if tensor is not None:
            tensor.mul_(_over(factor, tensor))
    readers = factor.repeat_interleave(len(largest) // len(factor)) if depthwise else factor
    second.weight.div_(_over(readers, second.weight) if depthwise else readers.view(1, -1, 1, 1))


def _over(factor: Tensor, tensor: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (tensor.dim() - 1))
