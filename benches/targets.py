"""One network on every target: labels, activations, robustness, bytes and speed of its files, side by side.

    python benches/targets.py NETWORK ... --work PLACE [--n 1000] [--only TEXT] [--json benches/results/targets.json]

NETWORK is RUN/qm-N, or a folder of the zoo; its float network goes with it, once for all that share it. One suite of n
clean and n adversarial images is made of a network in torch, and replayed on each target's own session; then
`strong:quick` attacks that session on fewer images. Kernels of microcontrollers take a hundred times as long, and get
fewer of both. Speed is of one image, beside the 8-bit file of ort-cpu in the same run. A unit is a network on a target,
or the speed of one; what the JSON holds is not measured again, so that a stopped bench goes on. PLACE keeps suites and
artifacts, of one commit: take another for another. OpenVINO, LiteRT and, for ort-web (the file of ort-cpu on
onnxruntime-web's WASM, in Node), `npm ci --ignore-scripts` in tests/javascript are left out where they are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import javascript
import numpy as np
import record
import torch
from torch import nn

import qrobust
from qrobust import data, recipe
from qrobust.attacks import named
from qrobust.bench.measure import Candidate, Scenario, side_by_side
from qrobust.deployed.attack import Settings, attack_deployed
from qrobust.deployed.model import find_images, of_artifact
from qrobust.errors import ExportError, ParityError
from qrobust.export.artifact import JAVASCRIPT, PARITY_IMAGES, Arrays, Contents, make_suite, suite_bytes, write_artifact
from qrobust.export.parity import FORCED, parity
from qrobust.export.sessions import CPU, BareFile
from qrobust.export.target import load_target
from qrobust.runs.folder import FLOAT
from qrobust.runs.run import Run
from qrobust.runtime import OPENVINO, Artifact
from qrobust.storage import read_json, write_json
from qrobust.threat import Threat
from qrobust.zoo.entries import FLOAT as ZOO_FLOAT
from qrobust.zoo.entries import INDEX, MANIFEST, RECIPE, TORCH

ATTACK, CLEAN, SPEED = "strong:quick", "clean", "speed"
ORT, ORT_FLOAT, LITERT, MICRO, WEB = "ort-cpu", "ort-cpu-float", "litert", "litert-micro", "ort-web"
NEEDS = {OPENVINO: "openvino", LITERT: "ai_edge_litert", MICRO: "ai_edge_litert"}  # packages
TARGETS = {False: (ORT, "compact", OPENVINO, LITERT, MICRO, WEB), True: (ORT_FLOAT, LITERT)}  # by whether it is float
SHOWN = ("refused", "flips", "attacked", "results", "minutes")  # of a unit, when it is done
Unit = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """A network with its images. float_model: what a quantised one was made from; None for a float one."""

    name: str
    bits: int
    model: nn.Module
    dataset: data.Dataset
    threat: Threat
    float_model: nn.Module | None = None

    @property
    def is_float(self) -> bool:
        return self.float_model is None

    def float_network(self) -> Network:
        """The float one, named by its weights: several may be made from one."""
        assert self.float_model is not None
        digest = hashlib.sha256()
        for tensor in self.float_model.state_dict().values():
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        name = f"{self.name.partition('-w')[0].partition(' ')[0]} float {digest.hexdigest()[:6]}"
        return replace(self, name=name, bits=FLOAT, model=self.float_model, float_model=None)


def opened(place: Path) -> Network:
    """Of RUN/qm-N, or of a folder of the zoo."""
    if (place / INDEX).is_file():
        run = Run(recipe.load(str(place / RECIPE)), place)  # whose images and threat it says
        model, float_model = (qrobust.load(place / file) for file in (TORCH, ZOO_FLOAT))
        bits = int(read_json(place / MANIFEST)["bits"])
        return Network(place.name, bits, model, run.dataset, run.threat, float_model)
    run, bits = Run.open(place.parent), int(place.name.removeprefix("qm-"))
    float_model = run.network(FLOAT) if bits < FLOAT else None
    return Network(f"{run.recipe.name} QM-{bits}", bits, run.network(bits), run.dataset, run.threat, float_model)


class Bench:
    """A network's suite, artifacts and units."""

    def __init__(self, network: Network, options: argparse.Namespace) -> None:
        self.network, self.options = network, options
        self.folder = options.work / network.name.replace(" ", "-")
        self.reference_target = ORT_FLOAT if network.is_float else ORT
        network.model.eval()

    def units(self, done: dict[str, Unit]) -> Iterator[tuple[str, Unit]]:
        """What is missing, by key; of a target that cannot be written why, and nothing of one that is not here."""
        for target in TARGETS[self.network.is_float]:
            key = f"{self.network.name}/{target}"
            if key in done or self.options.only not in key:
                continue
            if reason := _missing(target):
                print(f"{key}: not measured, {reason}", flush=True)
                continue
            started = time.process_time()
            try:
                unit = self.web() if target == WEB else self.cell(target)
            except (ExportError, ParityError) as error:
                unit = {"refused": str(error)}
            yield key, {**self._about(), **unit, "minutes": (time.process_time() - started) / 60}
        key = f"{self.network.name}/{SPEED}"
        if key not in done and self.options.only in key:
            yield key, {**self._about(), "results": self.speeds()}

    def _about(self) -> Unit:
        one = self.network
        float_name = {} if one.is_float else {"float": one.float_network().name}
        return {"bits": one.bits, "eps": one.threat.eps, "norm": one.threat.norm, **float_name}

    # What is measured

    @cached_property
    def suite(self) -> Arrays:
        """n clean and n adversarial images with torch's labels."""
        path, one = self.folder / f"suite-{self.options.n}.npz", self.network
        if not path.exists():
            images, _ = data.choose(one.dataset.test, min(self.options.n, len(one.dataset.test)), 0)
            attacks = [named(ATTACK, one.threat)]
            suite = make_suite(one.model, images, attacks=attacks, threat=one.threat, seed=0)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(suite_bytes(suite))
        with np.load(path) as stored:
            return dict(stored)

    def artifact(self, target: str) -> Artifact:
        """Written if it is missing, by the target's own limits. Raises as `write_artifact`."""
        place, one = self.folder / target, self.network
        if not (place / "manifest.json").exists():
            n = self.options.slow_n if target == MICRO else self.options.n
            suite = {name: array[:n] for name, array in self.suite.items()}
            contents = Contents(f"{one.name} on {target}", one.bits, 0, one.threat, {"name": one.name}, suite, {})
            write_artifact(place, one.model, one.dataset, load_target(target), contents)
        return Artifact.load(place)

    @cached_property
    def labels(self) -> dict[str, Any]:
        """onnxruntime's, by set of the suite."""
        artifact = self.artifact(self.reference_target)
        return _labels(artifact, artifact.session(threads=1))

    def cell(self, target: str) -> Unit:
        """A network on a target's own session."""
        artifact = self.artifact(target)
        session = artifact.session(threads=1)
        found, stored = _labels(artifact, session), {name: artifact.suite[f"label.{name}"] for name in artifact.sets}
        y = artifact.suite["y"]
        return {
            "n": len(y),
            "size_bytes": len(artifact.tflite or artifact.model),
            "flips": {name: int((found[name] != self.labels[name][: len(y)]).sum()) for name in found},
            "flips of torch's": {name: int((found[name] != stored[name]).sum()) for name in found},
            "right in torch": {name: record.packed(stored[name] == y) for name in found},
            "right": {name: record.packed(found[name] == y) for name in found},
            "activations": self._activations(artifact, target),
            "kernels": artifact.manifest["metrics"].get("after_kernels"),
            "attacked": self._attacked(artifact, target),
        }

    def _activations(self, artifact: Artifact, target: str) -> Unit:
        """Each layer on torch's integers: the share of activations that differ, and by how many steps at most."""
        found = artifact.manifest["parity"]
        if target == OPENVINO:
            images = data.choose(self.network.dataset.test, PARITY_IMAGES, 0)[0].x[:FORCED].float() / 255
            found = parity(self.network.model, artifact.model, images, runtime=OPENVINO, forced=True).to_dict()
        layers = {one["name"]: [one["share"], one["largest"]] for one in found["layers"]}
        most = max((largest for _, largest in layers.values()), default=0)
        return {"share": found["share"], "most steps": most, "logits moved": found["change"], "layers": layers}

    def _attacked(self, artifact: Artifact, target: str) -> Unit:
        """What is right of the same images in torch, replayed, and when the session itself is attacked."""
        deployed = of_artifact(artifact)
        n = min(self.options.slow_attacked if target == MICRO else self.options.attacked, len(artifact.suite["y"]))
        found = attack_deployed(deployed, find_images(deployed), Settings((ATTACK,), n=n))
        shares = {place: one[ATTACK] for place, one in found["gap"].items()}
        return {"attack": ATTACK, "n": n, **shares, "flags": [flag["name"] for flag in found["flags"]]}

    def web(self) -> Unit:
        """The file of ort-cpu on onnxruntime-web's WASM: replayed by its own verify.mjs, on which no attack is run."""
        folder, result = self.artifact(ORT).path.resolve(), (self.folder / "web.json").resolve()
        command = ["node", str(JAVASCRIPT / "verify.mjs"), str(folder), "--runtime", "web", "--queries", "50"]
        done = subprocess.run([*command, "--json", str(result)], capture_output=True, text=True, cwd=javascript.NODE)
        if done.returncode not in (0, 1):
            return {"refused": done.stderr.strip().splitlines()[-1].removeprefix("error: ")}
        report, suite = read_json(result), self.suite
        n, sets = len(suite["y"]), [name for name in report["outcomes"] if f"label.{name}" in suite]
        flips = next(one["measured"] for one in report["verdicts"] if one["name"] == "label_flips")
        return {
            "n": n,
            "size_bytes": (folder / "model.onnx").stat().st_size,
            "flips of torch's": {"all": round(flips * n * len(sets))},
            "right in torch": {name: record.packed(suite[f"label.{name}"] == suite["y"]) for name in sets},
            "right": {name: report["outcomes"][name] for name in sets},
        }

    def speeds(self) -> dict[str, Unit]:
        """By target against the reference's file, one image: the slow ones in a run of their own beside it."""
        first = self.reference_target
        found = {name: self._candidate(name) for name in TARGETS[self.network.is_float] if name != WEB}
        known = {name: one for name, one in found.items() if one is not None}
        if not self.network.is_float:
            known[ORT_FLOAT] = self._float_file()
        fast = [one for name, one in known.items() if name != MICRO]
        groups = [fast, [known[first], known[MICRO]]] if MICRO in known else [fast]
        scenario = Scenario(batch=(1,), threads=(1,), min_seconds=self.options.seconds, min_runs=self.options.min_runs)
        results: dict[str, Unit] = {}
        for group in groups:
            for row in side_by_side(group, scenario)["results"]:
                kept = {key: row[key] for key in ("p50_ms", "speedup", "speedup_ci95", "size_bytes")}
                results.setdefault(row["name"], kept)
        return results

    def _candidate(self, target: str) -> Candidate | None:
        if _missing(target):
            return None
        try:
            artifact = self.artifact(target)
        except (ExportError, ParityError):  # its own unit says why
            return None
        return Candidate(target, artifact, str(artifact.manifest["target"]["provider"]))

    def _float_file(self) -> Candidate:
        """Bare, so that the first candidate is the reference."""
        path, float_model = self.folder / "float.onnx", self.network.float_model
        if not path.exists():
            assert float_model is not None
            images = data.to_unit(self.network.dataset.test.take(slice(0, 32)).x, torch.device("cpu"))
            qrobust.export_model(float_model, images, target=ORT_FLOAT, path=path)
        return Candidate(ORT_FLOAT, BareFile(path), CPU)


