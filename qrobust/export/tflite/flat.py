"""A .tflite file under construction: its tensors, operators and buffers, by ai-edge-litert's schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...runtime import litert_module

Array = npt.NDArray[Any]
IDENTIFIER, VERSION = b"TFL3", 3  # of the file format
# The version of each operator that came with int8; for floats the first would do.
VERSIONS = {
    "ADD": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "DEQUANTIZE": 2, "FULLY_CONNECTED": 5,
    "MAXIMUM": 2, "MAX_POOL_2D": 2, "MEAN": 2, "MINIMUM": 2, "MUL": 2, "PAD": 2, "QUANTIZE": 2, "RELU": 2,
    "TRANSPOSE": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """What int8 levels stand for: (level - zero) * scale."""

    scale: float
    zero: int


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its index, its shape with one image, channels last; floats where it has no grid.

    shift: what its levels lie above those of the ONNX graph. least: the lowest level that can occur in it.
    """

    index: int
    shape: tuple[int, ...]
    grid: Grid | None = None
    shift: int = 0
    least: int = -128

    @property
    def nonnegative(self) -> bool:
        """Whether its levels stand for 0 or more."""
        return self.grid is not None and self.least >= self.grid.zero


class Flat:
    """The file; `tensor` and `constant` give tensors, `op` adds an operator, `finish` gives the bytes."""

    def __init__(self) -> None:
        self.schema = litert_module("schema_py_generated")
        self._model, self._graph = self.schema.ModelT(), self.schema.SubGraphT()
        self._model.version, self._model.description = VERSION, b"qrobust"
        self._model.buffers, self._model.operatorCodes = [self.schema.BufferT()], []  # the first is the empty one
        self._model.subgraphs, self._model.metadata = [self._graph], []
        self._graph.name, self._graph.tensors, self._graph.operators = b"main", [], []
        self._codes: dict[str, int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], grid: Grid | None = None, *, kind: str = "", shift: int = 0,
        least: int = -128,
    ) -> Tensor:  # fmt: skip
        """One that is computed or given, for any number of images. kind: where it is not int8 or float."""
        made = self._add(name, shape, kind or ("FLOAT32" if grid is None else "INT8"))
        made.shapeSignature = [-1, *made.shape[1:]]
        if grid is not None:
            made.quantization = self._quantisation(np.array([grid.scale], np.float32), grid.zero, 0)
        return Tensor(len(self._graph.tensors) - 1, tuple(map(int, shape)), grid, shift, least)

    def constant(self, name: str, array: Array, scale: Array | None = None, axis: int = 0, zero: int = 0) -> int:
        """The index of one whose numbers lie in the file. scale: of its levels, one or one for each part of `axis`."""
        made = self._add(name, array.shape, str(array.dtype).upper())
        if scale is not None:
            made.quantization = self._quantisation(scale, zero, axis)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        made.buffer = len(self._model.buffers)
        self._model.buffers.append(buffer)
        return len(self._graph.tensors) - 1

    def op(self, kind: str, inputs: Sequence[int], output: int, options: str = "", **settings: Any) -> None:
        """kind, options, settings: by the schema's names."""
        made = self.schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = self._code(kind), list(inputs), [output]
        if options:
            made.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            made.builtinOptions = getattr(self.schema, f"{options}T")()
            for name, value in settings.items():
                setattr(made.builtinOptions, name, value)
        self._graph.operators.append(made)

    def finish(self, inputs: dict[str, int], outputs: dict[str, int]) -> bytes:
        """The bytes of the file, whose ends are these tensors by name."""
        import flatbuffers

        self._graph.inputs, self._graph.outputs = list(inputs.values()), list(outputs.values())
        self._call(inputs | outputs)
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = self._map(inputs), self._map(outputs)
        self._model.signatureDefs = [signature]
        builder = flatbuffers.Builder(2**16)
        builder.Finish(self._model.Pack(builder), IDENTIFIER)
        return bytes(builder.Output())

    def _call(self, ends: dict[str, int]) -> None:
        """Give the ends their names, which what they were made of may have."""
        for made in self._graph.tensors:
            if made.name.decode() in ends:
                made.name += b".inner"
        for name, index in ends.items():
            self._graph.tensors[index].name = name.encode()

    def _map(self, ends: dict[str, int]) -> list[Any]:
        made = []
        for name, index in ends.items():
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), index
            made.append(entry)
        return made

    def _add(self, name: str, shape: Sequence[int], kind: str) -> Any:
        made = self.schema.TensorT()
        made.name, made.shape, made.hasRank = name.encode(), [int(size) for size in shape], True
        made.type = getattr(self.schema.TensorType, kind)
        self._graph.tensors.append(made)
        return made

    def _quantisation(self, scale: Array, zero: int, axis: int) -> Any:
        made = self.schema.QuantizationParametersT()
        made.scale, made.zeroPoint = [float(one) for one in scale], [zero] * len(scale)
        made.quantizedDimension = axis
        return made

    def _code(self, kind: str) -> int:
        if kind not in self._codes:
            made = self.schema.OperatorCodeT()
            made.builtinCode = getattr(self.schema.BuiltinOperator, kind)
            made.deprecatedBuiltinCode, made.version = min(made.builtinCode, 127), VERSIONS.get(kind, 1)
            self._codes[kind] = len(self._model.operatorCodes)
            self._model.operatorCodes.append(made)
        return self._codes[kind]
