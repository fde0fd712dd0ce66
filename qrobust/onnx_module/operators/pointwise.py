"""Operators that work on one element at a time, and sums and means over axes."""

from __future__ import annotations

import functools
import math
import operator as python
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Grid, Node, instead, on_grid
from .table import CONTRIB, Function, operator, plain

Binary = Callable[[Tensor, Tensor], Tensor]
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Softplus": F.softplus,
    "Mish": F.mish, "Softsign": F.softsign, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal, "Neg": torch.neg, "Abs": torch.abs, "Sin": torch.sin, "Cos": torch.cos,
    "Tan": torch.tan, "Atan": torch.atan, "IsNaN": torch.isnan, "Not": torch.logical_not, "Identity": lambda x: x,
}  # fmt: skip
BINARY: dict[str, Binary] = {
    "Add": python.add, "Sub": python.sub, "Mul": python.mul, "Pow": torch.pow, "Equal": torch.eq, "Less": torch.lt,
    "LessOrEqual": torch.le, "Greater": torch.gt, "GreaterOrEqual": torch.ge, "And": torch.logical_and,
    "Or": torch.logical_or, "Xor": torch.logical_xor,
}  # fmt: skip
FOLDED: dict[str, Binary] = {"Sum": python.add, "Min": torch.minimum, "Max": torch.maximum}


def together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device: what was computed of shapes is on the CPU and follows the images."""
    if a.device == b.device:
        return a, b
    return (a.to(b.device), b) if a.device.type == "cpu" else (a, b.to(a.device))


def _binary(function: Binary) -> Function:
    return lambda a, b: function(*together(a, b))


def _folded(function: Binary) -> Function:
    return lambda *terms: functools.reduce(_binary(function), terms)


for _name, _one in UNARY.items():
    plain(_name)(_one)
for _name, _two in BINARY.items():
    plain(_name)(_binary(_two))
for _name, _two in FOLDED.items():
    plain(_name)(_folded(_two))


@operator("Div")
def divide(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero, and the gradient passes that whole."""
    a, b = together(a, b)
    if not a.is_floating_point():
        return torch.div(a, b, rounding_mode="trunc")
    return truncated(a / b) if node.whole else a / b


@operator("Round")
def round_half_even(node: Node, x: Tensor) -> Tensor:
    """To the nearest whole number; gradients pass in the chosen form."""
    return on_grid(x, Grid(x.new_ones(()), -math.inf, math.inf), node.backward, values=False)


@operator("Floor", "Ceil")
def floor_or_ceil(node: Node, x: Tensor) -> Tensor:
    """To the next whole number below or above, which is rounding half a step aside; gradients pass as there."""
    if not x.is_floating_point():
        return x
    aside = 0.5 if node.op == "Floor" else -0.5
    passed = on_grid(x - aside, Grid(x.new_ones(()), -math.inf, math.inf), node.backward, values=False)
    return instead(passed, x.floor() if node.op == "Floor" else x.ceil())


@operator("Sign")
def sign(node: Node, x: Tensor) -> Tensor:
    """-1, 0 or 1; what binary networks quantise by. Gradients pass whole, or inside [-1, 1] in the other forms."""
    if not x.is_floating_point():
        return x.sign()
    passed = x if node.backward.form == "identity" else x.clamp(-1, 1)
    return instead(passed, x.sign())


def truncated(x: Tensor) -> Tensor:
    """x cut to whole numbers, towards zero; the gradient passes whole."""
    return instead(x, x.trunc())


@operator("Mod")
def modulo(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """What is left of a division, with the sign of b, or of a with fmod."""
    a, b = together(a, b)
    return torch.fmod(a, b) if node.integer("fmod", 0) else torch.remainder(a, b)


@plain("Mean")
def mean(*terms: Tensor) -> Tensor:
    """The mean of several tensors."""
    return sum(terms[1:], terms[0]) / len(terms)


@operator("Clip")
def clip(node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds are inputs, or attributes before opset 11."""
    if node.opset < 11:
        return x.clamp(node.number("min", -torch.inf), node.number("max", torch.inf))
    for name, index, bound in (("min", 1, low), ("max", 2, high)):
        if bound is not None:
            number = node.constant(index)
            x = torch.clamp(x, **{name: bound if number is None else number})  # type: ignore[arg-type]
    return x


@operator("LeakyRelu")
def leaky_relu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha·x below zero."""
    return F.leaky_relu(x, node.number("alpha", 0.01))


@plain("PRelu")
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x, or slope·x below zero; the slope broadcasts."""
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha·(e^x - 1) below zero."""
    return F.elu(x, node.number("alpha", 1.0))


@operator("Celu")
def celu(node: Node, x: Tensor) -> Tensor:
    """x, or alpha·(e^(x/alpha) - 1) below zero."""
    return F.celu(x, node.number("alpha", 1.0))


@operator("Selu")
def selu(node: Node, x: Tensor) -> Tensor:
    """gamma·elu(x)."""
    return node.number("gamma", 1.0507009873554805) * F.elu(x, node.number("alpha", 1.6732632423543772))


@operator("Gelu")
@operator("Gelu", domain=CONTRIB)
def gelu(node: Node, x: Tensor) -> Tensor:
    """Exact, or by tanh."""
    return F.gelu(x, approximate=node.text("approximate", "none"))


@operator("Swish")
def swish(node: Node, x: Tensor) -> Tensor:
    """x·sigmoid(alpha·x)."""
    return x * torch.sigmoid(node.number("alpha", 1.0) * x)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """alpha·x + beta, cut at 0 and 1."""
    return (node.number("alpha", 0.2) * x + node.number("beta", 0.5)).clamp(0, 1)


@plain("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    a, b = together(a, b)
    return torch.where(condition.to(a.device), a, b)


@operator("Softmax", "LogSoftmax")
def softmax(node: Node, x: Tensor) -> Tensor:
    """Along one axis; before opset 13, over all axes from that one on."""
    function = F.softmax if node.op == "Softmax" else F.log_softmax
    if node.opset >= 13:
        return function(x, node.integer("axis", -1))
    return function(x.flatten(node.integer("axis", 1)), -1).reshape(x.shape)


def axes_of(node: Node, axes: Tensor | None) -> list[int] | None:
    """Axes of a reduction or a squeeze: an input, an attribute in older files, or None."""
    return node.integers("axes") if axes is None else axes.tolist()


def _reduced(function: Callable[..., Tensor]) -> Function:
    def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        chosen = axes_of(node, axes)
        if not chosen and node.integer("noop_with_empty_axes", 0):
            return x
        result = function(x, dim=chosen or list(range(x.dim())), keepdim=bool(node.integer("keepdims", 1)))
        return truncated(result) if node.whole and result.is_floating_point() else result

    return reduce


def _product(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


for _name, _over in {
    "ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax, "ReduceMin": torch.amin,
    "ReduceL2": torch.linalg.vector_norm, "ReduceProd": _product, "ReduceLogSumExp": torch.logsumexp,
    "ReduceL1": lambda x, **over: x.abs().sum(**over), "ReduceSumSquare": lambda x, **over: (x * x).sum(**over),
    "ReduceLogSum": lambda x, **over: x.sum(**over).log(),
}.items():  # fmt: skip
    operator(_name)(_reduced(_over))
