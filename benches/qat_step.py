"""One step of quantisation-aware adversarial training beside a float one: same images, steps, attack; one run.

    python benches/qat_step.py [--json benches/results/qat_step.json]

Ours at 4 and 2 bits with FAT takes turns with our float step, and with a step on Brevitas' stock layers at 4 bits.
Ratios are of medians against the float step; 1 would mean that quantisers cost nothing. Peak memory is that of one step
in a process of its own, beyond what the network and the process held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peak
import record
import torch
import train_step
from brevitas.nn import QuantConv2d, QuantLinear, QuantReLU
from torch import Tensor, nn

from qrobust import devices
from qrobust.quant import parameter_groups, quantize
from qrobust.recipe import Data, Schedule, Training
from qrobust.storage import write_json
from qrobust.threat import Threat
from qrobust.train import Job
from qrobust.train.step import Stepper

CASES = (("resnet20", 7, 128), ("resnet18", 7, 64))


def quantised(name: str, bits: int) -> nn.Module:
    x, _ = train_step.images(32, channels_last=True)
    return devices.on_device(quantize(train_step.network(name, channels_last=True), bits, calibration=[x]))


def stock(name: str) -> nn.Module:
    """Convolutions, linear layers and activations replaced by Brevitas' own, at 4 bits."""
    model = train_step.network(name, channels_last=True)
    for parent in list(model.modules()):
        for child, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d):
                new = QuantConv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride,
                    padding=layer.padding, bias=layer.bias is not None, weight_bit_width=4,
                )  # fmt: skip
            elif isinstance(layer, nn.Linear):
                new = QuantLinear(layer.in_features, layer.out_features, bias=True, weight_bit_width=4)
            elif isinstance(layer, nn.ReLU):
                new = QuantReLU(bit_width=4)
            else:
                continue
            setattr(parent, child, new)
    return devices.on_device(model)


WAYS: dict[str, Callable[[str], nn.Module]] = {
    "float": lambda name: train_step.network(name, channels_last=True),
    "QM-4, FAT": lambda name: quantised(name, 4),
    "QM-2, FAT": lambda name: quantised(name, 2),
    "Brevitas' stock layers": stock,
}


def step_of(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], None]:
    table = {"epochs": 1, "attack": {"steps": steps, "step_size": train_step.STEP}}
    job = Job("bench", "", Path(), Schedule(epochs=1), Training.model_validate(table), Data(name="cifar10"),
              Threat("linf", train_step.EPS), 0)  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, lr=0.02, weight_decay=5e-4), momentum=0.9)
    stepper, generator = Stepper(model, optimizer, None, job, 10), devices.generator(0)

    def run(x: Tensor, y: Tensor) -> None:
        float(stepper.step(model, x, y, 0, generator)[0])

    return run


def case(name: str, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step each way, in turns after one round that is not counted; processor time beside wall time."""
    ways = {way: step_of(make(name), steps) for way, make in WAYS.items()}
    data = train_step.images(batch, channels_last=True)
    wall: dict[str, list[float]] = {way: [] for way in ways}
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for index in range(rounds + 1):
        for way, step in ways.items():
            started, used = time.perf_counter(), time.process_time()
            step(*data)
            if devices.device().type == "cuda":
                torch.cuda.synchronize()
            if index:
                wall[way].append(time.perf_counter() - started)
                spent[way].append(time.process_time() - used)
    return {
        "network": name, "steps": steps, "batch": batch, "seconds": wall, "processor_seconds": spent,
        "ratio_to_float": {way: median(wall, way) for way in ways},
        "ratio_of_processor_time": {way: median(spent, way) for way in ways}, **peaks(name, steps, batch),
    }  # fmt: skip


def median(seconds: dict[str, list[float]], way: str) -> float:
    return statistics.median(seconds[way]) / statistics.median(seconds["float"])


def peaks(name: str, steps: int, batch: int) -> dict[str, dict[str, float]]:
    """Megabytes of a step each way, and their ratios to the float step's."""
    held = {way: peak.in_own_process(__file__, [way, name, steps, batch]) for way in WAYS}
    return {"peak_megabytes": held, "ratio_of_peak": {way: held[way] / held["float"] for way in WAYS}}


def memory(way: str, name: str, steps: int, batch: int) -> float:
    """Of one step, in a process of its own."""
    step, data = step_of(WAYS[way](name), steps), train_step.images(batch, channels_last=True)
    return peak.megabytes(lambda: step(*data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=len(CASES), help="the first so many")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(memory(*json.loads(options.memory)))
        return
    result: dict[str, Any] = {**record.origin(), "cases": []}
    for name, steps, batch in CASES[: options.cases]:
        result["cases"].append(case(name, steps, batch, options.rounds))
        print({key: value for key, value in result["cases"][-1].items() if "seconds" not in key}, flush=True)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
