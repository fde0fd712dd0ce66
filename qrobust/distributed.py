"""One process or several: who computes what, and how results come together.

Started by torchrun, each process takes its part of every batch; alone, everything here does nothing.
Several machines need a run folder that all of them see; only the first process writes to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import ModelError

PATIENCE = timedelta(days=1)  # the first process may evaluate, or check them, for long


_on_its_own = ContextVar("on_its_own", default=False)


def world() -> int:
    """Number of processes."""
    together = dist.is_available() and dist.is_initialized() and not _on_its_own.get()
    return dist.get_world_size() if together else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


@contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes that torchrun started know each other: nccl on GPUs, one each, else gloo."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or world() > 1:
        yield
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process takes itself for the only one: it waits for no other, and all work is its own."""
    token = _on_its_own.set(True)
    try:
        yield
    finally:
        _on_its_own.reset(token)


def part(tensor: Tensor) -> Tensor:
    """This process's share of a batch that all of them hold: every world-th row."""
    return tensor[rank() :: world()] if world() > 1 else tensor


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world() > 1:
        dist.all_reduce(tensor)
    return tensor


def greatest(tensor: Tensor) -> Tensor:
    """The largest over all processes, element by element, in place."""
    if world() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def gathered(tensor: Tensor) -> Tensor:
    """Undoes `part`: the rows (n, ...) of all processes in the order of the whole batch, which each of them gets.

    Differentiable: a gradient is that of the sum of what all processes compute from it.
    """
    if world() == 1:
        return tensor
    count = int(summed(torch.tensor(len(tensor), device=tensor.device)))
    rows = torch.zeros(count, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    which = part(torch.arange(count, device=tensor.device))
    return _sum(rows.index_copy(0, which, tensor))


def everyones(value: Any) -> list[Any]:
    """What each process holds, in their order; any value that can be pickled."""
    found: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(found, value)
    return found


def averaged(parameters: Iterable[Tensor], gradients: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Gradients as means over the processes; None where no process has one."""
    pairs = list(zip(parameters, gradients, strict=True))
    if world() == 1:
        return [gradient for _, gradient in pairs]
    flat = [(torch.zeros_like(p) if gradient is None else gradient).reshape(-1) for p, gradient in pairs]
    given = torch.tensor([float(gradient is not None) for _, gradient in pairs], device=flat[0].device)
    total = summed(torch.cat([given, *flat]))  # one message, not one a parameter
    counts, *sums = torch.split(total, [len(given), *map(len, flat)])
    means = [torch.empty_like(p).copy_(value.view_as(p) / world()) for (p, _), value in zip(pairs, sums, strict=True)]
    return [mean if count else None for mean, count in zip(means, counts.tolist(), strict=True)]


def own(path: Path) -> Path:
    """A path that no other process writes; the first keeps the plain one."""
    return path if is_first() else path.with_suffix(f".{rank()}{path.suffix}")


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def synchronised(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the network's batch-norms see the whole batch, of which each process holds a part.

    They are replaced by others with the same parameters and buffers under the same names: torch's `SyncBatchNorm` on
    GPUs, `SharedBatchNorm` elsewhere. In eval mode they are what they were. Raises ModelError for a batch-norm of a
    kind that cannot be shared.
    """
    found = list(_norms(model)) if world() > 1 else []
    shared = {norm: _shared(norm) for _, _, norm in found}  # one, though it may stand in several places
    for parent, name, norm in found:
        setattr(parent, name, shared[norm])
    try:
        yield model
    finally:
        for parent, name, norm in found:
            setattr(parent, name, norm.train(shared[norm].training))


def _norms(model: nn.Module) -> Iterator[tuple[nn.Module, str, _BatchNorm]]:
    """Every place of a batch-norm: the module that holds it, and its name there."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if isinstance(child, _BatchNorm):
                yield parent, name, child


def _shared(norm: _BatchNorm) -> _BatchNorm:
    if type(norm) is nn.SyncBatchNorm:
        return norm
    if type(norm) not in SHARED:
        raise ModelError(
            f"expected batch-norms of torch.nn to train in several processes, got {type(norm).__name__}; "
            "use torch's, or train in one process"
        )
    kind = nn.SyncBatchNorm if torch.cuda.is_available() else SHARED[type(norm)]
    shared = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    for name, value in (*norm._parameters.items(), *norm._buffers.items()):
        setattr(shared, name, value)
    return shared.train(norm.training)


class _Shared(_BatchNorm):
    """Batch-norm over the parts of a batch that all processes hold, on any device (torch's own needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, ...) → the same shape; n is this process's part, which may be empty."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)  # type: ignore[no-untyped-call]
        along, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *[1] * (x.dim() - 2)]
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        count = summed(torch.tensor(x.numel() / x.shape[1], device=x.device))
        if count < 2:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        mean = _sum(values.sum(along)) / count
        centred = values - mean.view(shape)
        variance = _sum(centred.square().sum(along)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * (variance + self.eps).rsqrt().view(shape)
        y = y if self.weight is None else y * self.weight.view(shape)
        return (y if self.bias is None else y + self.bias.view(shape)).to(x.dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SharedBatchNorm1d(_Shared, nn.BatchNorm1d):
    """Over (n, c) or (n, c, l)."""


class SharedBatchNorm(_Shared, nn.BatchNorm2d):
    """Over (n, c, h, w)."""


class SharedBatchNorm3d(_Shared, nn.BatchNorm3d):
    """Over (n, c, d, h, w)."""


SHARED: dict[type[_BatchNorm], type[_BatchNorm]] = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm,
    nn.BatchNorm3d: SharedBatchNorm3d,
}


class _Sum(torch.autograd.Function):
    """Sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return summed(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return summed(grads[0].contiguous().clone())


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total
