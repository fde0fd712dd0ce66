"""The way from torch to a file: Brevitas' QCDQ export."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ._brevitas import export_onnx_qcdq
from .layers import set_export_form

OPSET = 20  # the highest that the exporter writes
INPUT, OUTPUT = "x", "logits"


def write_qcdq(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a network in eval mode, FAT folded, as ONNX: Quantize → Clip → Dequantize; any batch size.

    example: images (n, c, h, w) to trace with. Input "x", output "logits". A float network stays as it is.
    """
    set_export_form(model, True)
    torch._C._jit_set_onnx_log_enabled(False)  # pages about a graph that it cannot export; the error says which layer
    try:
        export_onnx_qcdq(
            model,
            args=example,
            export_path=str(path),
            opset_version=OPSET,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
    finally:
        set_export_form(model, False)
