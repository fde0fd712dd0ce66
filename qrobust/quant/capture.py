"""Does a captured graph compute what the network computes? Asked of both, before anything is quantised.

However it was captured, a graph can lose what the network does: operations in place, numbers drawn while it was
traced, branches that only training takes. Both run on the same images, in eval and in train mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ModelError
from ..models.inference import in_eval_mode
from .graph import NAMES

IMAGES = 4  # at most; two at least: batch-norm trains on several values
MOST_NUMBERS = 4 * 3 * 64 * 64  # in them, where that leaves two
# Of the largest number: the same operations in another order differ by rounding, which batch-norm of few values
# multiplies; so it is done in float64, or with more room where a network insists on float32.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}
GRADIENTS = 10  # times as much: of those, more operations are summed
MOVED = 0.05  # how far parameters are moved for it: of zero biases, and norms that do nothing, nothing is seen
REMEDY = (
    "write what comes before it without operations in place (y = F.relu(y) and y = y + z, not y.relu_() and y += z), "
    "self.training and random numbers"
)
Call = tuple[str, int]  # path of a module, and the how manieth call of it
Values = list[Tensor]


def check_capture(model: nn.Module, captured: nn.Module, images: Tensor) -> None:
    """Raises ModelError, with the first module that differs, unless a graph computes what its network does.

    Compared are logits in both modes, and in train mode gradients and buffers, after all parameters were moved a
    little. images: (n, c, h, w) in [0,1], of which a few are used; it may be one. Neither network is changed: copies
    run. What train mode alone gives besides the logits (auxiliary heads) is no difference.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    device = next(model.parameters()).device
    with torch.enable_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), _SameDraws(device):
        network, graph, x = _copies(model, captured, _few(images.to(device)))
        names = getattr(captured, "meta", {}).get(NAMES) or {name: name for name, _ in graph.named_parameters()}
        _move(network, graph, names)
        for training in (False, True):
            _compare(network.train(training), graph.train(training), x, names)


