"""The same verdict in JavaScript: verify.mjs beside verify.py on sound artifacts and on planted ones.

    python benches/javascript.py RUN FOLDER [--json benches/results/javascript.json]

RUN: a finished run of the recipe `digits`. FOLDER: artifacts, kept; rows that the JSON holds are not measured again.
Alike: exit code, verdicts, p-values within 1e-12, every replayed image. Square draws from another generator, so that
its own numbers may differ: they are written down, and its verdict counts in the exit code. Needs Node and
`npm ci --ignore-scripts` in tests/javascript.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faults
import numpy as np
import record
from faults import Plant

from qrobust.attacks import named
from qrobust.export.artifact import JAVASCRIPT, Contents, make_suite, write_artifact
from qrobust.export.target import load_target
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json

N = 300  # images of a suite
NODE = Path(__file__).resolve().parent.parent / "tests" / "javascript"
ATTACKS = ("pgd-20", "cw-inf-20x2")
FLOATS, BYTES = "float32-nchw", "uint8-nhwc"
SOUND = [
    *((bits, target, FLOATS, 0) for bits in (4, 2, 32) for target in ("ort-cpu", "ort-cpu-int8", "ort-cpu-float")),
    *((bits, target, BYTES, 0) for bits in (4, 2, 32) for target in ("ort-cpu", "ort-cpu-int8")),
    *((bits, "compact", FLOATS, 0) for bits in (4, 2)),
    *((4, "ort-cpu", FLOATS, seed) for seed in (1, 2, 3)),
]


def sound(run: Run, folder: Path) -> Iterator[Path]:
    """Artifacts of one run: widths, targets, what goes in, seeds of the suite's attacks."""
    attacks = [named(name, run.threat) for name in ATTACKS]
    images = run.dataset.test.take(slice(0, N))
    for bits, target, kind, seed in SOUND:
        place = folder / f"qm-{bits}-{target}-{kind}-{seed}"
        if not place.exists():
            network = run.network(bits)
            suite = make_suite(
                network, images, attacks=attacks, threat=run.threat, seed=seed, float_model=run.float_model(bits)
            )
            contents = Contents(place.name, bits, seed, run.threat, {}, suite, {}, kind)
            write_artifact(place, network, run.dataset, load_target(target), contents)
        yield place


# What is planted


def table(*path: Any) -> Plant:
    """Another value in the manifest; ... for none."""

    def plant(folder: Path) -> None:
        place = folder / "manifest.json"
        manifest = read_json(place)
        part = manifest
        for key in path[:-2]:
            part = part[key]
        if path[-1] is ...:
            del part[path[-2]]
        else:
            part[path[-2]] = path[-1]
        write_json(place, manifest)

    return plant


