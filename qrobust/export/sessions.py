"""Sessions of onnxruntime, OpenVINO and LiteRT: what opens here, and what a runtime makes of a file."""

from __future__ import annotations

import ctypes
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from ..errors import RecipeError, did_you_mean
from ..onnx_module.file import whole
from ..runtime import (
    ENTRIES,
    LITERT,
    ON_GPU,
    OPENVINO,
    Artifact,
    ArtifactError,
    LiteRtSession,
    litert_module,
    load_session,
    preload,
    served,
    sums_saturate,
)
from .target import Target
from .tflite import to_tflite

Array = npt.NDArray[Any]
INPUT_KINDS: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
CPU = "CPUExecutionProvider"
IDENTITY = '<ir_version: 10, opset_import: ["": 20]> identity (float[1] x) => (float[1] y) { y = Identity (x) }'


def open_session(model: Path | bytes, level: str, provider: str, written: Path | None = None) -> Any:
    """A session of one thread of an ONNX file, whose products do not saturate; on LiteRT of the .tflite file of it.

    level: "disable", "basic", "extended", "all". written: for the optimised graph. Both are onnxruntime's alone.
    """
    if provider in LITERT:
        return ConvertedSession(model if isinstance(model, bytes) else model.read_bytes(), provider)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the optimised file suits this processor alone
    options.intra_op_num_threads = 1
    kind = "DISABLE_ALL" if level == "disable" else f"ENABLE_{level.upper()}"
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{kind}")
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    exact = sums_saturate() and not has_signed(proto)
    options.add_session_config_entry(ENTRIES["x64quantprecision"], str(int(exact)))
    if written is not None:
        options.optimized_model_filepath = str(written)
    source = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(source, options, providers=[provider])


def has_signed(model: onnx.ModelProto) -> bool:
    """Whether an activation is int8: what onnxruntime does against saturation breaks such a file."""
    signed = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    weights = {tensor.name for tensor in model.graph.initializer}
    quantised = (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in weights)
    return any(not signed.isdisjoint(node.input[2:]) or _type_of(node) == onnx.TensorProto.INT8 for node in quantised)


def _type_of(node: onnx.NodeProto) -> int:
    """The type that a QuantizeLinear without zero point names, 0 for none."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)


def present_provider(target: Target) -> str:
    """The target's provider where it opens a session; else the CPU's, which reads the same file.

    Raises ArtifactError where LiteRT is missing, whose file nothing else reads.
    """
    if target.provider in LITERT:
        litert_module("interpreter")
        return target.provider
    return target.provider if _opens(target.provider) else CPU


@cache
def _opens(provider: str) -> bool:
    """onnxruntime lists what it was built with: where a library or the GPU is missing, its session is the CPU's."""
    if provider not in onnxruntime.get_available_providers():
        return False
    if provider in ON_GPU:
        import torch

        if not torch.cuda.is_available():  # it would complain at length
            return False
        preload(onnxruntime)
    model = onnx.parser.parse_model(IDENTITY).SerializeToString()
    return bool(open_session(model, "all", provider).get_providers()[0] == provider)


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    OPENVINO: OPENVINO,
}


def provider_of(name: str) -> str:
    """The full name of `cpu`, `cuda`, `tensorrt` or `openvino`; a full name is its own. Raises RecipeError."""
    if name == "OpenVINOExecutionProvider":  # what older artifacts say; the package needs no build of onnxruntime
        return OPENVINO
    if name in PROVIDERS or name in LITERT or name.endswith("ExecutionProvider"):
        return PROVIDERS.get(name, name)
    raise RecipeError(f"expected a provider, got {name!r}{did_you_mean(name, (*PROVIDERS, *LITERT))}")


@dataclass(frozen=True)
class BareFile:
    """An ONNX file in no artifact, which is timed on random images; of accuracies nothing is known.

    Raises GraphError for one that cannot be read, ArtifactError for one that leaves the size of an image open.
    """

    path: Path

    @property
    def name(self) -> str:
        """The file's, without its ending."""
        return self.path.stem

    @property
    def size_bytes(self) -> int:
        """Of the file and the data beside it."""
        return sum(one.stat().st_size for one in (self.path, *whole(self.path)[1]))

    def session(self, provider: str | None = None, threads: int | None = None, **session_options: Any) -> Any:
        """As onnxruntime opens it by default, but for these options."""
        return load_session(whole(self.path)[0].SerializeToString(), provider or CPU, threads, session_options)

    def images(self, size: int) -> Array:
        """Random images for a call of so many."""
        (source,) = self.session().get_inputs()[:1]
        first, *sizes = source.shape
        kind = INPUT_KINDS.get(source.type)
        if kind is None or not sizes or not all(isinstance(one, int) for one in sizes):
            raise ArtifactError(
                f"expected images of a known size as input of {self.path}, got {source.type} {source.shape}; make an "
                "artifact of it by qrobust export F.onnx --data D"
            )
        if isinstance(first, int) and first != size:
            raise ArtifactError(
                f"expected calls of {first} images for {self.path}, whose batch is fixed, got {size}; "
                f"choose --batch {first}"
            )
        drawn = np.random.default_rng(0).integers(0, 256, (size, *sizes))
        return drawn.astype(kind) if kind is np.uint8 else (drawn / 255).astype(kind)


