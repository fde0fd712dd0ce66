"""Quantisation without training beside training: what calibrators, repairs, images and allocated bits are worth.

    python benches/ptq.py RUN ... [--bits 8 6 4] [--n 300] [--only TEXT] [--json benches/results/ptq.json]

RUN is a run whose float network is quantised, on its images and under its threat; widths that it has trained stand
beside. All is measured on the same n test images, clean and under attack, and by flips of the file's labels against
torch's. A unit is a network and an attack, and is not measured again where the JSON holds it, so that a stopped bench
goes on. The whole grid is attacked by `strong:quick`; with least squared error, and what is compared, by `strong` too,
last. --only: units whose name has this text in it.

    RUN/float                      the float network
    RUN/trained N                  QM-N as the run trained it
    RUN/N/CALIBRATOR/REPAIR        N bits, 8-bit activations, from 512 images
    RUN/N/mse/both/IMAGES          from another number of them
    RUN/N/mse/equalized            of networks with depthwise layers: both, behind cross-layer equalisation
    RUN/N/mse/REPAIR-per-tensor    of these too: `both` and `equalized`, with one scale a layer
    RUN/allocated B, uniform B     bits by layer within B of the bytes at 8 bits, by margin, or evenly but for the first
                                   and last layers, which keep 8
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from torch import Tensor, nn

from qrobust import data, devices, quant
from qrobust.evaluation import evaluate, predict
from qrobust.export.sessions import CPU, open_session
from qrobust.export.target import load_target
from qrobust.export.write import INPUT, lower
from qrobust.runs.allocation import Request as Budgeted
from qrobust.runs.allocation import allocate
from qrobust.runs.posttraining import Request, recipe_for
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json

QUICK, STRONG = "strong:quick", "strong"
CALIBRATORS = ("min-max", "percentile-99.99", "mse")
REPAIRS = {
    "nearest": quant.PtqConfig(bias_correction=False),
    "bias": quant.PtqConfig(),
    "adaround": quant.PtqConfig(bias_correction=False, adaround=100),
    "both": quant.PtqConfig(adaround=100),
}
EQUALIZED = quant.PtqConfig(adaround=100, equalize=True)
CALIBRATED, OTHERS, BATCH = 512, (64, 2048), 64  # images, other numbers of them, and how many at once
BUDGETS, WIDTHS, MARGINS = (0.4, 0.5, 0.6), (2, 3, 4, 6), 128  # of the bytes at 8 bits; bits of a layer; images
Unit = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A network of the bench. config: how it is made of the float one, with settings, from so many images; None for
    one that stands. attacks: it is measured under. against: the unit that it is compared with, image by image.
    """

    name: str
    attacks: tuple[str, ...]
    config: quant.QuantConfig | None = None
    settings: quant.PtqConfig = REPAIRS["both"]
    images: int = CALIBRATED
    against: str = "float"


def subjects(bits: list[int], trained: tuple[int, ...], depthwise: bool) -> Iterator[Subject]:
    """All but those of allocated bits, the cheap ones first. depthwise: whether the network has such layers."""
    yield Subject("float", (QUICK, STRONG))
    for width in trained:
        yield Subject(f"trained {width}", (QUICK, STRONG))
    for width in bits:
        for calibrator in CALIBRATORS:
            for repair, settings in REPAIRS.items():
                whole = calibrator == "mse" and repair in ("nearest", "both")
                attacks = (QUICK, STRONG) if whole else (QUICK,)
                yield Subject(f"{width}/{calibrator}/{repair}", attacks, _config(width, calibrator), settings)
        for images in OTHERS:
            yield Subject(f"{width}/mse/both/{images}", (QUICK,), _config(width), images=images)
        if depthwise:
            yield Subject(f"{width}/mse/equalized", (QUICK,), _config(width), EQUALIZED)
            one_scale, both = replace(_config(width), per_channel=False), (QUICK, STRONG)
            without = f"{width}/mse/both-per-tensor"
            yield Subject(without, both, one_scale)
            yield Subject(f"{width}/mse/equalized-per-tensor", both, one_scale, EQUALIZED, against=without)


def _config(bits: Any, calibrator: str = "mse") -> quant.QuantConfig:
    return quant.QuantConfig(bits, activation_bits=8, fat="none", calibrator=calibrator)


def has_depthwise(model: nn.Module) -> bool:
    """Whether a convolution reads one channel for each that it gives."""
    return any(isinstance(one, nn.Conv2d) and one.groups == one.in_channels > 1 for one in model.modules())


