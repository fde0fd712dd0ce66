"""Entries for what works on each number alone, and for sums, means and products over dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

from ...errors import ExportError
from .lowering import TYPES, Lowering, aten, lowers, rank_of, shape_of

UNARY = {
    aten.relu.default: "Relu", aten.sigmoid.default: "Sigmoid", aten.tanh.default: "Tanh", aten.exp.default: "Exp",
    aten.log.default: "Log", aten.sqrt.default: "Sqrt", aten.abs.default: "Abs", aten.neg.default: "Neg",
    aten.sin.default: "Sin", aten.cos.default: "Cos", aten.erf.default: "Erf", aten.floor.default: "Floor",
    aten.ceil.default: "Ceil", aten.round.default: "Round", aten.sign.default: "Sign", aten.mish.default: "Mish",
    aten.hardswish.default: "HardSwish", aten.reciprocal.default: "Reciprocal",
    aten.logical_not.default: "Not", aten.bitwise_not.default: "Not",
}  # fmt: skip
BINARY = {
    aten.mul.Tensor: "Mul", aten.div.Tensor: "Div", aten.matmul.default: "MatMul", aten.bmm.default: "MatMul",
    aten.mm.default: "MatMul", aten.maximum.default: "Max", aten.minimum.default: "Min", aten.pow.Tensor_Tensor: "Pow",
    aten.pow.Tensor_Scalar: "Pow", aten.mul.Scalar: "Mul", aten.div.Scalar: "Div", aten.__or__.Tensor: "Or",
    aten.__and__.Tensor: "And", aten.logical_or.default: "Or", aten.logical_and.default: "And",
    aten.bitwise_or.Tensor: "Or", aten.bitwise_and.Tensor: "And",
}  # fmt: skip
COMPARING = {
    aten.gt.Tensor: "Greater", aten.gt.Scalar: "Greater", aten.lt.Tensor: "Less", aten.lt.Scalar: "Less",
    aten.ge.Tensor: "GreaterOrEqual", aten.ge.Scalar: "GreaterOrEqual", aten.le.Tensor: "LessOrEqual",
    aten.le.Scalar: "LessOrEqual", aten.eq.Tensor: "Equal", aten.eq.Scalar: "Equal",
}  # fmt: skip
REDUCING = {
    aten.mean.dim: "ReduceMean", aten.mean.default: "ReduceMean", aten.sum.dim_IntList: "ReduceSum",
    aten.sum.default: "ReduceSum", aten.amax.default: "ReduceMax", aten.amin.default: "ReduceMin",
    aten.logsumexp.default: "ReduceLogSumExp",
}  # fmt: skip
NORMS = {1.0: "ReduceL1", 2.0: "ReduceL2"}


@lowers(*UNARY)
def unary(low: Lowering, x: fx.Node) -> Any:
    """One node of the same function."""
    return low.op(_kind(low, UNARY), x)


@lowers(*BINARY)
def binary(low: Lowering, x: Any, y: Any) -> Any:
    """One node of the same function of two."""
    return low.op(_kind(low, BINARY), low.floats(x), low.floats(y))


@lowers(aten.add.Tensor, aten.add.Scalar)
def add(low: Lowering, x: Any, y: Any, alpha: Any = 1) -> Any:
    """x + alpha·y."""
    return low.op("Add", low.floats(x), _times(low, y, alpha))


@lowers(aten.sub.Tensor, aten.sub.Scalar)
def sub(low: Lowering, x: Any, y: Any, alpha: Any = 1) -> Any:
    """x - alpha·y."""
    return low.op("Sub", low.floats(x), _times(low, y, alpha))


@lowers(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(low: Lowering, x: Any, y: Any, alpha: Any = 1) -> Any:
    """y - alpha·x."""
    return low.op("Sub", low.floats(y), _times(low, x, alpha))


@lowers(aten.addcmul.default)
def addcmul(low: Lowering, x: Any, a: Any, b: Any, value: Any = 1) -> Any:
    """x + value·a·b."""
    return low.op("Add", x, _times(low, low.op("Mul", a, b), value))


@lowers(aten.addmm.default, aten.baddbmm.default)
def addmm(low: Lowering, x: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    """beta·x + alpha·a·b."""
    return low.op("Add", _times(low, low.op("MatMul", a, b), alpha), _times(low, x, beta))


@lowers(aten.square.default)
def square(low: Lowering, x: fx.Node) -> Any:
    """x·x."""
    return low.op("Mul", x, x)


@lowers(aten.rsqrt.default)
def rsqrt(low: Lowering, x: fx.Node) -> Any:
    """1/√x."""
    return low.op("Reciprocal", low.op("Sqrt", x))


@lowers(aten.silu.default)
def silu(low: Lowering, x: fx.Node) -> Any:
    """x·σ(x)."""
    return low.op("Mul", x, low.op("Sigmoid", x))


@lowers(aten.hardsigmoid.default)
def hardsigmoid(low: Lowering, x: fx.Node) -> Any:
    """x/6 + 1/2 within 0 and 1."""
    return low.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@lowers(aten.gelu.default)
def gelu(low: Lowering, x: fx.Node, approximate: str = "none") -> Any:
    """Gelu, exact or by tanh."""
    return low.op("Gelu", x, approximate=None if approximate == "none" else approximate)


@lowers(aten.leaky_relu.default)
def leaky_relu(low: Lowering, x: fx.Node, slope: float = 0.01) -> Any:
    """x, or slope·x below 0."""
    return low.op("LeakyRelu", x, alpha=float(slope))


@lowers(aten.prelu.default)
def prelu(low: Lowering, x: fx.Node, slope: fx.Node) -> Any:
    """As leaky relu, with a slope for each channel."""
    trailing = max(0, rank_of(low.node) - 2)
    return low.op("PRelu", x, low.constant(slope).reshape(-1, *[1] * trailing))


@lowers(aten.elu.default)
def elu(low: Lowering, x: fx.Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """scale·Elu(input_scale·x), where alpha goes with the second."""
    if input_scale != 1:
        raise ExportError("expected an ELU whose input has no scale; multiply before it")
    return _times(low, low.op("Elu", x, alpha=float(alpha)), scale)


@lowers(aten.celu.default)
def celu(low: Lowering, x: fx.Node, alpha: float = 1.0) -> Any:
    """Celu."""
    return low.op("Celu", x, alpha=float(alpha))


@lowers(aten.selu.default)
def selu(low: Lowering, x: fx.Node) -> Any:
    """Selu."""
    return low.op("Selu", x)


@lowers(aten.softplus.default)
def softplus(low: Lowering, x: fx.Node, beta: float = 1.0, *_: Any) -> Any:
    """log(1 + exp(beta·x))/beta; beyond torch's threshold that is x to the last digit."""
    smooth = low.op("Softplus", _times(low, x, beta))
    return smooth if beta == 1 else low.op("Div", smooth, float(beta))


