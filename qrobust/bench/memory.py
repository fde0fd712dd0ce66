"""Memory and load time of one session, in a process of its own: `python -m qrobust.bench.memory ARTIFACT ...`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from ..export.sessions import Timed, artifact_session, images_for, opened
from ..runtime import LITERT, OPENVINO, ArtifactError

LOADS, MOST_MS = 5, 5000.0
RUNTIMES = {OPENVINO: "openvino", **dict.fromkeys(LITERT, "ai_edge_litert.interpreter")}
STATUS = Path("/proc/self/status")


def footprint(artifact: Timed, provider: str, *, threads: int, batch: int) -> dict[str, Any]:
    """What a session costs a process that has loaded the runtime.

    memory_bytes: how far loading it and one call raise the peak of resident memory, on the host; None where
    /proc is missing. load_ms: median of up to five loads. Raises ArtifactError if the session does not run there.
    """
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(artifact.path), provider, str(threads), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ArtifactError(
            f"expected a session of {artifact.path} in a process of its own, got: {reason}; free memory"
        )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measure(folder: str, provider: str, threads: int, batch: int) -> dict[str, Any]:
    artifact = opened(folder)
    x = images_for(artifact, batch)
    import_module(RUNTIMES.get(provider, "onnxruntime"))
    before = _peak(forget=True)
    took: list[float] = []
    while len(took) < LOADS and sum(took) < MOST_MS:  # a provider that compiles takes minutes
        start = time.perf_counter()
        session = artifact_session(artifact, provider, threads)
        took.append((time.perf_counter() - start) * 1e3)
        if len(took) == 1:
            session.run(None, {session.get_inputs()[0].name: x})
            after = _peak()
    grown = None if before is None or after is None else after - before
    return {"memory_bytes": grown, "load_ms": statistics.median(took)}


def _peak(*, forget: bool = False) -> int | None:
    """Most bytes that were resident at once, since the last call that forgets; on Linux."""
    if not STATUS.exists():
        return None
    if forget:
        STATUS.with_name("clear_refs").write_text("5")
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))))
