"""Quantisers with a learned clip, in the form that Brevitas layers take; one kernel for each direction on a GPU.

Each is compiled at its first call. A kernel reads and writes every number once, which is all the time that it takes.

Brevitas asks of a `tensor_quant` module: tensor in, (dequantised value, scale, zero point, bit width) out.
These give it that, with the gradients that the FAT and APoT papers train with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ..straight_through import inside, soft

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


def has_kernel(x: Tensor) -> bool:
    """Whether the kernels are for this tensor."""
    return x.is_cuda and x.dtype == torch.float32


def quantize_by_kernel(x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """x on the grid {low..high}·clip/high; clip broadcasts over x."""
    result: Tensor = _compiled(_QUANTIZE, low=0.0, high=0.0)(x, clip, low=float(low), high=float(high))
    return result


def inside_by_kernel(g: Tensor, x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """g where x is inside the clip, else 0."""
    result: Tensor = _compiled(_PASS, below=0.0)(g, x, clip, below=low / high)
    return result


def gradients_by_kernel(g: Tensor, x: Tensor, clip: Tensor, low: int, high: int) -> tuple[Tensor, Tensor]:
    """dx, and dα before it is summed, both of x's shape."""
    work = _compiled(_TRAIN, 2, low=0.0, high=0.0, below=0.0)
    dx, dclip = work(g, x, clip, low=float(low), high=float(high), below=low / high)
    return dx, dclip


@cache
def _compiled(code: str, outputs: int = 1, **scalars: float) -> Any:
    if outputs > 1:
        return torch.cuda.jiterator._create_multi_output_jit_fn(code, outputs, **scalars)
    return torch.cuda.jiterator._create_jit_fn(code, **scalars)


# The clip may be learned down to zero: a scale must stay a number one can divide by.
SMALLEST_CLIP = 1e-6
CLIP_CANDIDATES = 80
# What places a clip: the share of values that it holds, or for "mse" the least squared error up to there.
CALIBRATORS = {"mse": 1.0, "min-max": 1.0, "percentile-99.9": 0.999, "percentile-99.99": 0.9999}
STRAIGHT_THROUGH = ("identity", "leaky", "soft")  # backward passes that only sanity checks use
TRAINED_THROUGH = {"clipped": "clipped", "unclipped": "identity"}  # settings of training, and the backward pass
LEAK = 0.1


class LearnedClip(torch.autograd.Function):
    r"""q(x) = s·clamp(round(x / s), low, high) with s = α / high; rounds half to even, as ONNX does.

    With u = x/α and inside = low/high < u < 1 (no gradient at the bounds, as with relu at 0):

        dx = g                       weights ("identity"): straight through
        dx = g·1[inside]             activations
        dα = Σ g·((q/α - u)·1[inside] + 1[u > 1] + (low/high)·1[u < low/high])

    Source: methods of APoT (Li et al. 2020, arXiv 1909.13144), which FAT keeps.

    Where an activation's clip is trained on a CPU, x is kept as `_codes` in float16: half the memory, dx to the bit,
    and dα within 2^-11 of a step for each element. A GPU keeps x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor, low: int, high: int, backward: str) -> Tensor:
        trained = backward == "clipped" and ctx.needs_input_grad[1]
        ctx.fused = trained and has_kernel(x)
        ctx.compact = trained and x.device.type == "cpu" and clip.numel() == 1
        ctx.settings = (low, high, backward)
        value = fake_quantize(x, clip, low, high)
        ctx.save_for_backward(_codes(x, value, clip, low, high) if ctx.compact else x, clip)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """dx and dα of the class's formulas; dα is left out while nothing asks for it, as in an attack."""
        (g,) = grads
        x, clip = ctx.saved_tensors
        low, high, backward = ctx.settings
        if ctx.fused:
            dx, dclip = gradients_by_kernel(g, x, clip, low, high)
            return dx, dclip.sum_to_size(clip.shape), None, None, None
        if ctx.compact:
            codes, shift = x.to(g.dtype, copy=True), _shift(low)
            dx = torch.ops.aten.hardtanh_backward(g, codes, shift - 0.75, shift + 0.75)
            dclip = (dx.sum() * shift - codes.mul_(g).sum()) / high
            return dx, dclip.view_as(clip), None, None, None
        dx = g if backward == "identity" else _inside(g, x, clip, low, high)
        if backward == "leaky":
            dx = dx + LEAK * (g - dx)
        elif backward == "soft":
            dx = soft(dx, x, clip / high)
        if not ctx.needs_input_grad[1]:
            return dx, None, None, None, None
        u = x / clip
        error = fake_quantize(x, clip, low, high) / clip - u
        beyond = u.clamp(low / high, 1)
        dclip = (g * torch.where((u > low / high) & (u < 1), error, beyond)).sum_to_size(clip.shape)
        return dx, dclip, None, None, None


