"""Adversarial weight perturbation (Wu et al. 2020, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def perturbed(weights: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], gamma: float) -> Iterator[None]:
    """Inside, every weight stands at w + γ·‖w‖·g/‖g‖, up along its gradient g; afterwards at w again, to the bit.

    A weight without a gradient (None), which the loss does not use, stays.
    """
    before = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    weight.add_(gradient * (gamma * weight.norm() / gradient.norm().clamp_min(1e-12)))
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


@contextmanager
def fixed_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch-norm in train mode normalises by the batch and leaves its running statistics alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
