"""Steps of adversarial and quantisation-aware training on a GPU: recorded as CUDA graphs, and launched one by one.

    python benches/gpu/steps.py [--steps 25] [--json F]

ResNet-20, PGD-7, random images; the same start, images and noise in both ways, so their losses can be compared. The
first five steps, in which a step is recorded, are not timed. Exit code 2 without a GPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import record

from qrobust import devices, models
from qrobust.quant import QuantConfig, parameter_groups, quantize
from qrobust.recipe import Data, Schedule, Training
from qrobust.storage import write_json
from qrobust.threat import Threat
from qrobust.train import Job
from qrobust.train.step import Stepper

# Kind (bits and FAT), precision, batch.
CASES = (
    ("float", "bf16", 256), ("float", "bf16", 512), ("float", "tf32", 256), ("float", "float32", 256),
    ("4 paper", "tf32", 256), ("4 none", "tf32", 512), ("2 normalised", "tf32", 512),
)  # fmt: skip
WARM = 5


def images(n: int) -> tuple[Tensor, Tensor]:
    generator = devices.generator(1)
    x = torch.rand(n, 3, 32, 32, generator=generator).to(devices.device())
    y = torch.randint(10, (n,), generator=generator).to(devices.device())
    return x.contiguous(memory_format=torch.channels_last), y


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = devices.on_device(models.build("resnet20", in_channels=3, classes=10))
    if kind == "float":
        return model
    bits, fat = kind.split()
    return devices.on_device(quantize(model, QuantConfig(int(bits), fat=fat), calibration=[images(256)[0]]))


def stepper(model: nn.Module) -> Stepper:
    training = Training.model_validate({"epochs": 1, "attack": {"steps": 7, "step_size": 2 / 255}})
    job = Job("bench", "", Path(), Schedule(epochs=1), training, Data(name="cifar10"), Threat("linf", 8 / 255), 0)
    optimizer = torch.optim.SGD(parameter_groups(model, lr=0.02, weight_decay=5e-4), momentum=0.9)
    return Stepper(model, optimizer, None, job, 10)


def run(kind: str, precision: str, size: int, recorded: bool, steps: int) -> dict[str, Any]:
    """Milliseconds of a step and the losses."""
    model = network(kind)
    worker, generator, (x, y), losses = stepper(model), devices.generator(0), images(size), []
    for part in (worker._attacked, worker._descended):
        part.possible = recorded
    with devices.precision(precision):
        for index in range(steps):
            if index == WARM:
                torch.cuda.synchronize()
                started = time.perf_counter()
            losses.append(worker.step(model, x, y, 0, generator)[0])
        torch.cuda.synchronize()
    ms = (time.perf_counter() - started) / (steps - WARM) * 1e3
    told = {"ms": round(ms, 2), "images_per_second": round(size / ms * 1e3)}
    return told | {"recorded": bool(worker._descended.recorded), "losses": [float(loss) / size for loss in losses]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: expected a GPU with CUDA, got none; run this on a machine that has one", file=sys.stderr)
        raise SystemExit(2)
    cases = []
    for case in CASES:
        kind, precision, size = case
        found = {way: run(*case, way == "recorded", options.steps) for way in ("launched", "recorded")}
        ratio = found["launched"]["ms"] / found["recorded"]["ms"]
        cases.append({"kind": kind, "precision": precision, "batch": size, "speedup": round(ratio, 2), **found})
        print({key: value for key, value in cases[-1].items() if not isinstance(value, dict)}, flush=True)
    if options.json:
        write_json(options.json, {**record.origin(), "cases": cases})


if __name__ == "__main__":
    main()
