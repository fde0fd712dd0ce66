"""Sessions of an artifact on the providers that people use, and one that does nothing."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RecipeError, did_you_mean
from ..runtime import ON_GPU, Artifact, ArtifactError, preload

Array = npt.NDArray[Any]
OPENVINO = "openvino"  # a runtime of its own: the same file, read by the package openvino
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    OPENVINO: OPENVINO,
}


def provider_of(name: str) -> str:
    """The full name of `cpu`, `cuda`, `tensorrt` or `openvino`; a full name is its own. Raises RecipeError."""
    if name == "OpenVINOExecutionProvider":  # what a target says; the package needs no build of onnxruntime
        return OPENVINO
    if name in PROVIDERS or name.endswith("ExecutionProvider"):
        return PROVIDERS.get(name, name)
    raise RecipeError(f"expected a provider, got {name!r}{did_you_mean(name, PROVIDERS)}")


def open_session(artifact: Artifact, provider: str, threads: int) -> Any:
    """A session of the artifact; `provider` is a full name. Raises ArtifactError, which says what is missing."""
    if provider == OPENVINO:
        return OpenVinoSession(artifact.path / "model.onnx", threads)
    require(provider)
    return artifact.session(provider, threads)


def beside_others(session: Any, artifact: Artifact) -> Any:
    """The same session again, whose threads rest when it returns: spinning ones would slow the next in a race."""
    import onnxruntime

    if not isinstance(session, onnxruntime.InferenceSession):
        return session
    options = session.get_session_options()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    path = str(artifact.path / "model.onnx")
    return onnxruntime.InferenceSession(path, options, providers=session.get_providers())


def require(provider: str) -> None:
    """Raises ArtifactError if a library that the provider needs cannot be loaded.

    onnxruntime would print pages about it and go on with the CPU. Libraries that pip installed are loaded first.
    """
    import onnxruntime

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


class OpenVinoSession:
    """A file on OpenVINO's CPU plugin, with what a benchmark needs of an onnxruntime session."""

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ArtifactError("expected the package openvino, got none; pip install openvino") from error
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        try:
            self._compiled = openvino.Core().compile_model(str(path), "CPU", options)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            text = f"expected a file that OpenVINO reads, got {path}: {reason}; export for the target openvino"
            raise ArtifactError(text) from error
        self._request = self._compiled.create_infer_request()

    def get_inputs(self) -> list[SimpleNamespace]:
        """The one input, by name."""
        return [SimpleNamespace(name=self._compiled.inputs[0].any_name)]

    def run(self, _names: None, feed: dict[str, Array]) -> list[Array]:
        """The outputs; they are valid until the next call."""
        results = self._request.infer(feed, share_inputs=True, share_outputs=True)
        return [results[0]]

    def ops(self) -> list[tuple[str, str]]:
        """Kind and precision of every node that runs, such as ("Convolution", "u8")."""
        keys = ("layerType", "runtimePrecision")
        infos = [node.get_rt_info() for node in self._compiled.get_runtime_model().get_ops()]
        found = [tuple(str(info[key].value) for key in keys) for info in infos]
        return [(kind, precision) for kind, precision in found if kind not in ("Const", "Input", "Output")]


class NullSession:
    """Returns at once: what it takes is the harness's own time."""

    def get_inputs(self) -> list[SimpleNamespace]:
        """One input that nobody reads."""
        return [SimpleNamespace(name="x")]

    def run(self, _names: None, _feed: dict[str, Array]) -> list[Array]:
        """Nothing."""
        return []


class Bound:
    """A session with its images, for sessions in one race that do not take the same ones."""

    def __init__(self, session: Any, x: Array) -> None:
        self._session, self._feed = session, {session.get_inputs()[0].name: x}

    def get_inputs(self) -> Any:
        """Those of the session."""
        return self._session.get_inputs()

    def run(self, names: None, _feed: dict[str, Array]) -> Any:
        """The session on its own images."""
        return self._session.run(names, self._feed)


def images_for(artifact: Artifact, size: int) -> Array:
    """Images of the suite as the artifact takes them, repeated if it holds fewer than a batch."""
    pixels = artifact.suite["x.clean"]
    return artifact.feed(np.resize(pixels, (size, *pixels.shape[1:])))
