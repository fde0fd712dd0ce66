"""Deployed networks beside their float twins and OpenVINO: speed, size, share of the processor's int8 peak; one run.

    python benches/deploy.py [FOLDER] [--json benches/results/deploy.json]

ResNet-20 and ResNet-18 for CIFAR's images, one thread, batch 1 and 32, calls in turn. FOLDER keeps the artifacts.
OpenVINO runs the 8-bit file of ours, if it is installed. Exit code 1 if a goal is missed: each is judged by its worst
case over widths and batch sizes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import specimens

from qrobust import export_model
from qrobust.bench import Contestant, Scenario, race
from qrobust.bench.sessions import OPENVINO, PROVIDERS
from qrobust.storage import write_json

# At least: times faster than float, of OpenVINO's speed, times smaller than float at 4 and 2 bits, share of the peak.
GOALS = {
    "resnet20": {"speedup": 2.3, "against OpenVINO": 1.0, "size QM-4": 6.5, "size QM-2": 10.5, "int8 peak": 0.5},
    "resnet18": {"speedup": 3.5, "against OpenVINO": 1.0, "size QM-4": 7.6, "size QM-2": 14.0, "int8 peak": 0.7},
}
RIVAL = "OpenVINO, QM-8"


def case(name: str, folder: Path, scenario: Scenario) -> dict[str, Any]:
    artifacts = {bits: specimens.artifact(folder, name, bits) for bits in specimens.WIDTHS}
    contestants = [Contestant(f"QM-{bits}", one, PROVIDERS["cpu"]) for bits, one in artifacts.items()]
    if importlib.util.find_spec("openvino"):
        contestants.append(Contestant(RIVAL, artifacts[8], OPENVINO))
    result = race(contestants, scenario)
    measured = figures(result)
    goals = {
        goal: {"at_least": limit, "measured": measured[goal], "held": measured[goal] >= limit}
        for goal, limit in GOALS[name].items()
        if goal in measured
    }
    return {"network": name, "goals": goals, "compact_bytes": compact(name, folder), **result}


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What the goals are about, each at its worst."""
    rows = {(row["name"], row["batch"]): row for row in result["results"]}
    ours = [row for (name, _), row in rows.items() if name in ("QM-8", "QM-4", "QM-2")]
    sizes = {name: facts["size_bytes"] for name, facts in result["artifacts"].items()}
    measured = {
        "speedup": min(row["speedup"] for row in ours),
        "size QM-4": sizes["QM-32"] / sizes["QM-4"],
        "size QM-2": sizes["QM-32"] / sizes["QM-2"],
        "int8 peak": min(row["int8_peak_share"] for row in ours),
    }
    rivals = [row for (name, _), row in rows.items() if name == RIVAL]
    if rivals:
        measured["against OpenVINO"] = min(row["p50_ms"] / rows["QM-8", row["batch"]]["p50_ms"] for row in rivals)
    return measured


def compact(name: str, folder: Path) -> dict[str, int]:
    """Sizes of the smallest files, which onnxruntime runs slowly."""
    sizes = {}
    for bits in specimens.WIDTHS:
        path = folder / f"{name}-qm-{bits}-compact.onnx"
        export_model(specimens.network(name, bits), specimens.images(1) / 255, target="compact", path=path)
        sizes[f"QM-{bits}"] = path.stat().st_size
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--networks", nargs="+", choices=specimens.NETWORKS, default=specimens.NETWORKS)
    parser.add_argument("--seconds", type=float, default=30.0, help="least time a batch size")
    parser.add_argument("--min-runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenario = Scenario(batch=(1, 32), threads=(1,), min_seconds=options.seconds, min_runs=options.min_runs)
    cases = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.networks:
            cases.append(case(name, options.folder or Path(scratch), scenario))
            for goal, judged in cases[-1]["goals"].items():
                word = "held" if judged["held"] else "missed"
                print(
                    f"{name} {goal:<18}{judged['measured']:8.2f}  at least {judged['at_least']:5.2f}  {word}",
                    flush=True,
                )
            if options.json:
                write_json(options.json, {"cases": cases})
    return 0 if all(judged["held"] for one in cases for judged in one["goals"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