def fake_quantize(x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """x on the grid {low..high}·clip/high; clip broadcasts over x."""
    if has_kernel(x):
        return quantize_by_kernel(x, clip, low, high)
    scale = clip / high
    return (x / scale).round_().clamp_(low, high).mul_(scale)  # in place: half the time of four new tensors


def _codes(x: Tensor, value: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """-high·dα/g of every element, plus `_shift` where x is inside the clip, which tells it from beyond; float16.

    Of kernels that run through memory in vectors: comparisons that write booleans, and what selects by them, take ten
    times as long.
    """
    top = float(clip)
    steps = (x - value).mul_(high / top).add_(_shift(low))
    codes: Tensor = torch.ops.aten.hardtanh_backward(steps, x, top * low / high, top)
    codes.sub_(torch.ge(x, top, out=steps), alpha=high)
    if low < 0:
        codes.sub_(torch.le(x, top * low / high, out=steps), alpha=low)
    return codes.half()


def _shift(low: int) -> float:
    """Without one, a signed code inside lies within a half of 0 and beyond at 1 or more; an unsigned one below is 0."""
    return 1.0 if low == 0 else 0.0


def _inside(g: Tensor, x: Tensor, clip: Tensor, low: int, high: int) -> Tensor:
    """g where x is inside the clip, else 0."""
    if has_kernel(x):
        return inside_by_kernel(g, x, clip, low, high)
    if x.device.type == "cpu" and clip.numel() == 1:
        top = float(clip)
        return inside(g, x, top * low / high, top)
    return inside(g, x, clip * (low / high), clip)


def integer_range(bits: int, *, signed: bool, narrow: bool) -> tuple[int, int]:
    """Lowest and highest integer of a width; narrow drops the one without a mirror image.

    >>> integer_range(4, signed=True, narrow=True), integer_range(2, signed=False, narrow=False)
    ((-7, 7), (0, 3))
    """
    if not signed:
        return 0, 2**bits - 1
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


@dataclass(frozen=True)
class QuantizerConfig:
    """What a quantiser rounds, whatever its width.

    signed: range −L..L (narrow) or −L−1..L; unsigned: 0..2^bits − 1, which also does relu's work.
    masked: stop the gradient outside the clip (activations) or not (weights).
    fixed: the clip stays at 1 (pixels), else it is learned.
    ceiling: calibration sees values cut at ±ceiling (1 for hardtanh).
    """

    signed: bool
    narrow: bool
    masked: bool
    fixed: bool = False
    ceiling: float = math.inf


WEIGHT = QuantizerConfig(signed=True, narrow=True, masked=False)


class Quantizer(nn.Module):
    """A learned-clip quantiser of `bits` bits.

    channels: one clip per output channel of a (channels, …) weight of `dims` dimensions, or one (None).
    inner: whether the width is the network's n, and follows it in `set_bits`.

    The clip used is `unit · |clip|`: unit is the standard deviation of a weight at calibration (1 for
    activations), so that one learning rate suits standardised weights and raw ones.
    """

    # Annotated for mypy; zero point and bit width are buffers that a checkpoint need not hold.
    zero_point: Tensor
    bit_width: Tensor
    unit: Tensor

    def __init__(
        self,
        bits: int,
        config: QuantizerConfig,
        *,
        channels: int | None = None,
        dims: int = 4,
        inner: bool = False,
    ) -> None:
        super().__init__()
        self.signed, self.narrow, self.masked, self.inner = config.signed, config.narrow, config.masked, inner
        shape = () if channels is None else (channels, *[1] * (dims - 1))
        self.clip = nn.Parameter(torch.ones(shape), requires_grad=not config.fixed)
        self.fixed, self.ceiling = config.fixed, config.ceiling
        self.register_buffer("unit", torch.tensor(1.0))
        self.register_buffer("zero_point", torch.tensor(0.0), persistent=False)
        self.register_buffer("bit_width", torch.tensor(float(bits)), persistent=False)
        self.set_bits(bits)
        self.observed: int | None = None
        self.calibrator = "mse"
        self.backward = "clipped" if self.masked else "identity"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(dequantised x, scale, zero point, bit width); calibrates first inside `calibrating`."""
        if self.observed is not None and not self.fixed:
            self._observe(x.detach())
        clip = self.effective_clip()
        return self.quantize(x, clip), clip / self.high, self.zero_point, self.bit_width

    def quantize(self, x: Tensor, clip: Tensor) -> Tensor:
        """x on the grid of a clip, which broadcasts over it."""
        value: Tensor = LearnedClip.apply(x, clip, self.low, self.high, self.backward)  # type: ignore[no-untyped-call]
        return value

    def set_bits(self, bits: int) -> None:
        """Change the width; the clip should then be placed anew."""
        self.bits = bits
        self.low, self.high = integer_range(bits, signed=self.signed, narrow=self.narrow)
        self.bit_width.fill_(float(bits))

    def effective_clip(self) -> Tensor:
        """α = unit · |clip|, of the clip's shape."""
        return (self.clip.abs() * self.unit).clamp_min(SMALLEST_CLIP)

    def scale(self) -> Tensor:
        """Width of one step, α / high."""
        return self.effective_clip() / self.high

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        """Move the clip to the mean, over the batches seen, of each batch's; to the largest of them for "min-max"."""
        if not self.masked:
            self.unit.copy_(x.std().clamp_min(SMALLEST_CLIP))
        x = x.clamp(-self.ceiling, self.ceiling)
        self.observed = (self.observed or 0) + 1
        if self.calibrator == "mse":
            found = best_clip(x, self.low, self.high, per_channel=self.clip.dim() > 0)
        else:  # a percentile is of activations: a weight's largest values are few and known
            share = CALIBRATORS[self.calibrator] if self.masked else 1.0
            found = quantile_clip(x, self.low, share, per_channel=self.clip.dim() > 0)
        clip = found.view_as(self.clip) / self.unit
        if self.calibrator == "min-max" and self.observed > 1:
            self.clip.copy_(torch.maximum(self.clip, clip))
        else:
            self.clip.add_((clip - self.clip) / self.observed)


def best_clip(x: Tensor, low: int, high: int, *, per_channel: bool = False) -> Tensor:
    """The clip with the smallest squared quantisation error, of a grid up to max|x|.

    A fixed clip of 3σ sets 87 % of normal weights to zero at 2 bits; this one 46 %.
    x: any shape; per channel: along its first dimension. Returns (channels,) or ().
    """
    rows = x.flatten(1) if per_channel else x.flatten()[None]
    if not per_channel and rows.numel() > 2**18:  # enough to place a clip, and a bound on time
        rows = rows[:, :: rows.numel() // 2**18]
    top = rows.abs().amax(dim=1, keepdim=True) if low < 0 else rows.amax(dim=1, keepdim=True)
    top = top.clamp_min(SMALLEST_CLIP)
    shares = torch.linspace(1 / CLIP_CANDIDATES, 1, CLIP_CANDIDATES, device=x.device).tolist()
    errors = torch.stack(
        [(fake_quantize(rows, top * share, low, high) - rows).square().mean(dim=1) for share in shares]
    )
    chosen = (errors.argmin(dim=0) + 1) / CLIP_CANDIDATES * top[:, 0]
    return chosen if per_channel else chosen[0]


def quantile_clip(x: Tensor, low: int, share: float, *, per_channel: bool = False) -> Tensor:
    """The clip that this share of the values lies within, in magnitude where `low` is negative; 1: all of them.

    x: any shape; per channel: along its first dimension. Returns (channels,) or ().
    """
    rows = x.flatten(1) if per_channel else x.flatten()[None]
    rows = rows.abs() if low < 0 else rows.clamp_min(0)
    below = max(1, round(rows.shape[1] * share))  # torch.quantile takes no more than 2^24 values
    found = rows.amax(1) if below >= rows.shape[1] else rows.kthvalue(below, dim=1).values
    found = found.clamp_min(SMALLEST_CLIP)
    return found if per_channel else found[0]


def quantizers(model: nn.Module) -> Iterator[Quantizer]:
    """All quantisers of a network."""
    return (module for module in model.modules() if isinstance(module, Quantizer))


@contextmanager
def calibrating(model: nn.Module, calibrator: str = "mse") -> Iterator[None]:
    """Inside, every forward pass places the clips by the data that flows through, as a key of `CALIBRATORS` says."""
    for quantizer in quantizers(model):
        quantizer.observed, quantizer.calibrator = 0, calibrator
    try:
        yield
    finally:
        for quantizer in quantizers(model):
            quantizer.observed = None


@contextmanager
def straight_through(model: nn.Module, form: str) -> Iterator[None]:
    """Inside, gradients pass every activation quantiser in another form: for sanity checks, never a training setting.

    "identity": all of the gradient passes; "leaky": a tenth passes outside the clip; "soft": the slope of a
    smooth staircase, 1 - 0.9·cos(2πx/s), inside it. Raises KeyError for others.
    """
    if form not in STRAIGHT_THROUGH:
        raise KeyError(form)
    before = [(quantizer, quantizer.backward) for quantizer in quantizers(model) if quantizer.masked]
    for quantizer, _ in before:
        quantizer.backward = form
    try:
        yield
    finally:
        for quantizer, backward in before:
            quantizer.backward = backward


def set_straight_through(model: nn.Module, setting: str) -> None:
    """Whether gradients stop outside the clip of an activation ("clipped", as published) or pass ("unclipped").

    Raises KeyError for another setting.
    """
    for quantizer in quantizers(model):
        if quantizer.masked:
            quantizer.backward = TRAINED_THROUGH[setting]