@lowers(aten.log_sigmoid.default)
def log_sigmoid(low: Lowering, x: fx.Node) -> Any:
    """-softplus(-x)."""
    return low.op("Neg", low.op("Softplus", low.op("Neg", x)))


@lowers(aten.glu.default)
def glu(low: Lowering, x: fx.Node, dim: int = -1) -> Any:
    """The first half times σ of the second."""
    first, second = low.op("Split", x, outputs=2, axis=dim, num_outputs=2)
    return low.op("Mul", first, low.op("Sigmoid", second))


@lowers(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default, aten.relu6.default)
def clamp(low: Lowering, x: fx.Node, *bounds: Any, **named: Any) -> Any:
    """Clip."""
    name = str(low.node.target).removeprefix("aten.").partition(".")[0].removesuffix("_")
    least, most = {"hardtanh": (-1.0, 1.0), "relu6": (0.0, 6.0)}.get(name, (None, None))
    given = dict(zip(("max",) if name == "clamp_max" else ("min", "max"), bounds, strict=False)) | named
    least, most = given.get("min", given.get("min_val", least)), given.get("max", given.get("max_val", most))
    return low.op("Clip", x, *(None if bound is None else low.floats(bound) for bound in (least, most)))


@lowers(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
def softmax(low: Lowering, x: fx.Node, dim: int, *_: Any, **__: Any) -> Any:
    """Softmax or LogSoftmax."""
    kind = "LogSoftmax" if "log_softmax" in str(low.node.target) else "Softmax"
    return low.op(kind, x, axis=-1 if dim in (-1, rank_of(low.node) - 1) else dim)


@lowers(*COMPARING)
def comparing(low: Lowering, x: fx.Node, y: Any) -> Any:
    """One node that gives booleans."""
    return low.op(_kind(low, COMPARING), x, low.floats(y, x))


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def where(low: Lowering, condition: fx.Node, x: Any, y: Any) -> Any:
    """Where."""
    return low.op("Where", condition, low.floats(x), low.floats(y))


@lowers(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(low: Lowering, x: fx.Node, mask: fx.Node, value: Any) -> Any:
    """The value where the mask is set."""
    return low.op("Where", mask, low.floats(value), x)


@lowers(aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default)
def to(low: Lowering, x: fx.Node, *_: Any, **__: Any) -> Any:
    """A Cast where the type changes."""
    before, after = (TYPES.get(one.meta["val"].dtype) for one in (x, low.node))
    if before is not None and before == after:
        return low.env[x]
    if after is None:
        raise ExportError(f"expected float32, whole numbers or booleans, got {low.node.meta['val'].dtype}; use those")
    return low.op("Cast", x, to=low.graph.float_type if after == ir.DataType.FLOAT else int(after))


@lowers(*REDUCING)
def reducing(low: Lowering, x: fx.Node, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """A mean, sum or extreme over dimensions, all if none is named."""
    given = [dims] if isinstance(dims, int) else dims
    axes = low.graph.integers(*given) if given else None
    return low.op(_kind(low, REDUCING), x, axes, keepdims=None if keepdim else 0)


@lowers(aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim)
def variance(low: Lowering, x: fx.Node, dims: Any = None, *unbiased: Any, **named: Any) -> Any:
    """The mean square of the distance to the mean, times n/(n - correction)."""
    axes = [axis % rank_of(x) for axis in ([dims] if isinstance(dims, int) else dims or range(rank_of(x)))]
    correction = named.get("correction", 1 if named.get("unbiased", unbiased[0] if unbiased else True) else 0)
    count = int(np.prod([int(shape_of(x)[axis]) for axis in axes]))
    keep = None if named.get("keepdim", unbiased[1] if len(unbiased) > 1 else False) else 0
    distance = low.op("Sub", x, low.op("ReduceMean", x, low.graph.integers(*axes), keepdims=1))
    mean = low.op("ReduceMean", low.op("Mul", distance, distance), low.graph.integers(*axes), keepdims=keep)
    found = _times(low, mean, count / (count - (1 if correction is None else correction)))
    return low.op("Sqrt", found) if ".std" in f".{low.node.target}" else found


@lowers(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def vector_norm(low: Lowering, x: fx.Node, order: Any = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """The length of vectors, by absolute values or squares."""
    kind = NORMS.get(2.0 if order is None else float(order))
    if kind is None:
        raise ExportError(f"expected a norm of order 1 or 2, got {order}; use those")
    axes = low.graph.integers(*([dims] if isinstance(dims, int) else dims)) if dims is not None else None
    return low.op(kind, x, axes, keepdims=None if keepdim else 0)


@lowers(aten.einsum.default)
def einsum(low: Lowering, equation: str, operands: Sequence[fx.Node], **_: Any) -> Any:
    """Einsum."""
    return low.op("Einsum", *operands, equation=equation.replace(" ", ""))


def _kind(low: Lowering, table: dict[Any, str]) -> str:
    """By an operator, or by the one that it does in place."""
    if low.node.target in table:
        return table[low.node.target]
    name, _, overload = str(low.node.target).removeprefix("aten.").partition(".")
    return table[getattr(getattr(aten, name.removesuffix("_")), overload)]


def _times(low: Lowering, x: Any, factor: Any) -> Any:
    value = low.floats(x)
    return value if factor == 1 else low.op("Mul", value, low.floats(factor))
