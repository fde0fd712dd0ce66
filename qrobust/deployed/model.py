"""A deployed file where it runs: its session as a network, the module with its gradients, images and other files.

open_deployed(path) ──▶ Deployed: session, at each level of fusion, and gradient, in each backward form
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import Dataset, DataSettings, Images, load, make_images
from ..data.sources import SOURCES
from ..errors import DataError, GraphError, RecipeError, RunError
from ..evaluation.sanity_measures import SurrogateGradient
from ..onnx_module.file import reason, whole
from ..onnx_module.fusing import FAKE, QUANTISE
from ..onnx_module.module import OnnxModule, load_onnx
from ..onnx_module.node import FORMS
from ..runtime import Artifact, load_session, served

Array = NDArray[Any]
Logits = Callable[[Array], Array]  # float32 images (n, c, h, w) in [0,1] → (n, classes)
CPU = "CPUExecutionProvider"
# Session and module take turns: threads that wait for the session's next call would hold the cores.
TURNS: dict[str, Any] = {"allow_spinning": 0}
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class Served(nn.Module):
    """A file as the network that its runtime makes of it: logits without gradients.

    The file's sha256 is its state, so that a verdict belongs to one file.
    """

    identity: Tensor

    def __init__(self, logits: Logits, sha256: str) -> None:
        super().__init__()
        self._logits = logits
        self.register_buffer("identity", torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, c, h, w) in [0,1] → logits (n, classes)."""
        return torch.from_numpy(self._logits(x.detach().contiguous().cpu().numpy())).to(x.device)


class Gradient(nn.Module):
    """A rebuilt graph in one backward form, on images (n, c, h, w) in [0,1] whatever the file takes.

    takes_bytes: the file takes bytes (n, h, w, c); images are rounded to them, and the gradient passes that whole.
    """

    def __init__(self, network: OnnxModule, form: str = FORMS[0], *, takes_bytes: bool = False) -> None:
        super().__init__()
        self.module, self.form, self.takes_bytes = network, form, takes_bytes

    def forward(self, x: Tensor) -> Tensor:
        """The module's logits (n, classes); it is left in this form."""
        self.module.backward_form = self.form  # read in the forward pass, so that several may share one module
        logits: Tensor = self.module(self.fed(x))
        return logits

    def fed(self, x: Tensor) -> Tensor:
        """Images as the module takes them."""
        if not self.takes_bytes:
            return x
        pixels = x * 255
        return (pixels + (pixels.round() - pixels).detach()).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Deployed:
    """A file to be attacked.

    at: logits by level of fusion, a key of `runtime.LEVELS`; level: the one it is deployed with. takes_bytes: uint8
    (n, h, w, c), as cameras give. artifact: what it came in; None for a bare ONNX file, of which nothing else is known.
    """

    name: str
    path: Path
    sha256: str
    module: OnnxModule
    at: Callable[[str], Logits]
    level: str = "all"
    provider: str = CPU
    takes_bytes: bool = False
    artifact: Artifact | None = None

    @property
    def forms(self) -> tuple[str, ...]:
        """Backward forms that differ: one where nothing is rounded."""
        return FORMS if rounding(self.module) else FORMS[:1]

    @property
    def session_options(self) -> dict[str, Any]:
        """What its session is opened with."""
        manifest = self.artifact.manifest["target"]["session_options"] if self.artifact else {}
        return {**manifest, "graph_optimization_level": self.level}

    def served(self) -> Served:
        """The network that judges."""
        return Served(self.at(self.level), self.sha256)

    def gradient(self, form: str = FORMS[0]) -> Gradient:
        """The module in a backward form; all share its weights."""
        return Gradient(self.module, form, takes_bytes=self.takes_bytes)

    def through(self, served: Served, form: str) -> nn.Module:
        """The session's logits with the module's gradient."""
        return SurrogateGradient(served, self.gradient(form))


def rounding(network: OnnxModule) -> list[Any]:
    """The quantisers of a module, in the order of execution."""
    return [step.node for step in network.plan.steps if step.node.op in (FAKE, QUANTISE)]


def open_deployed(path: Path) -> Deployed:
    """The artifact in a folder, or the classifier in an ONNX file, which takes floats in [0,1].

    Raises ArtifactError for an artifact that is damaged or that its provider refuses, GraphError for a graph
    with an operator that `OnnxModule` does not cover, which it names, or for one that takes batches of a fixed size.
    """
    return _bare(path) if path.is_file() else of_artifact(Artifact.load(path))


def of_artifact(artifact: Artifact) -> Deployed:
    """The file of an artifact. Raises as `open_deployed`."""
    manifest = artifact.manifest
    path, target, data = artifact.path / "model.onnx", manifest["target"], artifact.model  # of the gradient
    level = target["session_options"].get("graph_optimization_level", "all")

    def at(level: str) -> Logits:
        session = artifact.session(graph_optimization_level=level, **TURNS)
        return lambda x: artifact.logits(x, session)

    at(level)  # before the module: what onnxruntime refuses is said by the artifact's own words
    return Deployed(
        name=artifact.name,
        path=path,
        sha256=manifest["files"][served(manifest)]["sha256"],
        module=load_onnx(as_floats(data) if artifact.takes_bytes else data, output=manifest["output"]["name"]),
        at=at,
        level=level,
        provider=target["provider"],
        takes_bytes=artifact.takes_bytes,
        artifact=artifact,
    )


def as_floats(data: bytes) -> bytes:
    """A graph that says its bytes are floats, so that a gradient reaches them; it then casts floats to floats."""
    proto = onnx.load_from_string(data)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return bytes(proto.SerializeToString())


