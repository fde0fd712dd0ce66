"""The way from torch to a file: Brevitas' QCDQ export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    try:
        with _without_pages():
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


@contextmanager
def _without_pages() -> Iterator[None]:
    """Torch prints a graph that it cannot export, and switches its log on whatever it was; the error is enough."""
    log = torch._C._jit_onnx_log
    vars(torch._C)["_jit_onnx_log"] = lambda *_: None
    try:
        yield
    finally:
        vars(torch._C)["_jit_onnx_log"] = log
