"""One step of adversarial training beside the loops that people write: same network, images, steps; one run.

    python benches/train_step.py [--json benches/results/train_step.json]

A step attacks with PGD and descends once. Ours, in float32 and bf16, takes turns with (a) a loop around torchattacks'
PGD and (b) the loop that public adversarial-training code is made of, which asks for the weights' gradients at every
attack step and throws them away. Ratios are of medians; below 1, ours took less time. `same` compares ours in float32
with (b) from the same start: the loss that the attack reaches, and the largest difference of a weight after a step with
a one-step attack, as a share of the largest change (signs of gradients near zero let longer attacks part). `outside` is
the share of our step's processor time that is not forward and backward passes. Needs torchattacks.
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
import torchattacks
from torch import Tensor, nn
from torch.nn import functional as F

from qrobust import devices, models
from qrobust.models.inference import frozen
from qrobust.recipe import Data, Schedule, Training
from qrobust.storage import write_json
from qrobust.threat import Threat
from qrobust.train import Job
from qrobust.train.step import Stepper

EPS, STEP = 8 / 255, 2 / 255
CASES = (("resnet20", 7, 128), ("resnet20", 7, 512), ("resnet18", 10, 128))
Step = Callable[[Tensor, Tensor], tuple[float, nn.Module]]


def network(name: str, *, channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = models.build(name, in_channels=3, classes=10)
    return devices.on_device(model) if channels_last else model.to(devices.device())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def ours(name: str, steps: int, precision: str = "float32", random_start: bool = True) -> Step:
    model = network(name, channels_last=True)
    table = {"epochs": 1, "attack": {"steps": steps, "step_size": STEP, "random_start": random_start}}
    job = Job("bench", "", Path(), Schedule(epochs=1), Training.model_validate(table), Data(name="cifar10"),
              Threat("linf", EPS), 0)  # fmt: skip
    stepper, generator = Stepper(model, optimizer_of(model), None, job, 10), devices.generator(0)

    def run(x: Tensor, y: Tensor) -> tuple[float, nn.Module]:
        with devices.precision(precision):
            return float(stepper.step(model, x, y, 0, generator)[0]) / len(y), model

    return run


def with_torchattacks(name: str, steps: int) -> Step:
    model = network(name, channels_last=False)
    attack, optimizer = torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=steps), optimizer_of(model)

    def run(x: Tensor, y: Tensor) -> tuple[float, nn.Module]:
        model.train()
        x_adv = attack(x, y)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x_adv), y)
        loss.backward()
        optimizer.step()
        return float(loss), model

    return run


def plain(name: str, steps: int, random_start: bool = True) -> Step:
    """delta with its own gradient, `loss.backward()` at every attack step, eval mode while attacking."""
    model = network(name, channels_last=False)
    optimizer = optimizer_of(model)

    def run(x: Tensor, y: Tensor) -> tuple[float, nn.Module]:
        model.eval()
        delta = torch.zeros_like(x).uniform_(-EPS, EPS) if random_start else torch.zeros_like(x)
        delta = ((x + delta).clamp(0, 1) - x).requires_grad_(True)
        for _ in range(steps):
            F.cross_entropy(model(x + delta), y).backward()
            with torch.no_grad():
                moved = (delta + STEP * delta.grad.sign()).clamp(-EPS, EPS)
                delta.copy_((x + moved).clamp(0, 1) - x)
            delta.grad.zero_()
        model.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(model((x + delta).detach()), y)
        loss.backward()
        optimizer.step()
        return float(loss), model

    return run


def bare(name: str, steps: int) -> Step:
    """The forward and backward passes of our step, and nothing else."""
    model = network(name, channels_last=True)

    def run(x: Tensor, y: Tensor) -> tuple[float, nn.Module]:
        with frozen(model):
            for _ in range(steps):
                image = x.detach().requires_grad_(True)
                torch.autograd.grad(F.cross_entropy(model(image), y, reduction="sum"), image)
        model.train()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        model.zero_grad()
        return float(loss), model

    return run


WAYS: dict[str, Callable[[str, int], Step]] = {
    "qrobust": ours,
    "qrobust, bf16": lambda name, steps: ours(name, steps, "bf16"),
    "torchattacks": with_torchattacks,
    "plain": plain,
    "passes": bare,
}


def images(batch: int, *, channels_last: bool) -> tuple[Tensor, Tensor]:
    generator = devices.generator(1)
    x = torch.rand(batch, 3, 32, 32, generator=generator).to(devices.device())
    y = torch.randint(10, (batch,), generator=generator).to(devices.device())
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x), y


def case(name: str, steps: int, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a step each way, in turns after one round that is not counted."""
    ways = {way: make(name, steps) for way, make in WAYS.items()}
    data = {way: images(batch, channels_last=way.startswith(("qrobust", "passes"))) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for index in range(rounds + 1):
        for way, step in ways.items():
            started = time.perf_counter()
            step(*data[way])
            if devices.device().type == "cuda":
                torch.cuda.synchronize()
            if index:
                seconds[way].append(time.perf_counter() - started)
    median = {way: statistics.median(values) for way, values in seconds.items()}
    ratio = {
        way: {other: median[way] / median[other] for other in ("torchattacks", "plain")}
        for way in WAYS
        if way.startswith("qrobust")
    }
    return {
        "network": name, "steps": steps, "batch": batch, "seconds": seconds, "ratio": ratio,
        "images_per_second": {way: batch / median[way] for way in WAYS if way != "passes"},
        "outside": outside(name, steps, batch, rounds),
        "same": {"loss": losses(name, steps), "weights": difference(name)},
        "peak_megabytes": {
            way: peak.in_own_process(__file__, [way, name, steps, batch]) for way in WAYS if way != "passes"
        },
    }  # fmt: skip


def outside(name: str, steps: int, batch: int, rounds: int) -> float:
    """By processor time, which other programs disturb less."""
    spent: dict[str, list[float]] = {"qrobust": [], "passes": []}
    ways = {way: WAYS[way](name, steps) for way in spent}
    data = images(batch, channels_last=True)
    for index in range(rounds + 1):
        for way, step in ways.items():
            started = time.process_time()
            step(*data)
            if index:
                spent[way].append(time.process_time() - started)
    return 1 - statistics.median(spent["passes"]) / statistics.median(spent["qrobust"])


def difference(name: str) -> float:
    start = network(name, channels_last=False).state_dict()
    first = ours(name, 1, random_start=False)(*images(64, channels_last=True))[1].state_dict()
    second = plain(name, 1, random_start=False)(*images(64, channels_last=False))[1].state_dict()
    weights = [key for key in start if key.endswith("weight")]
    moved = max(float((second[key] - start[key]).abs().max()) for key in weights)
    return max(float((first[key] - second[key]).abs().max()) for key in weights) / moved


def losses(name: str, steps: int) -> tuple[float, float]:
    """The training loss after the whole attack from the same start: ours, (b)'s."""
    ways = (ours(name, steps, random_start=False), plain(name, steps, random_start=False))
    first, second = (way(*images(64, channels_last=last))[0] for way, last in zip(ways, (True, False), strict=True))
    return first, second


def memory(way: str, name: str, steps: int, batch: int) -> float:
    """Of one step, in a process of its own."""
    step = WAYS[way](name, steps)
    x, y = images(batch, channels_last=way.startswith("qrobust"))
    return peak.megabytes(lambda: step(x, y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
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
        print({k: v for k, v in result["cases"][-1].items() if k != "seconds"}, flush=True)
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