def _few(images: Tensor) -> Tensor:
    count = min(IMAGES, max(2, MOST_NUMBERS // images[0].numel()))
    x = images[:count]
    return x if len(x) > 1 else torch.cat([x, 1 - x])


@torch.no_grad()
def _move(network: nn.Module, graph: nn.Module, names: Mapping[str, str]) -> None:
    """Every parameter of both by the same noise."""
    seeds = {id(value): seed for seed, value in enumerate(network.parameters())}
    known = {name: seeds[id(value)] for name, value in network.named_parameters(remove_duplicate=False)}
    for name, value in network.named_parameters():
        _shift(value, known[name])
    for name, value in graph.named_parameters():
        if names.get(name) in known:
            _shift(value, known[names[name]])


def _shift(value: Tensor, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(value.shape, dtype=value.dtype, generator=generator).to(value.device)
    value.add_(noise, alpha=MOVED * _spread(value))


def _spread(value: Tensor) -> float:
    """Of parameters: their deviation, or that of a bias if they are all alike."""
    found = float(value.std()) if value.numel() > 1 else 0.0
    return found if found > 0 else 1.0


def check_pools(captured: nn.Module, images: Tensor) -> None:
    """Raises ModelError for a pool with windows of two sizes, which no runtime computes as torch does: an adaptive
    maximum that does not divide its input, or an average of a last window that ceil_mode adds.
    """
    with torch.no_grad(), in_eval_mode(captured), ExitStack() as stack:
        for path, pool in captured.named_modules():
            if isinstance(pool, (nn.AdaptiveMaxPool2d, nn.AvgPool2d)):
                check = pool.register_forward_hook(partial(_check_pool, path))
                stack.callback(check.remove)
        captured.forward(images[:1].to(next(captured.parameters()).device))


def _check_pool(path: str, pool: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
    before, after = tuple(given[0].shape[-2:]), tuple(y.shape[-2:])
    if not isinstance(pool, nn.AvgPool2d):
        if any(size % part for size, part in zip(before, after, strict=True)):
            raise ModelError(
                f"{path}: expected an adaptive pool that divides its input, got {before} into {after}; "
                "choose sizes that divide, or a pool with a kernel"
            )
    elif pool.ceil_mode:
        whole = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)(given[0])
        if tuple(whole.shape[-2:]) != after:
            raise ModelError(
                f"{path}: expected an average over whole windows, got {before} into {after} by ceil_mode; "
                "leave it out, or pad the images"
            )


def _copies(model: nn.Module, captured: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """Network, graph and images in float64 if the network runs so, else as they are."""
    error = ""
    for dtype in TOLERANCES:
        network = copy.deepcopy(model).to(dtype).eval()
        try:
            with torch.no_grad():
                network(x.to(dtype))
        except Exception as reason:  # whatever a network raises on images that it does not take
            error = (str(reason).splitlines() or [type(reason).__name__])[0]
        else:
            return network, copy.deepcopy(captured).to(dtype), x.to(dtype)
    raise ModelError(f"expected a network that takes images {tuple(x.shape)}, got: {error}; pass its own size")


def _compare(network: nn.Module, graph: nn.Module, x: Tensor, names: Mapping[str, str]) -> None:
    mode, tolerance = "train" if network.training else "eval", TOLERANCES[x.dtype]
    before = [[buffer.clone() for buffer in one.buffers()] for one in (network, graph)]
    try:
        expected = _tensors(network(x))[:1]
    except Exception:  # it cannot be trained on such images: an auxiliary head, say, wants larger ones
        return
    try:
        got = _tensors(graph.forward(x))  # a graph that is called prints what fails in it
    except Exception as error:
        raise ModelError(
            f"expected a network whose graph runs in {mode} mode, got: {str(error).splitlines()[0]}; "
            "make its forward static"
        ) from error
    if _apart(expected, got) > tolerance:
        with torch.no_grad():
            for one, buffers in zip((network, graph), before, strict=True):
                for buffer, old in zip(one.buffers(), buffers, strict=True):
                    buffer.copy_(old)
        where, distance = _first_apart(network, graph, x)
        raise ModelError(
            f"{where}: expected a graph that computes what the network does, got one that is "
            f"{distance:.1%} apart from here on in {mode} mode; {REMEDY}"
        )
    if network.training:
        _compare_training(network, graph, expected[0], got[0], names)


def _compare_training(
    network: nn.Module, graph: nn.Module, expected: Tensor, got: Tensor, names: Mapping[str, str]
) -> None:
    """Gradients of all parameters, and buffers after a pass."""
    weights = torch.randn(expected.shape, dtype=expected.dtype, device=expected.device)
    try:
        torch.autograd.backward((expected * weights).sum())
    except RuntimeError:  # no network that trains: it overwrites what its gradients need
        return
    torch.autograd.backward((got * weights).sum())
    parameters, buffers = dict(network.named_parameters(remove_duplicate=False)), dict(network.named_buffers())
    largest = max((float(p.grad.abs().max()) for p in parameters.values() if p.grad is not None), default=0.0)
    limit = TOLERANCES[got.dtype] * GRADIENTS
    for name, parameter in graph.named_parameters():
        theirs = parameters.get(names.get(name, ""))
        ours = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if theirs is None or not theirs.requires_grad:
            continue
        other = theirs.grad if theirs.grad is not None else torch.zeros_like(theirs)
        if float((ours - other).abs().max()) > limit * largest:
            raise _differs(name, "the gradient")
    for name, buffer in graph.named_buffers():
        before = buffers.get(names.get(name, ""))
        if before is not None and buffer.is_floating_point() and _apart([before], [buffer]) > limit:
            raise _differs(name, "the buffer")


def _differs(name: str, what: str) -> ModelError:
    return ModelError(
        f"{name}: expected a graph that trains as the network does, got one in which {what} of it differs; {REMEDY}"
    )


def _first_apart(network: nn.Module, graph: nn.Module, x: Tensor) -> tuple[str, float]:
    """The first module with weights or statistics that reads or gives something else, and by how much."""
    expected, got = (_observed(one, x) for one in (network, graph))
    for call, values in expected.items():
        if call in got and (distance := _apart(values, got[call])) > TOLERANCES[x.dtype]:
            return call[0], distance
    return "the output", _apart(_tensors(network(x))[:1], _tensors(graph(x)))


def _observed(network: nn.Module, x: Tensor) -> dict[Call, Values]:
    """What every module with weights or statistics of its own reads, and gives; copied before it changes in place."""
    seen: dict[Call, Values] = {}
    reads: dict[str, Values] = {}
    counts: dict[str, int] = {}

    def note(path: str, values: Any) -> None:
        reads[path] = [value.clone() for value in _tensors(values)]

    def keep(path: str, values: Any) -> None:
        counts[path] = counts.get(path, 0) + 1
        seen[path, counts[path]] = [*reads[path], *(value.clone() for value in _tensors(values))]

    with ExitStack() as stack:
        for path, module in network.named_modules():
            if any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
                before = module.register_forward_pre_hook(lambda _, given, path=path: note(path, given))
                after = module.register_forward_hook(lambda _, __, given, path=path: keep(path, given))
                stack.callback(before.remove)
                stack.callback(after.remove)
        network(x)
    return seen


def _tensors(values: Any) -> Values:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _apart(expected: Values, got: Values) -> float:
    """Largest difference, of the largest number expected; infinite for other shapes or other places of NaN."""
    if [value.shape for value in expected] != [value.shape for value in got]:
        return float("inf")
    distances = [0.0]
    for want, have in zip(expected, got, strict=True):
        if not torch.equal(want.isfinite(), have.isfinite()):
            return float("inf")
        finite = want.isfinite()
        want, have = want[finite].double(), have[finite].double()
        largest = want.abs().max().item() if want.numel() else 0.0
        distances.append((want - have).abs().max().item() / max(largest, 1e-30) if want.numel() else 0.0)
    return max(distances)


class _SameDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every random operation draws the same numbers, in whatever order they come: dropout is comparable."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, behind a seed if it is random."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.default_generator.manual_seed(0)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(0)
        return func(*args, **(kwargs or {}))
