"""The quantisers' work on a GPU: one kernel for each direction, where torch's own operations take four and eight.

Each is compiled at its first call. A kernel reads and writes every number once, which is all the time that it takes.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# Division is IEEE's and rint goes half to even, so values equal those of `fake_quantize` to the bit. NaN passes.
_GRID = """
    const T scale = clip / high;
    const T step = rintf(x / scale);
    const T value = (step < low ? low : (step > high ? high : step)) * scale;
"""
_QUANTIZE = f"template <typename T> T quantize(T x, T clip, T low, T high) {{ {_GRID} return value; }}"
_PASS = """
template <typename T> T pass(T g, T x, T clip, T below) { return x > clip * below && x < clip ? g : T(0); }
"""
_TRAIN = f"""
template <typename T> void train(T g, T x, T clip, T low, T high, T below, T& dx, T& dclip) {{ {_GRID}
    const bool inside = x > clip * below && x < clip;
    dx = inside ? g : T(0);
    dclip = g * (inside ? (value - x) / clip : (x > T(0) ? T(1) : below));
}}
"""


def fits(x: Tensor) -> bool:
    """Whether the kernels are for this tensor."""
    return x.is_cuda and x.dtype == torch.float32


def quantize(x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """x on the grid {low..high}·clip/high; clip broadcasts over x."""
    result: Tensor = _compiled(_QUANTIZE, low=0.0, high=0.0)(x, clip, low=float(low), high=float(high))
    return result


def inside(g: Tensor, x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """g where x is inside the clip, else 0."""
    result: Tensor = _compiled(_PASS, below=0.0)(g, x, clip, below=low / high)
    return result


def gradients(g: Tensor, x: Tensor, clip: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """dx, and dα before it is summed, both of x's shape."""
    work = _compiled(_TRAIN, 2, low=0.0, high=0.0, below=0.0)
    dx, dclip = work(g, x, clip, low=float(low), high=float(high), below=low / high)
    return dx, dclip


@cache
def _compiled(code: str, outputs: int = 1, **scalars: float) -> Any:
    if outputs > 1:
        return torch.cuda.jiterator._create_multi_output_jit_fn(code, outputs, **scalars)
    return torch.cuda.jiterator._create_jit_fn(code, **scalars)
