"""One operation of a graph, with its settings as plain values, and rounding whose backward pass can be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, did_you_mean
from ..straight_through import Bound, inside, soft
from .file import shown

FORMS = ("identity", "clipped", "soft")
# Of a step: pixels of exactly 0 and 1 are inside a range that float32 makes 0 to 0.99999994.
MARGIN = 1e-3
FLOAT32 = torch.finfo(torch.float32).max


@dataclass
class Backward:
    """The form that all quantisers of one module read: a name of `FORMS`."""

    form: str = "identity"

    def choose(self, form: str) -> None:
        """Raises ModelError for a form that is none."""
        if form not in FORMS:
            raise ModelError(f"expected a backward form, got {form!r}{did_you_mean(str(form), FORMS)}")
        self.form = form


@dataclass(frozen=True)
class Grid:
    """The steps of a quantiser: integers low..high (zero point taken off) of width scale; they broadcast over x.

    narrow: of 16 bits, in which x over the scale is computed.
    """

    scale: Tensor
    low: Bound
    high: Bound
    narrow: torch.dtype | None = None


class Round(torch.autograd.Function):
    r"""k(x) = clamp(round(x / s), low, high), half to even; k itself, or s·k where `values` are asked for.

    The gradient g of s·k becomes (of k: the same, over s):

        identity   g
        clipped    g·1[low·s <= x <= high·s]
        soft       g·1[low·s <= x <= high·s]·(1 - 0.9·cos(2πx/s))

    Bounds are inside, unlike in training, where the clip does relu's work: here a black pixel must be free to turn
    brighter. Source: see `straight_through`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Grid, form: str, values: bool) -> Tensor:
        ctx.settings = (grid, form, values)
        if form != "identity":
            ctx.save_for_backward(x)
        steps = (x / grid.scale).to(grid.narrow or x.dtype).to(x.dtype).round_()
        steps.clamp_(grid.low, grid.high)  # type: ignore[arg-type]
        return steps.mul_(grid.scale) if values else steps

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The formulas of the class."""
        grid, form, values = ctx.settings
        g = grads[0] if values else grads[0] / grid.scale
        if form != "identity":
            (x,) = ctx.saved_tensors
            g = _inside(g, x, grid)
        if form == "soft":
            # Masks are the lowest float32, or -inf: 2π·x is beyond it.
            g = soft(g, torch.nan_to_num(x / grid.scale, 0.0, 0.0, 0.0), 1.0)
        return g, None, None, None


def on_grid(x: Tensor, grid: Grid, backward: Backward, *, values: bool) -> Tensor:
    """x rounded to the grid: its values, or its integers as floats (exact up to 2^24)."""
    rounded: Tensor = Round.apply(x, grid, backward.form, values)  # type: ignore[no-untyped-call]
    return rounded


class Instead(torch.autograd.Function):
    """A value in the place of x, whose gradient is passed on whole."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(x)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Whole."""
        return grads[0], None


def instead(x: Tensor, value: Tensor) -> Tensor:
    """The value, with the gradient of x."""
    passed: Tensor = Instead.apply(x, value.detach())  # type: ignore[no-untyped-call]
    return passed


def rounded_to(x: Tensor, narrow: torch.dtype | None) -> Tensor:
    """x rounded to a type of 16 bits, in its own type; the gradient passes whole."""
    return x if narrow is None else instead(x, x.detach().to(narrow).to(x.dtype))


def _inside(g: Tensor, x: Tensor, grid: Grid) -> Tensor:
    low, high = grid.low - MARGIN, grid.high + MARGIN
    step = float(grid.scale) if x.device.type == "cpu" and grid.scale.numel() == 1 else grid.scale
    return inside(g, x, _finite(low * step), _finite(high * step))


def _finite(bound: Bound) -> Bound:
    """A bound beyond float32 is none: a mask of -3.4e38 makes such a range."""
    return math.copysign(math.inf, bound) if isinstance(bound, float) and abs(bound) > FLOAT32 else bound


@dataclass(frozen=True)
class Node:
    """An operator as the file states it: "" in `inputs` is one left out.

    opset: of the operator's own domain. kinds, numbers and lists say what is known of each input before any image is:
    the ONNX element type of a constant, the value of a constant that is one number, and those of a short vector; None
    of others. whole: the file computes on integers here, which floats stand for. narrow: it computes in this type of
    16 bits, to which results in float32 are rounded.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[int | None, ...] = ()
    numbers: tuple[float | None, ...] = ()
    lists: tuple[list[float] | None, ...] = field(default=(), compare=False)
    whole: bool = False
    narrow: torch.dtype | None = None
    backward: Backward = field(default_factory=Backward)

    def __str__(self) -> str:
        return f"{shown(self.op)} (node {shown(self.name)})"

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def integer(self, name: str, default: int) -> int:
        """An attribute that is an integer."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """An attribute that is a list of integers, or None."""
        value = self.attributes.get(name)
        return None if value is None else [int(one) for one in value]

    def kind(self, index: int) -> int | None:
        """The element type of a constant input."""
        return self.kinds[index] if index < len(self.kinds) else None

    def constant(self, index: int) -> float | None:
        """A constant input that is one number."""
        return self.numbers[index] if index < len(self.numbers) else None

    def vector(self, index: int) -> list[float] | None:
        """A constant input that is a short list of numbers."""
        return self.lists[index] if index < len(self.lists) else None
