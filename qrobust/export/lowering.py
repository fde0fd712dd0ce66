"""From a torch network to the bytes of an ONNX file for a target."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from ..errors import ExportError
from ..quant import fold_fat, write_qcdq
from ..storage import write_bytes
from .naming import name_by_module
from .passes import LOWERING, narrow_storage
from .target import Target, load_target


def export_model(model: nn.Module, example: Tensor, *, target: str | Target = "ort-cpu", path: str | Path) -> Path:
    """Write a network as ONNX for a target; returns the path.

    model: float, or from `quantize`; it is not changed. example: images (n, c, h, w) in [0,1], for the shape.
    The file takes "x" float32 (batch, c, h, w) in [0,1] and gives "logits" (batch, classes).
    Raises ExportError if the graph is not what the target asks for; then nothing is written.
    """
    path = Path(path)
    write_bytes(path, lower(model, example, load_target(target) if isinstance(target, str) else target))
    return path


def lower(model: nn.Module, example: Tensor, target: Target, metadata: dict[str, str] | None = None) -> bytes:
    """The file of `export_model` as bytes, `metadata` in it; the same network gives the same bytes."""
    folded = fold_fat(copy.deepcopy(model)).cpu().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_qcdq(folded, example.cpu()[:1].contiguous(), path)
        graph = ir.load(path)
    for step in LOWERING:
        if step is not narrow_storage or target.storage == "true-width":
            step(graph)
    name_by_module(graph, folded)
    graph.producer_name, graph.producer_version = "qrobust", None
    graph.metadata_props.update(metadata or {})
    proto = ir.to_proto(graph)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{target.name}: expected a valid graph, got: {str(error).splitlines()[0]}") from error
    return bytes(proto.SerializeToString(deterministic=True))
