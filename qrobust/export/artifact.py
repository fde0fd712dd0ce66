"""Writing an artifact: whole, or not at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from torch import Tensor, nn

from .. import __version__, machine, runtime
from ..data import Dataset
from ..errors import ExportError, RunError
from ..quant import INPUT, OUTPUT, bits_per_layer
from ..threat import Threat
from .lowering import lower
from .suite import Arrays, suite_accuracy, suite_bytes
from .target import Target

LEVELS = {
    "disable": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class Contents:
    """What goes into an artifact besides the graph.

    name: of the artifact. bits: 32 or the width. recipe: resolved. suite: from `make_suite`. before: metrics
    of the torch network, as its evaluation gives them.
    """

    name: str
    bits: int
    seed: int
    threat: Threat
    recipe: Mapping[str, Any]
    suite: Arrays
    before: Mapping[str, Any]


def write_artifact(folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents) -> None:
    """Export a network with its suite, manifest and verifier into `folder`, replacing what is there.

    Raises ExportError if the graph is not what the target asks for; an existing artifact then stands.
    """
    if contents.threat.norm != "linf":
        raise ExportError(f"expected a threat in linf, which a check can attack, got {contents.threat.norm}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".artifact.") as scratch:
            whole = Path(scratch) / "artifact"
            whole.mkdir()
            _fill(whole, model, dataset, target, contents)
            if folder.exists():
                shutil.rmtree(folder)
            whole.rename(folder)
    except OSError as error:
        raise RunError(f"expected a writable place for {folder}, got: {error}; choose another --out") from error


def _fill(folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents) -> None:
    example = Tensor(dataset.test.take(slice(0, 1)).x.float() / 255)
    described = {"recipe": str(contents.recipe.get("name", "")), "bits": str(contents.bits)}
    (folder / "model.onnx").write_bytes(lower(model, example, target, described))
    (folder / "suite.npz").write_bytes(suite_bytes(contents.suite))
    shutil.copyfile(runtime.__file__, folder / "verify.py")
    manifest = _manifest(folder, model, dataset, target, contents)
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=2) + "\n")
    if target.integer_convolutions and contents.bits < 32:
        check_integer(folder / "model.onnx", target, model)
    manifest["metrics"]["after"] = _replayed(runtime.Artifact.load(folder))
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def _manifest(folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents) -> dict[str, Any]:
    files = {name: _hash(folder / name) for name in ("model.onnx", "suite.npz", "verify.py")}
    graph = onnx.load(str(folder / "model.onnx"))
    return {
        "schema_version": 1,
        "producer": f"qrobust {__version__}",
        "name": contents.name,
        "files": files,
        "input": {
            "name": INPUT,
            "shape": list(dataset.shape),
            "layout": "NCHW",
            "range": [0, 1],
            "dtype": "float32",
        },
        "output": {"name": OUTPUT},
        "classes": list(dataset.classes),
        "bits": contents.bits,
        "bits_per_layer": bits_per_layer(model),
        "opset": graph.opset_import[0].version,
        "target": {
            "name": target.name,
            "provider": target.provider,
            "session_options": target.session.model_dump(),
        },
        "threat": {"norm": contents.threat.norm, "eps": contents.threat.eps},
        "seed": contents.seed,
        "recipe": dict(contents.recipe),
        "data_fingerprint": dataset.fingerprint,
        "versions": machine.versions(),
        "metrics": {"before": dict(contents.before), "after": {}},
        "reference": suite_accuracy(contents.suite),
        "limits": target.limits.model_dump(),
        "square": target.square.model_dump(),
    }


def check_integer(path: Path, target: Target, model: nn.Module) -> None:
    """Raises ExportError unless every quantised convolution runs as QLinearConv in the optimised graph."""
    layers = dict(model.named_modules())
    quantised = [n for n, b in bits_per_layer(model).items() if b < 32 and isinstance(layers[n], nn.Conv2d)]
    ran = optimised_ops(path, target)["QLinearConv"]
    if ran < len(quantised):
        raise ExportError(
            f"{target.name}: expected {len(quantised)} integer convolutions once optimised, got {ran}; "
            "choose a target without integer_convolutions, or export a network of supported layers"
        )


def optimised_ops(path: Path, target: Target) -> Counter[str]:
    """How many nodes of each kind the runtime executes after its own optimisation."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that the optimised file suits this processor alone
        options.graph_optimization_level = LEVELS[target.session.graph_optimization_level]
        options.optimized_model_filepath = str(written)
        onnxruntime.InferenceSession(str(path), options, providers=[target.provider])
        graph = onnx.load(str(written)).graph
    return Counter(node.op_type for node in graph.node)


def _replayed(artifact: runtime.Artifact) -> dict[str, float]:
    y = artifact.suite["y"]
    return {name: float((artifact.logits(artifact.suite[f"x.{name}"]).argmax(1) == y).mean()) for name in artifact.sets}


def _hash(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
