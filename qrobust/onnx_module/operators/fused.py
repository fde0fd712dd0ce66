"""Operators of com.microsoft that onnxruntime's optimisers make of several of ONNX's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Node
from .layers import convolve, gemm
from .table import CONTRIB, operator

ACTIVATIONS = {"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh}


@operator("BiasGelu", "FastGelu", "QuickGelu", domain=CONTRIB)
def gelu_of_sum(node: Node, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """gelu(x + bias): exact, by tanh, or as x·sigmoid(alpha·x)."""
    x = x if bias is None else x + bias
    if node.op == "QuickGelu":
        return x * torch.sigmoid(node.number("alpha", 1.702) * x)
    return F.gelu(x, approximate="none" if node.op == "BiasGelu" else "tanh")


@operator("SkipLayerNormalization", domain=CONTRIB)
def skip_layer_norm(
    node: Node, x: Tensor, skip: Tensor, gamma: Tensor, beta: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, None, None, Tensor]:
    """Layer normalisation of x + skip + bias; the sum is the fourth result."""
    total = x + skip if bias is None else x + skip + bias
    normed = F.layer_norm(total, total.shape[-1:], gamma, beta, node.number("epsilon", 1e-12))
    return normed, None, None, total


@operator("FusedMatMul", domain=CONTRIB)
def fused_matmul(node: Node, a: Tensor, b: Tensor) -> Tensor:
    """alpha·a·b, either transposed in its last two axes."""
    if node.integer("transBatchA", 0) or node.integer("transBatchB", 0):
        raise ValueError("transBatch is not covered")
    a = a.transpose(-1, -2) if node.integer("transA", 0) else a
    b = b.transpose(-1, -2) if node.integer("transB", 0) else b
    return node.number("alpha", 1.0) * (a @ b)


@operator("FusedGemm", domain=CONTRIB)
def fused_gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm with an activation behind it."""
    return _activated(node, gemm(node, a, b, c))


@operator("FusedConv", domain=CONTRIB)
def fused_conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, z: Tensor | None = None) -> Tensor:
    """Conv, z added, an activation behind it."""
    convolved = convolve(node, x, weight, bias)
    return _activated(node, convolved if z is None else convolved + z)


def _activated(node: Node, x: Tensor) -> Tensor:
    name, settings = node.text("activation", ""), node.attributes.get("activation_params", ())
    if not name:
        return x
    if name == "LeakyRelu":
        return F.leaky_relu(x, *settings[:1])
    if name == "Clip":
        return x.clamp(*settings[:2])
    if name == "HardSigmoid":
        return (x * float(settings[0]) + float(settings[1])).clamp(0, 1)
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name} is not covered")
    return ACTIVATIONS[name](x)