def _missing(target: str) -> str:
    """Why a target cannot be measured here; "" if it can."""
    if target == WEB:
        return "" if (javascript.NODE / "node_modules" / "onnxruntime-web").is_dir() else "no onnxruntime-web for Node"
    package = NEEDS.get(target)
    return f"no package {package}" if package and not importlib.util.find_spec(package) else ""


def _labels(artifact: Artifact, session: Any) -> dict[str, Any]:
    return {name: artifact.logits(artifact.suite[f"x.{name}"], session).argmax(1) for name in artifact.sets}


def networks(places: list[Path]) -> Iterator[Network]:
    """Each, behind its float one if that has not been seen."""
    seen = set()
    for place in places:
        one = opened(place)
        if not one.is_float:
            source = one.float_network()
            if source.name not in seen:
                seen.add(source.name)
                yield source
        yield one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--n", type=int, default=1000, help="clean images, and adversarial ones, that are replayed")
    parser.add_argument("--attacked", type=int, default=100, help="images that are attacked on a session")
    parser.add_argument("--slow-n", type=int, default=300, help="as --n, of litert-micro")
    parser.add_argument("--slow-attacked", type=int, default=20, help="as --attacked, of litert-micro")
    parser.add_argument("--seconds", type=float, default=8.0, help="least time of a network's speeds")
    parser.add_argument("--min-runs", type=int, default=100)
    parser.add_argument("--only", default="", metavar="TEXT", help="units whose name has this text in it")
    parser.add_argument("--json", type=Path, default=record.ROOT / "benches" / "results" / "targets.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = record.origin() | {"attack": ATTACK, "units": {}}
    if options.json.exists():
        content["units"] = read_json(options.json)["units"]
    for network in networks(options.networks):
        for key, unit in Bench(network, options).units(content["units"]):
            content["units"][key] = {"commit": content["commit"], **unit}
            write_json(options.json, content)
            shown = {name: unit[name] for name in SHOWN if name in unit}
            print(f"{key}: {shown}", flush=True)


if __name__ == "__main__":
    main()