def file(name: str, change: Any, *, sealed: bool = False) -> Plant:
    """Other bytes of a file; sealed: the manifest agrees with them."""

    def plant(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        if sealed:
            faults.seal(folder)

    return plant


def suite(change: Any) -> Plant:
    """Other arrays in the suite, by `change`; the manifest agrees with the file."""

    def plant(folder: Path) -> None:
        with np.load(folder / "suite.npz") as stored:
            arrays = dict(stored)
        change(arrays)
        np.savez_compressed(folder / "suite.npz", **arrays)
        faults.seal(folder)

    return plant


def swap_labels(arrays: dict[str, Any]) -> None:
    """Of two classes, in what the network is said to have answered and in the truth alike."""
    for name in arrays:
        if name == "y" or name.startswith("label."):
            old = arrays[name].copy()
            arrays[name][old == 0], arrays[name][old == 1] = 1, 0


def flipped(data: bytes) -> bytes:
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


def planted(run: Run) -> dict[str, Plant]:
    """Of a sound artifact of 4 bits, one fault each."""
    first, last = faults.first_scale(run), faults.scales(faults.graph(run))[-1]
    return {
        "weights changed": faults.flip_weights(0.01, 0),
        "weights changed a little": faults.flip_weights(1e-3, 1),
        "a scale 20 % off": faults.stretch(first, 20.0),
        "the last scale 50 % off": faults.stretch(last, 50.0),
        "activations clipped at 2 bits": faults.clip_activations(2),
        "normalised twice": faults.normalise_twice(run),
        "int8 after training": faults.model_file(faults.after_training(run)),
        "labels of two classes swapped": suite(swap_labels),
        "a stored attack that found nothing": suite(lambda arrays: arrays.update({"x.pgd-20": arrays["x.clean"] ^ 1})),
        "images outside the ball": suite(lambda arrays: arrays.update({"x.pgd-20": 255 - arrays["x.clean"]})),
        "an array too many": suite(lambda arrays: arrays.update(more=arrays["y"])),
        "model cut": file("model.onnx", lambda data: data[:-1000]),
        "model cut, digest anew": file("model.onnx", lambda data: data[:-1000], sealed=True),
        "suite cut, digest anew": file("suite.npz", lambda data: data[:-1000], sealed=True),
        "a bit of the suite": file("suite.npz", flipped),
        "a bit of the suite, digest anew": file("suite.npz", flipped, sealed=True),
        "wrong digest": table("files", "model.onnx", "sha256", "0" * 64),
        "no alpha": table("statistics", "alpha", ...),
        "a loose limit": table("limits", "robust_drop", 0.5),
        "a provider that is not there": table("target", "provider", "NoneExecutionProvider"),
    }


# Both programs


def in_python(folder: Path, result: Path) -> dict[str, Any]:
    command = [sys.executable, "-I", str(folder / "verify.py"), str(folder), "--json", str(result)]
    return read(subprocess.run(command, capture_output=True, text=True), result)


def in_node(folder: Path, result: Path) -> dict[str, Any]:
    command = ["node", str(JAVASCRIPT / "verify.mjs"), str(folder), "--json", str(result)]
    return read(subprocess.run(command, capture_output=True, text=True, cwd=NODE), result)


def read(done: subprocess.CompletedProcess[str], result: Path) -> dict[str, Any]:
    report = json.loads(result.read_text()) if done.returncode in (0, 1) else {}
    return {"exit": done.returncode, "line": done.stderr.strip().splitlines()[-1:], "report": report}


def compared(python: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """A row: both exit codes, what each broke, and whether all that has to be alike is."""
    row: dict[str, Any] = {"exit": {"python": python["exit"], "node": node["exit"]}}
    if python["report"] and node["report"]:
        reports = [python["report"], node["report"]]
        verdicts = [{v["name"]: v for v in report["verdicts"]} for report in reports]
        names = [name for name in verdicts[0] if "square" not in name]
        p_values = [
            (table[name]["p_value"] for name in names if table[name]["p_value"] is not None) for table in verdicts
        ]
        outcomes = [{k: v for k, v in report["outcomes"].items() if k != "square"} for report in reports]
        row |= {
            "broken": [name for name in verdicts[0] if not verdicts[0][name]["passed"]],
            "same_broken": all(verdicts[0][name]["passed"] == verdicts[1][name]["passed"] for name in verdicts[0]),
            "p_value_difference": max(abs(a - b) for a, b in zip(*p_values, strict=True)),
            "same_images": outcomes[0] == outcomes[1],
            "square": [report["accuracy"]["square"] for report in reports],
        }
        alike = row["same_broken"] and row["same_images"] and row["p_value_difference"] <= 1e-12
    else:
        row |= {"lines": [*python["line"], *node["line"]]}
        alike = True
    return row | {"alike": alike and python["exit"] == node["exit"]}


def rows(run: Run, folder: Path, done: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every artifact, by name, that is not done yet."""
    results = folder / "python.json", folder / "node.json"
    good = list(sound(run, folder / "sound"))
    for place in good:
        if f"sound: {place.name}" not in done:
            yield f"sound: {place.name}", compared(in_python(place, results[0]), in_node(place, results[1]))
    for name, plant in planted(run).items():
        if f"planted: {name}" in done:
            continue
        copy = folder / "planted"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(good[0], copy)
        plant(copy)
        row = compared(in_python(copy, results[0]), in_node(copy, results[1]))
        yield f"planted: {name}", json.loads(json.dumps(row).replace(str(folder), "FOLDER"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benches/results/javascript.json"))
    options = parser.parse_args()
    result = read_json(options.json) if options.json.exists() else {**record.origin(), "rows": {}}
    lock = read_json(NODE / "package-lock.json")["packages"]
    result["node"] = {name: lock[f"node_modules/{name}"]["version"] for name in ("onnxruntime-node", "onnxruntime-web")}
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, row in rows(Run.open(options.run), options.folder, result["rows"]):
        result["rows"][name] = row
        write_json(options.json, result)
        print("alike " if row["alike"] else "DIFFER", *row["exit"].values(), name, row.get("broken", ""), flush=True)
    counted = {
        kind: [row["alike"] for name, row in result["rows"].items() if name.startswith(kind)]
        for kind in ("sound", "planted")
    }
    result["alike"] = {kind: f"{sum(alike)} of {len(alike)}" for kind, alike in counted.items()}
    write_json(options.json, result)
    print(result["alike"])


if __name__ == "__main__":
    main()
