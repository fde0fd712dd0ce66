"""One process or several: who computes what, and how results come together.

Started by torchrun, each process takes its part of every batch; alone, everything here does nothing.
Several machines need a run folder that all of them see; only the first process writes to it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

PATIENCE = timedelta(days=1)  # the first process may evaluate, or ask doubts, for long


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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


def own(path: Path) -> Path:
    """A path that no other process writes; the first keeps the plain one."""
    return path if is_first() else path.with_suffix(f".{rank()}{path.suffix}")


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def synchronised(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, the network as DistributedDataParallel, whose batch-norm sees the whole batch; alone, itself.

    The model itself serves for crafting: its statistics are shared too, its gradients are not.
    """
    if world() == 1:
        yield model
        return
    norms = [module for module in model.modules() if type(module) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = SharedBatchNorm
    try:
        yield nn.parallel.DistributedDataParallel(model, **_without_broadcast())
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d


def _without_broadcast() -> dict[str, Any]:
    """Statistics agree by themselves, and broadcasting them would disturb a second pass before its backward one."""
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch-norm over the parts of a batch that all processes hold, on any device (torch's own needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → the same shape; n is this process's part."""
        if not self.training:
            return super().forward(x)
        count = summed(torch.tensor([x.numel() / x.shape[1]], device=x.device))
        mean = _sum(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach(), float(count))
        scale = self.weight / (variance + self.eps).sqrt()
        return centred * scale[:, None, None] + self.bias[:, None, None]

    def _follow(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1), share)


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
