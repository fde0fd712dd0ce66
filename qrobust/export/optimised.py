"""What the runtime makes of a file: the nodes it executes after its own optimisation."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import cache
from pathlib import Path

import onnx
import onnxruntime
import torch
from torch import nn

from ..errors import ExportError
from ..quant import bits_per_layer
from ..runtime import ENTRIES, ON_GPU, preload, sums_saturate
from .target import Target

CPU = "CPUExecutionProvider"
FLOAT_LAYERS = ("Conv", "FusedConv")
IDENTITY = '<ir_version: 10, opset_import: ["": 20]> identity (float[1] x) => (float[1] y) { y = Identity (x) }'


def optimised_ops(model: Path | bytes, target: Target) -> Counter[str]:
    """How many nodes of each kind the target's provider executes, or the CPU's where that is missing; maybe none."""
    return Counter(node.op_type for node in _executed(model, target))


def _executed(model: Path | bytes, target: Target) -> list[onnx.NodeProto]:
    if not target.executable:
        return []
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        open_session(model, target.session.graph_optimization_level, present_provider(target), written)
        return list(onnx.load(str(written)).graph.node)


def open_session(
    model: Path | bytes, level: str, provider: str, written: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session of one thread, whose products do not saturate.

    level: "disable", "basic", "extended", "all". written: for the optimised graph.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimised file suits this processor alone
    options.intra_op_num_threads = 1
    kind = "DISABLE_ALL" if level == "disable" else f"ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{kind}")
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    exact = sums_saturate() and not _has_signed(proto)
    options.add_session_config_entry(ENTRIES["x64quantprecision"], str(int(exact)))
    if written is not None:
        options.optimized_model_filepath = str(written)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=[provider])


def _has_signed(model: onnx.ModelProto) -> bool:
    """Whether an activation is int8: what onnxruntime does against saturation breaks such a file."""
    signed = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    quantised = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return any(not signed.isdisjoint(node.input[2:]) or _type_of(node) == onnx.TensorProto.INT8 for node in quantised)


def _type_of(node: onnx.NodeProto) -> int:
    """The type that a QuantizeLinear without zero point names, 0 for none."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)


def present_provider(target: Target) -> str:
    """The target's provider where it opens a session; else the CPU's, which reads the same file."""
    return target.provider if _opens(target.provider) else CPU


@cache
def _opens(provider: str) -> bool:
    """onnxruntime lists what it was built with: where a library or the GPU is missing, its session is the CPU's."""
    listed = provider in onnxruntime.get_available_providers()
    if not listed or (provider in ON_GPU and not torch.cuda.is_available()):  # it would complain at length
        return False
    if provider in ON_GPU:
        preload(onnxruntime)
    model = onnx.parser.parse_model(IDENTITY).SerializeToString()
    return bool(open_session(model, "all", provider).get_providers()[0] == provider)


def check_ops(file: Path | bytes, target: Target, model: nn.Module) -> None:
    """Raises ExportError unless the optimised graph holds what the target requires and nothing it forbids.

    A required operator must be there for every quantised convolution of `model`, from `quantize`.
    """
    layers, executed = dict(model.named_modules()), _executed(file, target)
    ran = Counter(node.op_type for node in executed)
    least = sum(bits < 32 and isinstance(layers[name], nn.Conv2d) for name, bits in bits_per_layer(model).items())
    for op in target.required_ops:
        if ran[op] < least:
            floats = (node.output[0] for node in executed if node.op_type in FLOAT_LAYERS)
            named = next((f", and a float one for {path}" for path in floats if path in layers), "")
            raise ExportError(
                f"{target.name}: expected {least} {op} once optimised, one for every quantised convolution, got "
                f"{ran[op]}{named}; choose a target that does not require it, as compact, or replace what it reads"
            )
    for op in target.forbidden_ops:
        if ran[op]:
            raise ExportError(f"{target.name}: expected no {op} once optimised, got {ran[op]}; choose another target")
