"""Entries for what has weights: convolutions, linear layers, norms and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx

from ...errors import ExportError
from ...quant.regraft import is_symbol
from .building import Array, as_numbers
from .forms import Layer
from .lowering import Lowering, aten, each, filled, lowers, rank_of, shape_of, sizes
from .quantised import Activation, Weight

ALIGNMENT = 4  # input channels that onnxruntime's integer convolution reads at once
CONVS = (
    aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default,
    aten.conv3d.padding,
)  # fmt: skip


@lowers(*CONVS)
def conv(low: Lowering, x: fx.Node, w: fx.Node, b: fx.Node | None = None, *settings: Any) -> Any:
    """Conv, with a batch-norm behind it that alone reads it folded in; see `_norm_behind`."""
    low.main, spatial = low.owner(w), rank_of(w) - 2
    stride, padding, dilation, groups = filled(settings, (1, 0, 1, 1))
    dilation = each(dilation, spatial)
    weight, bias = _parameters(low, w, b)
    norm = _norm_behind(low, low.node)
    if norm is not None:
        factor, offset = norm
        bias = offset + factor * (0 if bias is None else bias)
        weight = weight.scaled(factor) if isinstance(weight, Weight) else _times(weight, factor)
    source = low.env[x]
    if isinstance(weight, Weight) and isinstance(source, Activation) and groups == 1 and low.form.carries:
        source, weight = _aligned(low, x, source, weight)
    pads = _pads(padding, shape_of(w)[2:], dilation)
    kernel = _operands(low, source, weight, bias)
    return low.op("Conv", source, *kernel, strides=each(stride, spatial), dilations=dilation, group=groups, pads=pads)


@lowers(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(low: Lowering, x: fx.Node, w: fx.Node, b: fx.Node | None = None, *settings: Any) -> Any:
    """ConvTranspose; a batch-norm stays behind it."""
    low.main, spatial = low.owner(w), rank_of(w) - 2
    stride, padding, output_padding, groups, dilation = filled(settings, (1, 0, 0, 1, 1))
    kernel = _operands(low, low.env[x], *_parameters(low, w, b))
    return low.op(
        "ConvTranspose", x, *kernel, strides=each(stride, spatial), pads=each(padding, spatial) * 2,
        output_padding=each(output_padding, spatial), dilations=each(dilation, spatial), group=groups,
    )  # fmt: skip


@lowers(aten.linear.default)
def linear(low: Lowering, x: fx.Node, w: fx.Node, b: fx.Node | None = None) -> Any:
    """Gemm for a row an image, MatMul and Add for tokens."""
    low.main = low.owner(w)
    weight, bias = _parameters(low, w, b)
    if rank_of(low.node) == 2 and is_symbol(shape_of(low.node)[0]):
        return low.op("Gemm", x, *_operands(low, low.env[x], weight, bias), transB=1)
    name, source = low.main or "linear", low.env[x]
    product = None
    if isinstance(weight, Weight):
        layer = Layer(name, weight.transposed(), None, source if isinstance(source, Activation) else None)
        product = low.form.product(low.graph, layer)
        kernel = low.form.factor(low.graph, layer) if product is None else None
    else:
        turned = low.turned.setdefault(w, weight.t().contiguous())
        kernel = low.graph.constant(turned, name=f"{name}.weight")
    if product is None:
        product = low.op("MatMul", x, kernel)
    return product if bias is None else low.op("Add", product, low.graph.constant(bias, name=f"{name}.bias"))


@lowers(aten.batch_norm.default)
def batch_norm(low: Lowering, x: fx.Node, *settings: Any) -> Any:
    """What the convolution before it gives, if that has taken it in; else BatchNormalization."""
    w, b, mean, var, training, _, eps = settings[:7]
    if training or mean is None or var is None:
        raise ExportError(
            "expected batch-norm with running statistics, got one whose logits depend on the batch; "
            "train it with track_running_stats=True"
        )
    if _norm_behind(low, x) is not None:
        return low.env[x]
    count = len(low.constant(mean))
    gamma, beta = torch.ones(count) if w is None else w, torch.zeros(count) if b is None else b
    return low.op("BatchNormalization", x, gamma, beta, mean, var, epsilon=eps)


@lowers(aten.layer_norm.default)
def layer_norm(low: Lowering, x: fx.Node, shape: Sequence[int], *settings: Any) -> Any:
    """LayerNormalization over the last dimensions."""
    w, b, eps = filled(settings[:3], (None, None, 1e-5))
    scale = torch.ones(list(shape)) if w is None else w
    return low.op("LayerNormalization", x, scale, b, axis=-len(shape), epsilon=eps)


@lowers(aten.rms_norm.default)
def rms_norm(
    low: Lowering, x: fx.Node, shape: Sequence[int], w: fx.Node | None = None, eps: float | None = None
) -> Any:
    """x over the root of its mean square, times a weight."""
    axes = low.graph.integers(*range(-len(shape), 0))
    square = low.op("ReduceMean", low.op("Mul", x, x), axes)
    root = low.op("Sqrt", low.op("Add", square, torch.finfo(torch.float32).eps if eps is None else eps))
    scaled = low.op("Div", x, root)
    return scaled if w is None else low.op("Mul", scaled, w)


@lowers(aten.group_norm.default)
def group_norm(low: Lowering, x: fx.Node, groups: int, *settings: Any) -> Any:
    """An instance norm of each group as one channel: GroupNormalization asks for opset 21."""
    w, b, eps = filled(settings[:3], (None, None, 1e-5))
    batch, *rest = shape_of(low.node)
    apart = low.op("Reshape", x, sizes(low, [batch, groups, math.prod(map(int, rest)) // groups]))
    normed = low.op("InstanceNormalization", apart, torch.ones(groups), torch.zeros(groups), epsilon=eps)
    value = low.op("Reshape", normed, sizes(low, [batch, *rest]))
    for kind, one in (("Mul", w), ("Add", b)):
        if one is not None:
            value = low.op(kind, value, low.constant(one).view(-1, *[1] * (len(rest) - 1)))
    return value


@lowers(aten.instance_norm.default)
def instance_norm(low: Lowering, x: fx.Node, *settings: Any) -> Any:
    """InstanceNormalization, or a batch-norm of what was measured in training."""
    w, b, mean, var, use_input_stats, momentum, eps = settings[:7]
    if not use_input_stats:
        return batch_norm(low, x, w, b, mean, var, False, momentum, eps)
    count = int(shape_of(low.node)[1])
    gamma, beta = torch.ones(count) if w is None else w, torch.zeros(count) if b is None else b
    return low.op("InstanceNormalization", x, gamma, beta, epsilon=eps)


@lowers(aten.scaled_dot_product_attention.default)
def attention(low: Lowering, q: fx.Node, k: fx.Node, v: fx.Node, *settings: Any, **named: Any) -> Any:
    """softmax(q·kᵀ·scale + mask)·v in parts."""
    mask, _, is_causal = filled(settings, (None, 0.0, False))
    if named.get("enable_gqa"):
        raise ExportError("expected as many heads of keys as of queries; repeat the keys")
    scale, rank = named.get("scale"), rank_of(k)
    turned = low.op("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
    scores = low.op("Mul", low.op("MatMul", q, turned), int(shape_of(q)[-1]) ** -0.5 if scale is None else scale)
    if is_causal:
        rows, columns = int(shape_of(q)[-2]), int(shape_of(k)[-2])
        scores = low.op("Where", torch.ones(rows, columns, dtype=torch.bool).tril(), scores, float("-inf"))
    elif mask is not None:
        is_bool = mask.meta["val"].dtype == torch.bool
        scores = low.op("Where", mask, scores, float("-inf")) if is_bool else low.op("Add", scores, mask)
    return low.op("MatMul", low.op("Softmax", scores, axis=-1), v)


def _parameters(low: Lowering, w: fx.Node, b: fx.Node | None) -> tuple[Weight | Tensor, Array | None]:
    """Weight and bias, the bias in float64."""
    weight = low.env[w]
    if not isinstance(weight, (Weight, Tensor)):
        raise ExportError("expected a weight that depends on no image, got one computed of it; write a product instead")
    return weight, None if b is None else as_numbers(low.constant(b))


def _operands(
    low: Lowering, source: Any, weight: Weight | Tensor, bias: Array | None
) -> tuple[ir.Value, ir.Value | None]:
    """Weight and bias, None for none, as a layer reads them beside this input."""
    name = low.main or "layer"
    if isinstance(weight, Weight):
        x = source if isinstance(source, Activation) else None
        return low.form.layer(low.graph, Layer(name, weight, bias, x))
    kernel = low.graph.constant(weight, name=f"{name}.weight")
    return kernel, None if bias is None else low.graph.constant(bias, name=f"{name}.bias")


def _times(weight: Tensor, factor: Array) -> Tensor:
    """A float weight whose output channels are multiplied, in float64."""
    column = torch.from_numpy(factor).view(-1, *[1] * (weight.dim() - 1))
    return (weight.detach().cpu().double() * column).float()


def _norm_behind(low: Lowering, node: Any) -> tuple[Array, Array] | None:
    """γ/σ and β - μ·γ/σ of a batch-norm that alone reads a convolution, in float64.

    y = γ(Wx + b - μ)/σ + β with σ = √(var + ε) is the convolution W' = (γ/σ)W, b' = β + (γ/σ)(b - μ).
    """
    if not isinstance(node, fx.Node) or node.target not in CONVS or len(node.users) != 1:
        return None
    (norm,) = node.users
    if norm.target is not aten.batch_norm.default or norm.args[0] is not node:
        return None
    stored = [low.env.get(one) if isinstance(one, fx.Node) else None for one in norm.args[1:5]]
    gamma, beta, mean, var = stored
    if norm.args[5] or not isinstance(mean, Tensor) or not isinstance(var, Tensor):
        return None
    if not isinstance(low.env[node.args[1]], (Weight, Tensor)):  # type: ignore[index]
        return None
    deviation = np.sqrt(as_numbers(var) + float(norm.args[7]))  # type: ignore[arg-type]
    factor = (1 if gamma is None else as_numbers(gamma)) / deviation
    return factor, (0 if beta is None else as_numbers(beta)) - factor * as_numbers(mean)


def _aligned(low: Lowering, x: fx.Node, source: Activation, weight: Weight) -> tuple[Activation, Weight]:
    """A convolution of the image reads a multiple of four channels; the added ones hold 0.

    onnxruntime's fast integer convolution takes no three channels: ResNet-20's first one needs 0.6 of its time with
    four, and a batch of 32 images 0.96 of its own.
    """
    missing = -weight.integers.shape[1] % ALIGNMENT
    if not missing or not source.of_image or len(x.users) != 1 or weight.integers.ndim != 4 or weight.zero.any():
        return source, weight
    pads = low.graph.integers(0, 0, 0, 0, 0, missing, 0, 0)
    wider = np.pad(weight.integers, [(0, 0), (0, missing), (0, 0), (0, 0)])
    return source.moved(lambda integers: low.graph.op("Pad", integers, pads)), replace(weight, integers=wider)


def _pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Begin and end of every dimension. Torch's "same" asks for a stride of 1; the odd pixel is at the end."""
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if padding != "same":
        return each(padding, len(kernel)) * 2
    total = [step * (int(size) - 1) for step, size in zip(dilation, kernel, strict=True)]
    begin = [pad // 2 for pad in total]
    return [*begin, *(pad - half for pad, half in zip(total, begin, strict=True))]