def evenly(sizes: Mapping[str, int], most: float) -> dict[str, int]:
    """Widths by layer within so many bytes: all the same, and what is left spent on bits more, first layers first.

    sizes: weights by layer.

    >>> evenly({"a": 8, "b": 8, "c": 8}, 14)
    {'a': 5, 'b': 5, 'c': 4}
    """

    def spent(widths: Mapping[str, int]) -> int:
        return sum(-(-count * widths[one] // 8) for one, count in sizes.items())

    found = dict.fromkeys(sizes, max(bits for bits in range(1, 9) if spent(dict.fromkeys(sizes, bits)) <= most))
    while True:
        before = found
        for name in sizes:
            wider = found | {name: min(found[name] + 1, 8)}
            found = wider if spent(wider) <= most else found
        if found == before:
            return found


class Bench:
    """A run's float network, its images, and the units that the JSON holds."""

    def __init__(self, place: Path, options: argparse.Namespace, content: dict[str, Any]) -> None:
        self.place, self.run, self.options, self.content = place, Run.open(place), options, content
        self.name = self.run.recipe.name.rpartition("/")[2]
        self.float_model = self.run.network(32).eval()
        self.chosen = data.choose(self.run.dataset.test, options.n, 0)[0]
        self.x = data.to_unit(self.chosen.x, devices.device(), channels_last=True)

    def measure(self) -> Iterator[None]:
        """What is missing, a unit at a time: all under the cheap attack, then bits by layer, then the other attack."""
        plain = list(subjects(self.options.bits, self.run.recipe.bits[1:], has_depthwise(self.float_model)))
        yield from self._under(QUICK, plain)
        allocated = list(self._allocated())
        yield
        for attack in (QUICK, STRONG):
            yield from self._under(attack, [*plain, *allocated])

    def _under(self, attack: str, found: list[Subject]) -> Iterator[None]:
        for subject in found:
            key = f"{self.name}/{subject.name}"
            unit = self.content["units"].setdefault(key, {})
            if self.options.only not in key or attack not in subject.attacks or attack in unit.get("right", {}):
                continue
            model, made = self._made(subject)
            unit |= made | self._judged(model.eval(), attack, unit.get("right", {}))
            unit |= {"against": subject.against, "commit": self.content["commit"]}
            print(f"{key}, {attack}: {unit}"[:200], flush=True)
            yield

    def _made(self, subject: Subject) -> tuple[nn.Module, Unit]:
        """A network, and in minutes of one core what it took, or its training."""
        if subject.config is None:
            bits = int(subject.name.partition("trained ")[2] or 32)
            trained = read_json(self.run.files.network(bits).training)
            minutes = trained["seconds"] / 60 if trained["epochs"] else None  # None: weights that were given
            return self.run.network(bits), {"minutes": minutes, "trained": True}
        images, _ = data.choose(self.run.dataset.train, subject.images, self.run.recipe.seed)
        batches = torch.split(data.to_unit(images.x, devices.device(), channels_last=True), BATCH)
        started = time.process_time()
        model, _ = quant.ptq(self.float_model, subject.config, calibration=batches, settings=subject.settings)
        minutes = (time.process_time() - started) / 60
        return model, {"minutes": minutes, "images": len(images)}

    def _judged(self, model: nn.Module, attack: str, before: Unit) -> Unit:
        started = time.process_time()
        outcomes = evaluate(
            model, self.run.dataset.test, attacks=[attack], threat=self.run.threat, n=self.options.n, seed=0
        )
        masks = {name: record.packed(np.asarray(mask)) for name, mask in outcomes.correct.items()}
        return {
            "n": outcomes.n,
            "size_bytes": quant.cost(model, self.x[:1]).size_bytes,
            "flips": self._flips(model),
            "right": before | masks,
            f"minutes of {attack}": (time.process_time() - started) / 60,
        }

    def _flips(self, model: nn.Module) -> int:
        """Images that the file labels otherwise than torch."""
        target = load_target("ort-cpu" if any(True for _ in quant.quantizers(model)) else "ort-cpu-float")
        session = open_session(lower(model, self.x[:1], target), target.session.graph_optimization_level, CPU)
        parts = self.x.split(100)
        in_torch = torch.cat([predict(model, part) for part in parts]).cpu()
        files = [session.run(None, {INPUT: _array(part)})[0].argmax(1) for part in parts]
        return int((np.concatenate(files) != in_torch.numpy()).sum())

    def _allocated(self) -> Iterator[Subject]:
        """Bits by layer within each budget, by the verb itself, and evenly; sensitivities go into the JSON."""
        if not any(self.options.only in f"{self.name}/{kind} {share}" for kind in ("allocated", "uniform")
                   for share in BUDGETS):  # fmt: skip
            return
        settings = recipe_for(
            Request(str(self.place)), ("threads=1",), name=f"{self.name}-bits", quant={"ptq": {}, "activation_bits": 8}
        )
        for share in BUDGETS:
            asked = Budgeted(f"{share}x", WIDTHS, MARGINS)
            found = allocate(settings, self.options.work / f"{self.name}-bits", asked)
            sensitivities = found["sensitivities"]
            self.content["sensitivities"][self.name] = [
                [one["layer"], one["bits"], one["margin"], one["clean_accuracy"]] for one in sensitivities
            ]
            sizes = {name: layer.weights for name, layer in quant.cost(self.float_model, self.x[:1]).layers.items()}
            edges = {name: sizes.pop(name) for name in found["edges"]}  # which keep 8 bits, a byte a weight
            even = evenly(sizes, found["budget"]["most"] - sum(edges.values()))
            both = (QUICK, STRONG)
            yield Subject(f"uniform {share}", both, _config({quant.EVERY: 8, **even}))
            yield Subject(
                f"allocated {share}", both, _config({quant.EVERY: 8, **found["bits"]}), against=f"uniform {share}"
            )


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(x.cpu().numpy())


def main() -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where allocation keeps what it measured")
    parser.add_argument("--json", type=Path, default=record.ROOT / "benches" / "results" / "ptq.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = record.origin() | {"units": {}, "sensitivities": {}}
    if options.json.exists():
        before = read_json(options.json)
        content |= {key: before[key] for key in ("units", "sensitivities")}
    for place in options.runs:
        for _ in Bench(place, options, content).measure():
            write_json(options.json, content | {"units": {key: one for key, one in content["units"].items() if one}})


if __name__ == "__main__":
    main()
