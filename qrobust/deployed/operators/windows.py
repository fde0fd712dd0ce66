"""How a window slides over an image: strides, dilations and pads, by the rules of ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..node import Node
from .elements import bounded


@dataclass(frozen=True)
class Window:
    """One value per spatial axis; `begin` and `end` are the pads, `size` that of the result.

    size = floor((n + begin + end - span)/stride) + 1 with span = dilation·(kernel - 1) + 1; ceil_mode rounds up,
    but drops a last window that would start in the padding.
    """

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    begin: list[int]
    end: list[int]
    size: list[int]

    @classmethod
    def of(cls, node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Window:
        """The window of a node over an image (n, c, *sizes)."""
        dims = len(sizes)
        strides = node.integers("strides") or [1] * dims
        dilations = node.integers("dilations") or [1] * dims
        spans = [dilation * (k - 1) + 1 for k, dilation in zip(kernel, dilations, strict=True)]
        pads = _pads(node, sizes, spans, strides)
        begin, end = pads[:dims], pads[dims:]
        ceil = bool(node.integer("ceil_mode", 0))
        size = [_size(*axis, ceil) for axis in zip(sizes, begin, end, spans, strides, strict=True)]
        bounded([n + a + b for n, a, b in zip(sizes, begin, end, strict=True)])
        return cls(list(kernel), strides, dilations, begin, end, size)

    def reach(self, sizes: Sequence[int]) -> list[int]:
        """Pads at the end that let the last window fit; at most 0 more than `end` unless ceil_mode added one."""
        spans = [dilation * (k - 1) + 1 for k, dilation in zip(self.kernel, self.dilations, strict=True)]
        return [
            max(end, (size - 1) * stride + span - n - begin)
            for size, stride, span, n, begin, end in zip(
                self.size, self.strides, spans, sizes, self.begin, self.end, strict=True
            )
        ]


def outer_pads(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Pads in the order that torch takes: the last axis first, begin and end of each."""
    return [pad for pair in zip(reversed(begin), reversed(end), strict=True) for pad in pair]


def _pads(node: Node, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Begin of every axis, then end of every axis."""
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        return node.integers("pads") or [0] * (2 * len(sizes))
    if auto == "VALID":
        return [0] * (2 * len(sizes))
    total = [
        max(0, (math.ceil(n / stride) - 1) * stride + span - n)
        for n, span, stride in zip(sizes, spans, strides, strict=True)
    ]
    less = [pad // 2 for pad in total]
    more = [pad - half for pad, half in zip(total, less, strict=True)]
    return less + more if auto == "SAME_UPPER" else more + less


def _size(n: int, begin: int, end: int, span: int, stride: int, ceil: bool) -> int:
    room = n + begin + end - span
    if not ceil:
        return room // stride + 1
    size = -(-room // stride) + 1
    return size - 1 if (size - 1) * stride >= n + begin else size
