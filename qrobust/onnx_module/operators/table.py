"""The table of operators, (domain, name) → function of a node and its inputs, and ONNX element types in torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto

from ..file import shown
from ..node import Node

LARGEST = 2**28  # elements of one tensor: 1 GiB, so that a small file cannot ask for all memory
FLOATS: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.BFLOAT16: torch.float32,
}
# Held in float32 and rounded after every operator: in float16, gradients would underflow to 0.
NARROW: dict[int, torch.dtype] = {TensorProto.FLOAT16: torch.float16, TensorProto.BFLOAT16: torch.bfloat16}
# Types that torch computes poorly or not at all are held in the next wider one.
INTEGERS: dict[int, tuple[torch.dtype, int, int]] = {
    TensorProto.INT2: (torch.int8, -2, 1),
    TensorProto.UINT2: (torch.uint8, 0, 3),
    TensorProto.INT4: (torch.int8, -8, 7),
    TensorProto.UINT4: (torch.uint8, 0, 15),
    TensorProto.INT8: (torch.int8, -128, 127),
    TensorProto.UINT8: (torch.uint8, 0, 255),
    TensorProto.INT16: (torch.int16, -(2**15), 2**15 - 1),
    TensorProto.UINT16: (torch.int32, 0, 2**16 - 1),
    TensorProto.INT32: (torch.int32, -(2**31), 2**31 - 1),
    TensorProto.UINT32: (torch.int64, 0, 2**32 - 1),
    TensorProto.INT64: (torch.int64, -(2**63), 2**63 - 1),
}
TYPES: dict[int, torch.dtype] = {
    **FLOATS,
    **{kind: dtype for kind, (dtype, _, _) in INTEGERS.items()},
    TensorProto.BOOL: torch.bool,
}


def bounded(shape: Sequence[int]) -> list[int]:
    """The shape. Raises ValueError if it asks for too much memory."""
    if math.prod(shape) > LARGEST:
        raise ValueError(f"a tensor of {math.prod(shape)} elements is more than {LARGEST}")
    return list(shape)


def torch_type(kind: int) -> torch.dtype:
    """Raises ValueError for one that is not covered (strings, float8, complex)."""
    if kind not in TYPES:
        raise ValueError(f"element type {kind} is not covered")
    return TYPES[kind]


def integer_range(kind: int) -> tuple[float, float]:
    """Lowest and highest integer. Raises ValueError for a type that is none."""
    if kind not in INTEGERS:
        raise ValueError(f"element type {kind} is no integer type")
    return float(INTEGERS[kind][1]), float(INTEGERS[kind][2])


# (node, one tensor per input, None for one left out) → the first outputs: a tensor or a tuple of them.
Function = Callable[..., Any]
CONTRIB = "com.microsoft"
TABLE: dict[tuple[str, str], Function] = {}


def operator(*names: str, domain: str = "") -> Callable[[Function], Function]:
    """Enter a function of (node, inputs) under these names."""

    def enter(function: Function) -> Function:
        TABLE.update({(domain, name): function for name in names})
        return function

    return enter


def plain(*names: str) -> Callable[[Function], Function]:
    """Enter a function of the inputs alone under these names."""

    def enter(function: Function) -> Function:
        operator(*names)(lambda _, *inputs: function(*inputs))
        return function

    return enter


def find(node: Node) -> Function | None:
    """The function of a node's operator, or None if it is not covered."""
    return TABLE.get((node.domain, node.op))


def title(domain: str, name: str) -> str:
    """The operator's name as errors print it."""
    return shown(f"{domain}::{name}" if domain else name)
