"""Attacks side by side with the libraries that are used for them: same network, images, steps, device, one run.

    python benches/attacks.py RUN [--n 512] [--json benches/results/attacks.json]

RUN is a run folder with a robust float network; it is weak too, under a threat of four times its eps.
A ratio below 1 means that qrobust took less time. Accuracies are printed too: speed counts only where they agree.
Needs torchattacks, foolbox and pyautoattack.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import record
import torch
import torchattacks
from pyautoattack import AutoAttack
from torch import Tensor, nn

from qrobust import devices
from qrobust.attacks import PgdConfig, Scene, named, pgd
from qrobust.data import to_unit
from qrobust.runs.run import Run
from qrobust.storage import write_json
from qrobust.threat import Threat

STEPS, STEP_SIZE = 20, 2 / 255
BATCH = 128
Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


def ours(threat: Threat) -> Attack:
    return lambda model, x, y: pgd(model, x, y, threat=threat, config=PgdConfig(steps=STEPS, step_size=STEP_SIZE))


def with_torchattacks(threat: Threat) -> Attack:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return torchattacks.PGD(model, eps=threat.eps, alpha=STEP_SIZE, steps=STEPS)(x, y)

    return run


def with_foolbox(threat: Threat) -> Attack:
    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=True)
        return attack(foolbox.PyTorchModel(model, bounds=(0, 1)), x, y, epsilons=threat.eps)[1]

    return run


def auto_ours(threat: Threat) -> Attack:
    attack = named("autoattack", threat)
    return lambda model, x, y: attack.perturb(Scene(model, threat), x, y, devices.generator(0))


def auto_alone(threat: Threat) -> Attack:
    """On a contiguous copy: pyautoattack 0.2 takes views of gradients, which a channels-last network has not."""

    def run(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        model, x = copy.deepcopy(model).to(memory_format=torch.contiguous_format), x.contiguous()
        attack = AutoAttack(model, norm="Linf", eps=threat.eps, seed=0, version="standard")
        return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return run


def side_by_side(attacks: dict[str, Attack], model: nn.Module, x: Tensor, y: Tensor, rounds: int) -> dict[str, Any]:
    """Seconds, accuracy and outcomes of each attack; rounds take turns, ratios are of medians against the first."""
    seconds: dict[str, list[float]] = {name: [] for name in attacks}
    right = {}
    for _ in range(rounds):
        for name, attack in attacks.items():
            started = time.perf_counter()
            x_adv = torch.cat([attack(model, a, b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)])
            seconds[name].append(time.perf_counter() - started)
            with torch.no_grad():
                right[name] = (model(x_adv).argmax(1) == y).cpu().numpy()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(attacks))
    return {
        "n": len(y),
        "seconds": seconds,
        "accuracy": {name: float(mask.mean()) for name, mask in right.items()},
        "outcomes": {name: record.packed(mask) for name, mask in right.items()},
        "ratio_of_first_to": {name: medians[first] / medians[name] for name in attacks if name != first},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--n-auto", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    run = Run.open(options.run)
    images = run.dataset.test.take(slice(0, options.n))
    x, y = to_unit(images.x, devices.device(), channels_last=True), images.y.to(devices.device())
    robust, far = run.network(32).eval(), Threat("linf", 4 * run.threat.eps)
    linf = {"qrobust": ours(run.threat), "torchattacks": with_torchattacks(run.threat)}
    linf["foolbox"] = with_foolbox(run.threat)
    auto = {"qrobust": auto_ours(run.threat), "pyautoattack": auto_alone(run.threat)}
    auto_far = {"qrobust": auto_ours(far), "pyautoattack": auto_alone(far)}
    few = slice(0, options.n_auto)
    result = record.origin() | {
        "network": run.recipe.model.name,
        "steps": STEPS,
        "batch": BATCH,
        "pgd-20": side_by_side(linf, robust, x, y, options.rounds),
        "autoattack, robust": side_by_side(auto, robust, x[few], y[few], 1),
        "autoattack, weak": side_by_side(auto_far, robust, x[few], y[few], 1),
    }
    for name in ("pgd-20", "autoattack, robust", "autoattack, weak"):
        print(name, "ratio", result[name]["ratio_of_first_to"], "accuracy", result[name]["accuracy"])
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
