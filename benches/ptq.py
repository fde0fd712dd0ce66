"""Quantisation without training beside training: what calibrators, bias correction and AdaRound are worth under attack.

    python benches/ptq.py RUN ... [--bits 8 6 4] [--activation-bits 8] [--n 500] [--json benches/results/ptq.json]

RUN is a run whose float network is quantised, on its images and under its threat; widths that it has trained stand
beside. Every network is evaluated clean and under the attack on the same images, those of the whole grid by
`strong:quick`, and by `strong` with least squared error. A unit (network, bits, calibrator, repair) that the JSON
holds is not done again, so that a stopped bench goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from torch import nn

from qrobust import data, devices, quant
from qrobust.evaluation import evaluate, predict
from qrobust.quant.quantizer import CALIBRATORS
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json

QUICK, STRONG = "strong:quick", "strong"
REPAIRS = {
    "nearest": quant.PtqConfig(bias_correction=False),
    "bias": quant.PtqConfig(),
    "adaround": quant.PtqConfig(adaround=100),
}
CALIBRATED, BATCH = 512, 64  # images, and how many at once
Unit = dict[str, Any]


class Bench:
    """A run's float network, its images, and the units that the JSON holds."""

    def __init__(self, place: Path, options: argparse.Namespace, units: dict[str, Unit]) -> None:
        self.run, self.options, self.units = Run.open(place), options, units
        self.name = self.run.recipe.name.rpartition("/")[2]
        self.float_model = self.run.network(32).eval()
        images, _ = data.choose(self.run.dataset.train, CALIBRATED, self.run.recipe.seed)
        self.calibration = torch.split(data.to_unit(images.x, devices.device(), channels_last=True), BATCH)

    def networks(self) -> Iterator[tuple[str, nn.Module | None, quant.QuantConfig | None, quant.PtqConfig | None]]:
        """Key of a unit, and a network or how it is made."""
        yield f"{self.name}/float", self.float_model, None, None
        for bits in self.run.recipe.bits[1:]:
            yield f"{self.name}/trained {bits}", self.run.network(bits), None, None
        for bits in self.options.bits:
            for calibrator in CALIBRATORS:
                for repair, settings in REPAIRS.items():
                    config = quant.QuantConfig(
                        bits, activation_bits=self.options.activation_bits, fat="none", calibrator=calibrator
                    )
                    yield f"{self.name}/{bits}/{calibrator}/{repair}", None, config, settings

    def measure(self) -> Iterator[None]:
        """What is missing, a unit at a time."""
        for key, model, config, settings in self.networks():
            if key in self.units:
                continue
            started = time.process_time()
            if model is None:
                assert config is not None
                assert settings is not None
                model, errors = quant.ptq(self.float_model, config, calibration=self.calibration, settings=settings)
                made = {"seconds": time.process_time() - started, "layers": [[e.nearest, e.left] for e in errors]}
            else:
                made = {}
            whole = config is None or config.calibrator == "mse"
            self.units[key] = made | self._judged(model.eval(), STRONG if whole else QUICK)
            print(f"{key}: {self.units[key]}"[:200], flush=True)
            yield

    def _judged(self, model: nn.Module, attack: str) -> Unit:
        test, options = self.run.dataset.test, self.options
        outcomes = evaluate(
            model, test, attacks=[QUICK, *([attack] if attack != QUICK else [])], threat=self.run.threat, n=options.n
        )
        images = data.choose(test, options.n, 0)[0]
        x = data.to_unit(images.x, devices.device(), channels_last=True)
        labels = [torch.cat([predict(one, part) for part in x.split(250)]) for one in (self.float_model, model)]
        masks = {name: record.packed(np.asarray(mask)) for name, mask in outcomes.correct.items()}
        size = quant.cost(model, x[:1]).size_bytes
        return {"n": outcomes.n, "flips": int((labels[0] != labels[1]).sum()), "size_bytes": size, "right": masks}


def main() -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 6, 4])
    parser.add_argument("--activation-bits", type=int, default=8)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--json", type=Path, default=record.ROOT / "benches" / "results" / "ptq.json")
    options = parser.parse_args()
    origin, units = record.origin(), read_json(options.json)["units"] if options.json.exists() else {}
    for place in options.runs:
        for _ in Bench(place, options, units).measure():
            write_json(options.json, origin | {"activation_bits": options.activation_bits, "units": units})


if __name__ == "__main__":
    main()
