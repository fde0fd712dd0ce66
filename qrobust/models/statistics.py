"""Batch-norm statistics taken anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def statistics_anew(model: nn.Module) -> Iterator[None]:
    """Inside, in train mode; batch-norm's running statistics become plain means over the batches that pass.

    Leaves the mode and the momenta as they were.
    """
    training, norms = model.training, [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
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
