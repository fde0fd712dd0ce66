"""Attention as ONNX has it and as onnxruntime does, and Einstein's sums."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..node import Node
from .table import CONTRIB, operator


@operator("Einsum")
def einsum(node: Node, *terms: Tensor) -> Tensor:
    """Products summed over the indices that the result lacks."""
    on = next((term.device for term in terms if term.device.type != "cpu"), terms[0].device)
    summed: Tensor = torch.einsum(node.text("equation", "").replace(" ", ""), *(term.to(on) for term in terms))
    return summed


@operator("Attention")
def attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *cache: Tensor | None
) -> tuple[Tensor, ...]:
    """q, k, v: (n, heads, tokens, size), or (n, tokens, heads·size) and heads by attributes, k and v maybe fewer.

    A mask is added to the scores, or is true where a key may be seen; a shorter one hides what it does not reach.
    """
    _without_cache(cache, node)
    heads = node.integer("q_num_heads", 0), node.integer("kv_num_heads", 0)
    flat = q.dim() == 3
    if flat:
        q, k, v = _apart(q, heads[0]), _apart(k, heads[1]), _apart(v, heads[1])
    bias = None if mask is None else _bias(mask, k.shape[-2])
    mixed = attend(node, q, k, v, bias, causal=bool(node.integer("is_causal", 0)))
    return (_together(mixed) if flat else mixed), k, v


def attend(node: Node, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, causal: bool) -> Tensor:
    """softmax(scale·q·kᵀ + bias)·v, each (n, heads, tokens, size); scale: 1/√size unless the node says another."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scale = node.number("scale", 0.0) or 1 / math.sqrt(q.shape[-1])
    scores = scale * (q @ k.transpose(-1, -2))
    cap = node.number("softcap", 0.0)
    scores = cap * torch.tanh(scores / cap) if cap else scores
    if bias is not None:
        scores = scores + bias.to(scores)
    if causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
    if bias is None:  # then every token sees one key at least: itself
        return F.softmax(scores, -1) @ v
    hidden = (scores == -math.inf).all(-1, keepdim=True)
    shares = F.softmax(scores.masked_fill(hidden, 0.0), -1).masked_fill(hidden, 0.0)
    return shares @ v


def _bias(mask: Tensor, keys: int) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -math.inf)
    return F.pad(mask, (0, keys - mask.shape[-1]), value=-math.inf)


def _apart(x: Tensor, heads: int) -> Tensor:
    """(n, tokens, heads·size) → (n, heads, tokens, size)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def _together(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _without_cache(rest: Sequence[Tensor | None], node: Node) -> None:
    if any(one is not None for one in rest) or len(node.outputs) > 3:
        raise ValueError("a cache of keys and values, or a mask of lengths, is not covered")


@operator("Attention", domain=CONTRIB)
def packed_attention(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Tensor | None) -> Tensor:
    """x (n, tokens, c) through weight (c, q + k + v), then attention; rest: mask, cache, what is added to scores."""
    mask, past, added, *more = (*rest, None, None, None)
    _without_cache((mask, past, *more), node)
    projected = x @ weight if bias is None else x @ weight + bias
    sizes = node.integers("qkv_hidden_sizes") or [projected.shape[-1] // 3] * 3
    q, k, v = (_apart(part, node.integer("num_heads", 1)) for part in torch.split(projected, sizes, -1))
    return _together(attend(node, q, k, v, added, causal=bool(node.integer("unidirectional", 0))))


@operator("MultiHeadAttention", domain=CONTRIB)
def multi_head_attention(
    node: Node, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, *rest: Tensor | None
) -> Tensor:
    """q, k, v (n, tokens, heads·size); bias: of all three, side by side; rest: mask, what is added to scores."""
    mask, added, *more = (*rest, None, None)
    _without_cache((mask, *more), node)
    if bias is not None:
        parts = torch.split(bias, [q.shape[-1], k.shape[-1], v.shape[-1]])
        q, k, v = (one + part for one, part in zip((q, k, v), parts, strict=True))
    heads = node.integer("num_heads", 1)
    q, k, v = (_apart(one, heads) for one in (q, k, v))
    return _together(attend(node, q, k, v, added, causal=bool(node.integer("unidirectional", 0))))
