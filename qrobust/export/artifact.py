"""Writing an artifact: whole, or not at all."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from .. import __version__, machine, runtime
from ..data import Dataset, choose
from ..errors import RunError
from ..quant import INPUT, OUTPUT, bits_per_layer
from ..storage import write_json
from ..threat import Threat
from .lowering import INPUTS, lower
from .optimised import check_ops, present_provider
from .parity import check_parity
from .suite import Arrays, suite_accuracy, suite_bytes
from .target import Target

PARITY_IMAGES = 1000
FILES = ("model.onnx", "suite.npz", "verify.py", "manifest.json")


@dataclass(frozen=True)
class Contents:
    """What goes into an artifact besides the graph.

    name: of the artifact. bits: 32 or the width. recipe: resolved. suite: from `make_suite`. before: metrics
    of the torch network, as its evaluation gives them. input: one of `INPUTS`.
    """

    name: str
    bits: int
    seed: int
    threat: Threat
    recipe: Mapping[str, Any]
    suite: Arrays
    before: Mapping[str, Any]
    input: str = INPUTS[0]


def write_artifact(
    folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents, *, ours: bool = False
) -> None:
    """Export a network with its suite, manifest and verifier into `folder`, replacing the artifact there.

    ours: the folder is the toolkit's own, whose artifact is replaced damaged or not. Raises ExportError if the graph
    is not what the target asks for, RunError if the folder holds anything else; what was there then stands.
    """
    _expect_replaceable(folder, ours)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".artifact.") as scratch:
            whole = Path(scratch) / "artifact"
            whole.mkdir()
            _fill(whole, model, dataset, target, contents)
            if folder.exists():
                folder.rename(Path(scratch) / "before")
            whole.rename(folder)
    except OSError as error:
        raise RunError(f"expected a writable place for {folder}, got: {error}; choose another --out") from error


def _expect_replaceable(folder: Path, ours: bool) -> None:
    """Raises RunError for a folder with anything but an artifact, which nothing here may delete."""
    if not folder.exists() and not folder.is_symlink():
        return
    expected = f"expected no folder or an artifact alone at {folder}"
    if folder.is_symlink() or not folder.is_dir():
        raise RunError(f"{expected}, got a file or a link; choose another --out")
    names = {path.name for path in folder.iterdir()}
    foreign = sorted(name for name in names if name not in FILES and not name.startswith("signature."))
    if foreign or (names and not ours and "manifest.json" not in names):
        raise RunError(f"{expected}, got {(foreign or sorted(names))[0]} in it; move it away, or choose another --out")


def _fill(folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents) -> None:
    images = choose(dataset.test, PARITY_IMAGES, contents.seed)[0].x.float() / 255
    described = {"recipe": str(contents.recipe.get("name", "")), "bits": str(contents.bits)}
    data = lower(model, images[:1], target, described, input=contents.input)
    (folder / "model.onnx").write_bytes(data)
    (folder / "suite.npz").write_bytes(suite_bytes(contents.suite))
    shutil.copyfile(runtime.__file__, folder / "verify.py")
    manifest = _manifest(folder, model, dataset, target, contents)
    path = folder / "manifest.json"
    write_json(path, manifest)
    if not target.executable:
        return
    if contents.bits < 32:
        check_ops(data, target, model)
    manifest["parity"] = check_parity(model, data, images, target).to_dict()
    manifest["metrics"]["after"] = _replayed(runtime.Artifact.load(folder), present_provider(target))
    manifest["metrics"]["after_provider"] = present_provider(target)
    write_json(path, manifest)


def _manifest(folder: Path, model: nn.Module, dataset: Dataset, target: Target, contents: Contents) -> dict[str, Any]:
    files = {path.name: _hash(path) for path in sorted(folder.iterdir())}  # all: a check refuses what is not listed
    graph = onnx.load(str(folder / "model.onnx"))
    return {
        "schema_version": 1,
        "producer": f"qrobust {__version__}",
        "name": contents.name,
        "files": files,
        "input": {"name": INPUT, **_input(contents.input, dataset.shape)},
        "output": {"name": OUTPUT},
        "classes": list(dataset.classes),
        "bits": contents.bits,
        "bits_per_layer": bits_per_layer(model),
        "opset": graph.opset_import[0].version,
        "target": {
            "name": target.name,
            "format": target.format,
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
        "statistics": {**target.statistics.model_dump(), "test": runtime.FIRST_TEST},
        "square": target.square.model_dump(),
    }


def _input(kind: str, shape: tuple[int, ...]) -> dict[str, Any]:
    channels, height, width = shape
    if kind == "uint8-nhwc":
        return {"shape": [height, width, channels], "layout": "NHWC", "range": [0, 255], "dtype": "uint8"}
    return {"shape": [channels, height, width], "layout": "NCHW", "range": [0, 1], "dtype": "float32"}


def _replayed(artifact: runtime.Artifact, provider: str) -> dict[str, float]:
    """Accuracy of the file on every set of its suite."""
    y, session = artifact.suite["y"], artifact.session(provider)
    labels = {name: artifact.logits(artifact.suite[f"x.{name}"], session).argmax(1) for name in artifact.sets}
    return {name: float((found == y).mean()) for name, found in labels.items()}


def _hash(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
