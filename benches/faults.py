"""Ways to break an artifact so that its manifest still agrees with it: what somebody gets who exports wrongly."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from torch import nn

from qrobust import runtime
from qrobust.export.artifact import suite_accuracy, suite_bytes
from qrobust.export.target import load_target
from qrobust.export.write import lower
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_bytes, write_json

Proto = onnx.ModelProto
Plant = Callable[[Path], object]  # changes the artifact in a folder
BITS = 4
INTEGERS = {onnx.TensorProto.INT8: 8, onnx.TensorProto.INT4: 4, onnx.TensorProto.INT2: 2}


def seal(folder: Path) -> None:
    """Let the manifest agree with its files, as a wrong export would."""
    manifest = read_json(folder / "manifest.json")
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    write_json(folder / "manifest.json", manifest)


def relabel(folder: Path) -> None:
    """Let labels, logits and accuracies of the suite be what the file says."""
    artifact, manifest = runtime.Artifact.load(folder), read_json(folder / "manifest.json")
    suite = dict(artifact.suite)
    for name in artifact.sets:
        suite[f"label.{name}"] = artifact.logits(suite[f"x.{name}"]).argmax(1)
    suite["logits.clean"] = artifact.logits(suite["x.clean"])
    write_bytes(folder / "suite.npz", suite_bytes(suite))
    write_json(folder / "manifest.json", manifest | {"reference": suite_accuracy(suite)})
    seal(folder)


def model_file(content: bytes) -> Plant:
    return lambda folder: (write_bytes(folder / "model.onnx", content), seal(folder))


def edited(change: Callable[[Proto], object]) -> Plant:
    """A change of the graph."""

    def plant(folder: Path) -> None:
        proto = onnx.load(folder / "model.onnx")
        change(proto)
        model_file(proto.SerializeToString())(folder)

    return plant


def constants(proto: Proto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in proto.graph.initializer}


def put(tensor: onnx.TensorProto, values: np.ndarray[Any, Any]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def flip_weights(share: float, seed: int) -> Plant:
    """One random bit of a share of all integer weights."""

    def change(proto: Proto) -> None:
        rng = np.random.default_rng(seed)
        weights = [t for t in proto.graph.initializer if t.data_type in INTEGERS and len(t.dims) > 1]
        ends = np.cumsum([np.prod(tensor.dims) for tensor in weights])
        chosen = rng.choice(ends[-1], max(round(share * ends[-1]), 1), replace=False)
        for tensor, end in zip(weights, ends, strict=True):
            stored, bits = numpy_helper.to_array(tensor), INTEGERS[tensor.data_type]
            values = stored.astype(np.int8).reshape(-1)
            at = chosen[(chosen < end) & (chosen >= end - stored.size)] - (end - stored.size)
            flipped = values[at] ^ (1 << rng.integers(0, bits, len(at))).astype(np.int8)
            spare = 8 - bits  # the sign bit of a narrow integer fills the bits above it
            values[at] = (flipped << spare).astype(np.int8) >> spare
            put(tensor, values.reshape(stored.shape).astype(stored.dtype))

    return edited(change)


def scales(proto: Proto) -> list[str]:
    """Names of all scales: of weights, by channel, and of activations."""
    linear = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    biases = {t.name for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT32}
    return sorted({node.input[1] for node in linear if node.input[0] not in biases})


def graph(run: Run) -> Proto:
    return onnx.load_from_string(lowered(run, run.network(BITS)))


def first_scale(run: Run) -> str:
    """The scale of the weights of the first inner convolution."""
    return next(name for name in scales(graph(run)) if "conv1.weight" in name)


def stretch(scale: str, percent: float) -> Plant:
    def change(proto: Proto) -> None:
        tensor = constants(proto)[scale]
        put(tensor, (numpy_helper.to_array(tensor) * (1 + percent / 100)).astype(np.float32))

    return edited(change)


def clip_activations(bits: int) -> Plant:
    """Clips of BITS bits at the largest number of fewer bits; scales stay."""

    def change(proto: Proto) -> None:
        bounds = {node.input[2] for node in proto.graph.node if node.op_type == "Clip"}
        for tensor in (constants(proto)[name] for name in bounds):
            old = numpy_helper.to_array(tensor)
            put(tensor, np.minimum(old, 2**bits - 1).astype(old.dtype))

    return edited(change)


def before_the_graph(*steps: onnx.NodeProto, values: dict[str, np.ndarray[Any, Any]]) -> Plant:
    """Nodes in front of a graph, from "x" to "x.planted"."""

    def change(proto: Proto) -> None:
        for node in proto.graph.node:
            node.input[:] = ["x.planted" if name == "x" else name for name in node.input]
        after = list(proto.graph.node)
        del proto.graph.node[:]
        proto.graph.node.extend([*steps, *after])
        proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in values.items())

    return edited(change)


def normalise_twice(run: Run) -> Plant:
    """(x - mean) / std in front of a network that takes images in [0, 1]."""
    images = run.dataset.train.x.float() / 255
    mean, std = (np.float32(found).reshape(1, -1, 1, 1) for found in (images.mean((0, 2, 3)), images.std((0, 2, 3))))
    steps = (
        helper.make_node("Sub", ["x", "planted.mean"], ["planted.centred"]),
        helper.make_node("Div", ["planted.centred", "planted.std"], ["x.planted"]),
    )
    return before_the_graph(*steps, values={"planted.mean": mean, "planted.std": std})


def swap_channels() -> Plant:
    step = helper.make_node("Gather", ["x", "planted.order"], ["x.planted"], axis=1)
    return before_the_graph(step, values={"planted.order": np.array([2, 1, 0])})


def other_epsilon(run: Run, eps: float) -> nn.Module:
    """The network with another eps in every batch-norm that is folded."""
    model = copy.deepcopy(run.network(BITS))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    return model


def lowered(run: Run, model: nn.Module, target: str = "ort-cpu") -> bytes:
    return lower(model, run.dataset.test.take(slice(0, 1)).x.float() / 255, load_target(target))


def after_training(run: Run) -> bytes:
    """The float network in 8 bits by onnxruntime's own post-training quantiser."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = run.dataset.train.take(slice(0, 512)).batches(64)
            self.batches = iter([{"x": batch.x.numpy().astype(np.float32) / 255} for batch in batches])

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as scratch:
        source, made = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
        source.write_bytes(lowered(run, run.network(32), "ort-cpu-float"))
        quantize_static(source, made, Images())
        return made.read_bytes()


def set_target(**change: Any) -> Plant:
    """Another provider or level of optimisation in the manifest."""

    def plant(folder: Path) -> None:
        manifest = read_json(folder / "manifest.json")
        level = change.get("graph_optimization_level")
        manifest["target"]["session_options"] |= {"graph_optimization_level": level} if level else {}
        manifest["target"]["provider"] = change.get("provider", manifest["target"]["provider"])
        write_json(folder / "manifest.json", manifest)

    return plant


def replaced_by(other: Path) -> Plant:
    """Another artifact, suite and manifest too."""
    return lambda folder: (shutil.rmtree(folder), shutil.copytree(other, folder))
