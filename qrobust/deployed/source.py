"""Somebody's ONNX file as it came: its input, what may give logits, widths of its weights, and data beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from ..errors import GraphError, shown
from ..onnx_module.file import whole
from ..runtime import MAX_FILE_BYTES
from ..storage import described
from .model import Array

FLOATS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
WIDTHS = {
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16), 16),
}
NCHW, NHWC = "NCHW", "NHWC"
DYNAMIC_BATCH = "export it with a dynamic batch axis, as torch.onnx.export(..., dynamic_axes={INPUT: {0: 'batch'}})"


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of pixels x in [0,1]; each one number, or one a channel. () leaves x as it is.

    Raises GraphError for numbers of another count, or a std that is not above 0.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def constants(self, channels: int) -> tuple[Array, Array] | None:
        """Mean and std, float32 (1, channels or 1, 1, 1); None for none."""
        if not self.mean and not self.std:
            return None
        found = self.mean or (0.0,), self.std or (1.0,)
        for name, values in zip(("mean", "std"), found, strict=True):
            if len(values) not in (1, channels):
                raise GraphError(f"expected 1 or {channels} numbers as {name}, got {len(values)}; give one a channel")
        if not (np.isfinite(found[0]).all() and np.isfinite(found[1]).all() and min(found[1]) > 0):
            raise GraphError(f"expected finite mean and std above 0, got {found}; give those of pixels in [0, 1]")
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in found)
        return mean, std


@dataclass(frozen=True)
class Source:
    """A file as it came: its one input of images, and sizes (batch, ...), None where they are open."""

    proto: ModelProto
    path: Path
    record: dict[str, Any]
    name: str
    kind: int
    shape: tuple[int | None, ...]

    @property
    def takes_bytes(self) -> bool:
        """Whether images are uint8."""
        return self.kind == TensorProto.UINT8

    def logits(self, output: str | None) -> str:
        """The name of what gives logits: an output, or any other value of the graph; None for the only output."""
        graph = self.proto.graph
        outputs: list[str] = [value.name for value in graph.output]
        known = [*outputs, *(name for node in graph.node for name in node.output if name)]
        if output is None and len(outputs) == 1:
            return outputs[0]
        if output is None or output not in known:
            listed = ", ".join(map(shown, outputs[:5])) or "none"
            got = f"{len(outputs)}" if output is None else shown(repr(output))
            raise GraphError(
                f"expected one output, or the name of one of {listed}, got {got}; name it by --output NAME"
            )
        return output

    def layouts(self, shape: Sequence[int]) -> list[str]:
        """How the file may take images of shape (c, h, w), the likelier first."""
        channels, height, width = shape
        sizes = {NCHW: (channels, height, width), NHWC: (height, width, channels)}
        found = [name for name, wanted in sizes.items()
                 if all(size in (None, own) for size, own in zip(self.shape[1:], wanted, strict=True))]  # fmt: skip
        if not found:
            taken = tuple("any" if size is None else size for size in self.shape[1:])
            raise GraphError(
                f"expected images as {self.path.name} takes them, {taken}, got (c, h, w) = {tuple(shape)}; "
                "give images of that size"
            )
        return found

    def fed(self, pixels: Array, layout: str, normalisation: Normalisation) -> Array:
        """Images uint8 (n, c, h, w) as the file takes them as it came."""
        x: Array = pixels
        if not self.takes_bytes:
            constants = normalisation.constants(pixels.shape[1])
            x = pixels.astype(np.float32) / np.float32(255)
            x = (x if constants is None else (x - constants[0]) / constants[1]).astype(FLOATS[self.kind])
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if layout == NHWC else x)


def open_file(path: Path) -> Source:
    """A file with the data that lie beside it. Raises GraphError unless it is ONNX with one input, images."""
    proto, beside = whole(path)
    if (size := proto.ByteSize()) > MAX_FILE_BYTES:
        raise GraphError(
            f"expected {path.name} of up to {MAX_FILE_BYTES} bytes, which a check reads, got {size}; pass a smaller "
            "network, or quantised weights"
        )
    digests = {one.relative_to(path.parent).as_posix(): described(one.read_bytes()) for one in beside}
    record = {"name": path.name, **described(path.read_bytes()), "beside": digests}
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(shown(value.name) for value in inputs[:5]) or "none"
        raise GraphError(
            f"expected a graph with one input, images, got {len(inputs)}: {names}; make the others initializers"
        )
    kind = inputs[0].type.tensor_type
    dims = tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    what = f"images (batch, channels, height, width) in {shown(inputs[0].name)}"
    if len(dims) == 3:
        raise GraphError(f"expected {what}, got {dims}, no batch dimension; {DYNAMIC_BATCH}")
    if len(dims) != 4:
        raise GraphError(f"expected {what}, got {len(dims)} dimensions; pass a classifier of images")
    if kind.elem_type not in (*FLOATS, TensorProto.UINT8):
        names = TensorProto.DataType.Name
        raise GraphError(f"expected {what} as floats or uint8, got {names(kind.elem_type)}; put a Cast before it")
    return Source(proto, path, record, inputs[0].name, kind.elem_type, dims)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width that a file's images must have; None where it leaves them open."""
    _, first, second, last = open_file(path).shape
    height, width = (first, second) if last in (1, 3) and first not in (1, 3) else (second, last)
    return None if height is None or width is None else (height, width)


def weight_bits(proto: ModelProto) -> dict[str, int]:
    """Width by name of every weight that is stored in fewer than 32 bits, or that a quantiser rounds."""
    large = {tensor.name: tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) > 1}
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    found = {name: WIDTHS[kind] for name, kind in large.items() if kind in WIDTHS}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in large:
            found[node.input[0]] = WIDTHS.get(kinds.get(node.input[2] if len(node.input) > 2 else "", 0), 8)
    return found
