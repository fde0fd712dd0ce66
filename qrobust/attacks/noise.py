"""Noise that does not look at the network."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .checks import check_images


def gaussian_noise(x: Tensor, *, std: float = 0.1, generator: Generator | None = None) -> Tensor:
    """x + N(0, std²), clipped to [0,1]; std in units of [0,1]. Not bounded by any eps."""
    check_images(x)
    source = x.device if generator is None else generator.device
    noise = torch.empty(x.shape, dtype=x.dtype, device=source).normal_(generator=generator)
    return (x + std * noise.to(x.device)).clamp(0, 1)