def _bare(path: Path) -> Deployed:
    data = whole(path)[0].SerializeToString()
    network = load_onnx(data)
    if network.plan.batch not in (None, 1):
        raise GraphError(
            f"expected a graph for any number of images, got one for {network.plan.batch}; "
            "export it with a dynamic batch axis"
        )
    return Deployed(
        name=path.stem,
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        module=network,
        at=lambda level: _logits_of(path, data, level, alone=network.plan.batch == 1),
    )


def _logits_of(path: Path, data: bytes, level: str, *, alone: bool) -> Logits:
    """data: of the whole file. alone: images are passed one by one, as they must be where a range is measured on all
    that are passed.
    """
    session = load_session(data, CPU, None, {"graph_optimization_level": level, **TURNS})
    source, last = session.get_inputs()[0], session.get_outputs()[0].name

    def logits(x: Array) -> Array:
        parts = np.split(x, len(x)) if alone else [x]
        try:
            found = [session.run([last], {source.name: part.astype(KINDS[source.type])})[0] for part in parts]
        except Exception as error:  # onnxruntime's errors share no base
            raise GraphError(f"expected {path} to run on images {x.shape[1:]}, got: {reason(error)}") from error
        return np.concatenate(found).astype(np.float32)

    return logits


REMEDY = "write it by np.savez(FILE, x=..., y=...), x uint8 (n, c, h, w) and y integers (n,)"
FLOAT = "qm-32"
SUITE, GIVEN = "the suite", "given"  # names of an artifact's own images, and of a caller's


def find_images(deployed: Deployed, data: str = "", root: str | None = None) -> Images:
    """The clean images of an artifact's suite; or, by `data`, those that `read_data` finds.

    Raises RecipeError where no images are named, DataError for damaged ones and for labels that the file has no class
    for.
    """
    if data or deployed.artifact is None:
        height, width = _sizes(deployed)
        side = None if height is None or width is None else (height, width)
        found = read_data(data, root, name=deployed.path.name, size=side)
        return expect_classes(deployed, found.test if isinstance(found, Dataset) else found)
    x, y = (torch.from_numpy(deployed.artifact.suite[name]) for name in ("x.clean", "y"))
    return expect_classes(deployed, _made(x, y, SUITE))


def read_data(
    data: str, root: str | None = None, *, name: str, size: tuple[int, int] | None = None
) -> Images | Dataset:
    """The images of an .npz file, of a folder of image files, or a data set, whose images for testing are meant.

    root: where that data set lies. name: of the file that they are for, in an error. size: (height, width) that files
    in a folder are cropped and resized to. Raises RecipeError for "", DataError for what is damaged or missing.
    """
    if not data:
        raise RecipeError(f"expected images for {name}, got none; add --data: FILE.npz, a folder or a data set")
    if data.endswith(".npz"):
        return _made(*_arrays(Path(data)), data)
    if data not in SOURCES and Path(data).is_dir():
        return load(DataSettings("folder", root=data, size=size))
    return load(DataSettings(data, root=root))


def _made(x: Tensor, y: Tensor, name: str) -> Images:
    return make_images(x, y, classes=max(int(y.max()) + 1 if len(y) else 1, 1), name=name)


def _sizes(deployed: Deployed) -> tuple[int | None, ...]:
    """Height and width of the file's images."""
    shape = deployed.module.plan.images.shape[1:]
    return shape[:2] if deployed.takes_bytes else shape[1:]


def expect_classes(deployed: Deployed, images: Images) -> Images:
    """These images. Raises DataError for labels that the file has no class for."""
    classes, last = deployed.module.plan.classes, int(images.y.max()) if len(images) else 0
    if classes is not None and last >= classes:
        raise DataError(f"expected labels in [0, {classes - 1}], got {last}; give images of the file's classes")
    return images


def _arrays(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
        if not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"labels of {y.dtype}")
        return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"expected arrays x and y in {path}, got: {error}; {REMEDY}") from error


def find_sources(deployed: Deployed, named: Sequence[Path] = ()) -> tuple[Deployed, ...]:
    """Files to transfer from: those named (artifacts, ONNX files, runs), or the float network beside an artifact.

    The float network comes first. Raises RunError for a folder without artifacts, RecipeError for a file of other
    images or classes.
    """
    paths = [path for one in named for path in _artifacts(one)] if named else _beside(deployed)
    opened = {source.sha256: source for source in map(open_deployed, paths) if source.sha256 != deployed.sha256}
    for source in opened.values():
        ours, theirs = _task(deployed), _task(source)
        if ours != theirs:
            raise RecipeError(f"expected a source for images and classes {ours}, got {source.name} for {theirs}")
    return tuple(sorted(opened.values(), key=lambda source: bool(source.forms[1:])))


def _artifacts(path: Path) -> list[Path]:
    """The artifact that a path is or holds, or those of a run's widths."""
    if path.is_file() or (path / "manifest.json").is_file():
        return [path]
    found = [
        one.parent for one in sorted((*path.glob("artifact/manifest.json"), *path.glob("qm-*/artifact/manifest.json")))
    ]
    if not found:
        raise RunError(f"expected an artifact or a run with artifacts, got {path}; export one by qrobust export RUN")
    return found


def _beside(deployed: Deployed) -> list[Path]:
    """The float artifact of the same run, or of the same export."""
    if deployed.artifact is None:
        return []
    folder = deployed.artifact.path.resolve()
    candidates = (folder.parent.parent / FLOAT / folder.name, folder.parent / FLOAT)
    return [path for path in candidates if (path / "manifest.json").is_file()][:1]


def _task(deployed: Deployed) -> tuple[Any, ...]:
    """Shape (c, h, w) of an image, and the number of classes."""
    shape = deployed.module.plan.images.shape[1:]
    return (*(shape[2:] + shape[:2] if deployed.takes_bytes else shape), deployed.module.plan.classes)
