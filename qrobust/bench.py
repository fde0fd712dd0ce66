"""How fast artifacts are, in one interleaved run, so that ratios hold on a noisy machine. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import machine
from .runtime import Artifact, time_sessions

Array = npt.NDArray[Any]


def bench(
    artifacts: Sequence[Artifact],
    *,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    seconds: float = 2.0,
    provider: str | None = None,
) -> dict[str, Any]:
    """Latency and throughput of artifacts that take the same input, calls in turn.

    threads: of each session, 0 for as many as the runtime likes. seconds: minimum for each batch size, all
    artifacts together. provider: None for each artifact's own. Ratios are against the float artifact (bits
    32) if there is one, else the first, of medians in the same run; above 1 is faster.
    Returns JSON: settings, versions, hardware, and "results", one record an artifact and batch size.
    """
    names = unique_names(artifacts)
    sessions = {name: a.session(provider, threads) for name, a in zip(names, artifacts, strict=True)}
    bits = {name: int(a.manifest["bits"]) for name, a in zip(names, artifacts, strict=True)}
    twin = next((name for name in names if bits[name] == 32), names[0])
    results = []
    for size in batches:
        times = time_sessions(sessions, _images(artifacts[0], size), min_seconds=seconds)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        for name, artifact in zip(names, artifacts, strict=True):
            record = {"name": name, "bits": bits[name], "batch": size, **_statistics(times[name], size)}
            record["size_bytes"] = artifact.manifest["files"]["model.onnx"]["size_bytes"]
            record["speedup"] = medians[twin] / medians[name]
            results.append(record)
    return {
        "twin": twin,
        "threads": threads,
        "provider": provider or artifacts[0].manifest["target"]["provider"],
        "results": results,
        "versions": machine.versions(),
        "hardware": {"cpu": machine.processor(), "cores": os.cpu_count()},
    }


def unique_names(artifacts: Sequence[Artifact]) -> list[str]:
    """The artifacts' names, or their paths where two share a name."""
    names = [artifact.name for artifact in artifacts]
    return [a.name if names.count(a.name) == 1 else str(a.path) for a in artifacts]


def _images(artifact: Artifact, size: int) -> Array:
    """Real images of the suite, repeated if it holds fewer than a batch."""
    images: Array = np.resize(artifact.suite["x.clean"], (size, *artifact.manifest["input"]["shape"]))
    scaled: Array = images.astype(np.float32) / np.float32(255)
    return scaled


def _statistics(times: Sequence[float], size: int) -> dict[str, Any]:
    p50, p90, p99 = (float(value) for value in np.percentile(times, (50, 90, 99)))
    rate = size / p50 * 1e3
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "images_per_second": rate, "runs": len(times)}