Timed = Artifact | BareFile


def opened(path: str | Path) -> Timed:
    """The artifact in a folder, or a bare ONNX file."""
    place = Path(path)
    return BareFile(place) if place.is_file() or place.suffix == ".onnx" else Artifact.load(place)


def file_of(one: Timed) -> Path:
    """Where its ONNX graph lies."""
    return one.path if isinstance(one, BareFile) else one.path / "model.onnx"


def size_of(one: Timed) -> int:
    """Of the file that runs, in bytes."""
    if isinstance(one, BareFile):
        return one.size_bytes
    return int(one.manifest["files"][served(one.manifest)]["size_bytes"])


def artifact_session(artifact: Timed, provider: str, threads: int) -> Any:
    """A session of the artifact; `provider` is a full name. Raises ArtifactError, which says what is missing."""
    require(provider)
    return artifact.session(provider, threads)


def beside_others(session: Any, artifact: Timed) -> Any:
    """The same session again, whose threads rest when it returns: spinning ones would slow the next of a bench."""
    if not isinstance(session, onnxruntime.InferenceSession):
        return session
    options = session.get_session_options()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return _again(session, artifact, options)


def profiled(session: onnxruntime.InferenceSession, artifact: Timed, x: Array) -> list[dict[str, Any]]:
    """The events that onnxruntime's own profile has of one call on x; `session` is used up."""
    options = session.get_session_options()
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        again = _again(session, artifact, options)
        again.run(None, {again.get_inputs()[0].name: x})
        events: list[dict[str, Any]] = json.loads(Path(again.end_profiling()).read_text())
    return events


def _again(session: Any, artifact: Timed, options: Any) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(file_of(artifact)), options, providers=session.get_providers())


def require(provider: str) -> None:
    """Raises ArtifactError if a library that the provider needs cannot be loaded.

    onnxruntime would print pages about it and go on with the CPU. Libraries that pip installed are loaded first.
    """
    if provider in ON_GPU:
        preload(onnxruntime)
        with suppress(ImportError):
            import_module("tensorrt")
    stem = provider.removesuffix("ExecutionProvider").lower()
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob(f"*onnxruntime_providers_{stem}.*"))
    try:
        for library in found:
            ctypes.CDLL(str(library))
    except OSError as error:
        missing = str(error).partition(":")[0]
        text = f"expected the libraries of {provider}, got none called {missing}; install it or put it on the path"
        raise ArtifactError(text) from error


class ConvertedSession:
    """An ONNX file on LiteRT, as the .tflite file that is written of it; levels are those of the ONNX file.

    Raises ExportError for an operator that a .tflite file has not, by its name.
    """

    def __init__(self, model: bytes, provider: str) -> None:
        converted = to_tflite(model, provider)
        self._shifts, self._session = converted.shifts, LiteRtSession(converted.data, provider, 1)
        self._names = [one.name for one in self._session.get_outputs()]

    def get_inputs(self) -> list[SimpleNamespace]:
        """Those of the file."""
        return self._session.get_inputs()

    def run(self, names: list[str] | None, feed: dict[str, Array]) -> list[Array]:
        """The outputs of these names, all for None."""
        shifts = self._shifts
        given = {name: _shifted(x, shifts[name], np.int8) if name in shifts else x for name, x in feed.items()}
        wanted = names or self._names
        found = self._session.run(wanted, given)
        named = zip(wanted, found, strict=True)
        return [_shifted(x, -shifts[name], np.uint8) if name in shifts else x for name, x in named]


def _shifted(levels: Array, shift: int, kind: Any) -> Array:
    return (levels.astype(np.int16) + shift).astype(kind)


class NullSession:
    """Returns at once: what it takes is the harness's own time."""

    def get_inputs(self) -> list[SimpleNamespace]:
        """One input that nobody reads."""
        return [SimpleNamespace(name="x")]

    def run(self, _names: None, _feed: dict[str, Array]) -> list[Array]:
        """Nothing."""
        return []


class Bound:
    """A session with its images, for sessions in one bench that do not take the same ones."""

    def __init__(self, session: Any, x: Array) -> None:
        self._session, self._feed = session, {session.get_inputs()[0].name: x}

    def get_inputs(self) -> Any:
        """Those of the session."""
        return self._session.get_inputs()

    def run(self, names: None, _feed: dict[str, Array]) -> Any:
        """The session on its own images."""
        return self._session.run(names, self._feed)


def images_for(artifact: Timed, size: int) -> Array:
    """Images of the suite as the artifact takes them, repeated if it holds fewer than a batch; of a bare file random
    ones.
    """
    if isinstance(artifact, BareFile):
        return artifact.images(size)
    pixels = artifact.suite["x.clean"]
    return artifact.feed(np.resize(pixels, (size, *pixels.shape[1:])))
