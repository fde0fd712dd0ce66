"""Artifacts on a GPU's providers beside torch: speed of each network, and its robustness checked again there.

    python benches/gpu/serve.py OUT [--run resnet20=RUN] [--run resnet18=RUN]

ResNet-20 and ResNet-18 at QM-32/8/4/2 through onnxruntime's CUDA provider and, where it is present, TensorRT's, in
turns with torch eager and torch.compile, float32 and float16; batch 1, 32, 256; images come from the host and logits
go back to it. Ratios are against onnxruntime in float16. RUN is a run folder, evaluated, whose trained networks are
taken; for widths that it lacks weights are random, which speed does not mind, but robustness means nothing then.

torch compiles with CUDA graphs ("reduce-overhead"), for each batch size by itself: what it does best on small networks.
Each part (a network at one batch size, or the check of one file) leaves OUT/serve/PART.json; parts that are there are
not done again. What a provider cannot carry is written down with its reason. Exit code 2 without a GPU.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import record
import specimens

from qrobust import devices
from qrobust.bench.executed import compute_type, executed, placement
from qrobust.bench.timing import ratio_interval, statistics
from qrobust.errors import QrobustError
from qrobust.export.sessions import PROVIDERS, Bound, artifact_session, images_for, require
from qrobust.export.target import load_target
from qrobust.runs.run import Run
from qrobust.runtime import Artifact, ArtifactError, check, time_sessions
from qrobust.storage import write_json

BATCHES = (1, 32, 256)
TARGETS = {"cuda": "ort-cuda", "tensorrt": "tensorrt"}
REFERENCE = "onnxruntime, float16"
Runs = dict[str, Run]


class TorchSession:
    """A torch network with the calls of a session: numpy from the host in, logits on the host out."""

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, compiled: bool) -> None:
        self._model = model.to(devices.device(), dtype, memory_format=torch.channels_last).eval()
        self._dtype, self._call = dtype, self._model
        if compiled:
            self._call = torch.compile(self._model, mode="reduce-overhead", dynamic=False)

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]

    @torch.inference_mode()
    def run(self, _names: None, feed: dict[str, Any]) -> list[Any]:
        x = torch.from_numpy(feed["x"]).to(devices.device(), self._dtype).contiguous(memory_format=torch.channels_last)
        return [self._call(x).float().cpu().numpy()]


def trained(name: str, bits: int, runs: Runs) -> bool:
    return name in runs and bits in runs[name].recipe.bits


def artifact_of(name: str, bits: int, target: str, out: Path, runs: Runs) -> Artifact:
    if trained(name, bits, runs):
        place = out / f"{name}-qm-{bits}-{target}"
        return Artifact.load(runs[name].export(bits, load_target(target), place))
    return specimens.artifact(out, name, bits, target)


def float_network(name: str, runs: Runs) -> nn.Module:
    return copy.deepcopy(runs[name].network(32) if name in runs else specimens.network(name, 32))


def timed(name: str, provider: str, batch: int, out: Path, runs: Runs) -> dict[str, Any]:
    """Every width on one provider beside torch and onnxruntime in float16."""
    sessions, facts = {}, {}
    float_model = artifact_of(name, 32, TARGETS["cuda"], out, runs)
    sessions[REFERENCE] = artifact_session(float_model, PROVIDERS["cuda"], 0)
    for bits in specimens.WIDTHS:
        label = f"QM-{bits}"
        try:
            one = artifact_of(name, bits, TARGETS[provider], out, runs)
            nodes = executed(one, PROVIDERS[provider], 0)
            sessions[label] = artifact_session(one, PROVIDERS[provider], 0)
            facts[label] = {"executed": placement(nodes), "compute_type": compute_type(nodes)}
            facts[label]["size_bytes"] = one.manifest["files"]["model.onnx"]["size_bytes"]
        except (QrobustError, ArtifactError) as error:
            facts[label] = {"refused": str(error)}
    for dtype in (torch.float32, torch.float16):
        for compiled in (False, True):
            label = f"torch {'compiled' if compiled else 'eager'}, {str(dtype).removeprefix('torch.')}"
            sessions[label] = TorchSession(float_network(name, runs), dtype, compiled=compiled)
    return {"artifacts": facts, "results": list(rows(sessions, float_model, batch))}


def rows(sessions: dict[str, Any], float_model: Artifact, batch: int) -> Iterator[dict[str, Any]]:
    x = images_for(float_model, batch)
    bound = {label: Bound(session, x) for label, session in sessions.items()}
    # Compilers and cuDNN's choice of kernels need more than a few calls of each shape.
    times = time_sessions(bound, np.empty(0), min_seconds=5, min_runs=50, warmup=20)
    for label, mine in times.items():
        ratio = float(np.median(times[REFERENCE]) / np.median(mine))
        interval = list(ratio_interval(times[REFERENCE], mine))
        yield {"name": label, "batch": batch, **statistics(mine, batch), "speedup": ratio, "speedup_ci95": interval}


def checked(name: str, provider: str, bits: int, out: Path, runs: Runs) -> dict[str, Any]:
    """The artifact's own check, whose session is on its target's provider."""
    try:
        report = check(artifact_of(name, bits, TARGETS[provider], out, runs))
        return {"trained": trained(name, bits, runs), **report.to_dict()}
    except (QrobustError, ArtifactError) as error:
        return {"refused": str(error)}


def parts(providers: list[str], out: Path, runs: Runs) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for name, provider in itertools.product(specimens.NETWORKS, providers):
        for batch in BATCHES:
            yield f"time-{name}-{provider}-batch-{batch}", functools.partial(timed, name, provider, batch, out, runs)
        for bits in specimens.WIDTHS:
            yield f"check-{name}-{provider}-qm-{bits}", functools.partial(checked, name, provider, bits, out, runs)


def usable() -> list[str]:
    """Providers whose libraries are here. Raises ArtifactError without a GPU or CUDA's provider."""
    if not torch.cuda.is_available():
        raise ArtifactError("expected a GPU with CUDA, got none; run this on a machine that has one")
    require(PROVIDERS["cuda"])
    try:
        require(PROVIDERS["tensorrt"])
    except ArtifactError as error:
        print(f"without TensorRT: {error}")
        return ["cuda"]
    return ["cuda", "tensorrt"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--run", action="append", default=[], metavar="NETWORK=RUN", help="trained networks")
    options = parser.parse_args()
    try:
        providers = usable()
        named = dict(text.split("=", 1) for text in options.run)
        runs = {name: Run.open(Path(folder)) for name, folder in named.items()}
        for part, work in parts(providers, options.out / "artifacts", runs):
            path = options.out / "serve" / f"{part}.json"
            if not path.exists():
                print(part, flush=True)
                write_json(path, {**record.origin(), **work()})
    except (QrobustError, ArtifactError) as error:
        print("error:", error, file=sys.stderr)
        return 2
    print(f"all done: {options.out / 'serve'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
