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
from .naming import name_by_module, shorten_names
from .passes import steps
from .target import Target, load_target

INPUTS = ("float32-nchw", "uint8-nhwc")


def export_model(
    model: nn.Module, example: Tensor, *, target: str | Target = "ort-cpu", path: str | Path, input: str = INPUTS[0]
) -> Path:
    """Write a network as ONNX for a target; returns the path.

    model: float, or from `quantize`; it is not changed. example: images (n, c, h, w) in [0,1], for the shape.
    input: "float32-nchw": the file takes "x" float32 (batch, c, h, w) in [0,1]; "uint8-nhwc": uint8
    (batch, h, w, c), as a camera gives it. It gives "logits" float32 (batch, classes).
    Raises ExportError if the graph is not what the target asks for; then nothing is written.
    """
    path = Path(path)
    chosen = load_target(target) if isinstance(target, str) else target
    write_bytes(path, lower(model, example, chosen, input=input))
    return path


def lower(
    model: nn.Module,
    example: Tensor,
    target: Target,
    metadata: dict[str, str] | None = None,
    *,
    input: str = INPUTS[0],
) -> bytes:
    """The file of `export_model` as bytes, `metadata` in it; the same network gives the same bytes."""
    if input not in INPUTS:
        raise ExportError(f"expected input {' or '.join(INPUTS)}, got {input!r}")
    folded = fold_fat(copy.deepcopy(model)).cpu().eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_qcdq(folded, example.cpu()[:1].contiguous(), path)
        graph = ir.load(path)
    chosen = steps(target.format, storage=target.storage, opset=target.opset, camera=input == "uint8-nhwc")
    try:
        for step in chosen:
            step(graph)
    except ExportError as error:
        raise ExportError(f"{target.name}: {error}") from error
    if target.names == "short":
        shorten_names(graph)
    else:
        name_by_module(graph, folded)
    graph.producer_name, graph.producer_version = "qrobust", None
    graph.metadata_props.update(metadata or {})
    return _checked(graph, target)


def _checked(graph: ir.Model, target: Target) -> bytes:
    proto = ir.to_proto(graph)
    opset = graph.graph.opset_imports[""]
    if opset is not None and opset > target.opset:
        raise ExportError(
            f"{target.name}: expected opset {target.opset} or lower, got {opset}; raise the target's opset"
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{target.name}: expected a valid graph, got: {str(error).splitlines()[0]}") from error
    return bytes(proto.SerializeToString(deterministic=True))
