"""Does a captured graph compute what the network computes? Asked of both, before anything is quantised.

However it was captured, a graph can lose what the network does: operations in place, numbers drawn while it was
traced, branches that only training takes. Both run on the same images, in eval and in train mode.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import ModelError
from ..models.inference import in_eval_mode

IMAGES = 4  # two at least: batch-norm trains on several values
SIZES = (8, 16, 28, 32, 48, 64, 96, 128, 224, 299)  # of images that are made where none are given
# Of the largest number: the same operations in another order differ by rounding, which batch-norm of few values
# multiplies; so it is done in float64, or with more room where a network insists on float32.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-2}
REMEDY = (
    "write what comes before it without operations in place (y = F.relu(y) and y = y + z, not y.relu_() and y += z), "
    "self.training and random numbers"
)
Call = tuple[str, int]  # path of a module, and the how manieth call of it
Values = list[Tensor]


def check_capture(model: nn.Module, captured: nn.Module, images: Tensor | None) -> None:
    """Raises ModelError, with the first module that differs, unless a graph computes what its network does.

    captured: keeps the paths of the network's modules. images: (n, c, h, w) in [0,1], of which a few are used; None
    for random ones of the first size that the network takes, and no comparison where it takes none. Neither network
    is changed: copies run. What train mode alone gives besides the logits (auxiliary heads) is no difference.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), _SameDraws(device):
        found = _copies(model, captured, images)
        if found is None:
            return
        network, graph, x = found
        for training in (False, True):
            _compare(network.train(training), graph.train(training), x)


def check_pools(captured: nn.Module, images: Tensor) -> None:
    """Raises ModelError for a pool with windows of two sizes, which no runtime computes as torch does: an adaptive one
    that does not divide its input, or an average of a last window that ceil_mode adds.
    """
    with torch.no_grad(), in_eval_mode(captured), ExitStack() as stack:
        for path, pool in captured.named_modules():
            if isinstance(pool, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d)):
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


def _copies(model: nn.Module, captured: nn.Module, images: Tensor | None) -> tuple[nn.Module, nn.Module, Tensor] | None:
    """Network, graph and images in float64 if the network runs so, else as they are."""
    error = ""
    for dtype in TOLERANCES:
        network = copy.deepcopy(model).to(dtype).eval()
        for x in _candidates(captured, images, next(model.parameters())):
            try:
                network(x.to(dtype))
            except Exception as reason:  # whatever a network raises on images that it does not take
                error = (str(reason).splitlines() or [type(reason).__name__])[0]
            else:
                return network, copy.deepcopy(captured).to(dtype), x.to(dtype)
    if images is None:
        return None
    raise ModelError(f"expected a network that takes images {tuple(images.shape)}, got: {error}; pass its own size")


def _candidates(captured: nn.Module, images: Tensor | None, like: Tensor) -> Iterator[Tensor]:
    if images is not None:
        x = images[:IMAGES].to(like.device)
        yield x if len(x) > 1 else torch.cat([x, 1 - x])
        return
    channels = next((m.in_channels for m in captured.modules() if isinstance(m, nn.Conv2d)), 3)
    for size in SIZES:
        yield torch.rand(IMAGES, channels, size, size, device=like.device)


def _compare(network: nn.Module, graph: nn.Module, x: Tensor) -> None:
    mode = "train" if network.training else "eval"
    try:
        expected = _tensors(network(x))
    except Exception:  # it cannot be trained on such images: an auxiliary head, say, wants larger ones
        return
    try:
        got = _tensors(graph.forward(x))  # a graph that is called prints what fails in it
    except Exception as error:
        raise ModelError(
            f"expected a network whose graph runs in {mode} mode, got: {str(error).splitlines()[0]}; "
            "make its forward static"
        ) from error
    if network.training:
        expected = expected[: len(got)]
    if _apart(expected, got) > TOLERANCES[x.dtype]:
        where, distance = _first_apart(network, graph, x)
        raise ModelError(
            f"{where}: expected a graph that computes what the network does, got one that is "
            f"{distance:.1%} apart from here on in {mode} mode; {REMEDY}"
        )


def _first_apart(network: nn.Module, graph: nn.Module, x: Tensor) -> tuple[str, float]:
    """The first module with weights or statistics that reads or gives something else, and by how much."""
    expected, got = (_observed(one, x) for one in (network, graph))
    for call, values in expected.items():
        if call in got and (distance := _apart(values, got[call])) > TOLERANCES[x.dtype]:
            return call[0], distance
    return "the output", _apart(_tensors(network(x)), _tensors(graph(x)))


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
