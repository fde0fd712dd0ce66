"""Batch-norm statistics taken anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def statistics_anew(model: nn.Module) -> Iterator[None]:
    """Inside, in train mode; batch-norm's running statistics become plain means over the batches that pass.

    Leaves the mode and the momenta as they were.
    """
    training, norms = model.training, [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, in eval mode; leaves the mode of every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Batch-norm's statistics as plain means over batches of images (n, c, h, w) in [0,1]."""
    with statistics_anew(model):
        for x in batches:
            model(x)


def freeze_statistics(model: nn.Module) -> None:
    """Batch-norm in eval mode in a network that trains; `train()` undoes it."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
