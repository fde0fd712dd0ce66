"""A graph of one integer matrix product: the yardstick of a processor's int8 speed."""

from __future__ import annotations

from pathlib import Path

import onnx

TEXT = """<ir_version: 10, opset_import: ["": 21]>
gemm (uint8[rows, {size}] x) => (int32[rows, {size}] y) {{
    shape = Constant <value = int64[2] {{{size}, {size}}}> ()
    weight = ConstantOfShape <value = int8[1] {{3}}> (shape)
    y = MatMulInteger (x, weight)
}}"""


def write_gemm(folder: str | Path, size: int) -> Path:
    """A file in `folder` that multiplies uint8 (rows, size) with constant int8 (size, size); returns its path.

    The weight is made when the file is loaded, so onnxruntime packs it in advance as it does a network's.
    """
    path = Path(folder) / "gemm.onnx"
    path.write_bytes(onnx.parser.parse_model(TEXT.format(size=size)).SerializeToString())
    return path
