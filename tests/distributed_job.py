"""What each of several processes does in tests/test_distributed.py: train, evaluate, and let the first write.

torchrun --nproc-per-node 2 -m tests.distributed_job FOLDER
"""

import sys
from pathlib import Path

import torch

from qrobust import distributed
from qrobust.attacks import named
from qrobust.evaluate import evaluate
from qrobust.quant import quantize
from qrobust.threat import Threat
from qrobust.train import fit

from .train.helpers import job, network, some_data, weights_of

THREAT = Threat("linf", 8 / 255)
# A small rate, so that the rounding of a sum's order is not amplified; parts of a batch of 21 are unequal.
SCHEDULE = {"epochs": 2, "milestones": [1], "batch_size": 21, "lr": 0.01}
CASES = {
    "at": {},
    "natural": {"method": "natural"},
    "trades, sar, awp": {"method": "trades", "schedule": {"sar": {"start": 0}, "awp": {"start": 0}}},
    "mart, sarwa": {
        "method": "mart",
        "schedule": {"sar": {"start": 1, "reference": "average"}, "average": {"start": 0}, "gradient_clip": 1.0},
    },
    "crafting in train mode": {"attack": {"steps": 2, "mode": "train"}},
    "mixup": {"mix": {"kind": "mixup"}},
}


def trained(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """Weights of the best epoch, and of the best average."""
    options = dict(CASES[case])
    task = job(folder / case, schedule=SCHEDULE | options.pop("schedule", {}), **options)
    state = fit(network(), some_data(), task)
    return {f"{name}.{key}": value for name in state.best for key, value in state.best_of(name).items()}


def quantised(folder: Path) -> dict[str, torch.Tensor]:
    """The same for a network with quantisers and FAT."""
    images = some_data().train.x[:20] / 255
    model = quantize(network(width=8), bits=4, calibration=[images])
    fit(model, some_data(), job(folder / "quantised", schedule=SCHEDULE))
    return weights_of(model)


def judged() -> torch.Tensor:
    """Which images a network gets right under two attacks, (2, n)."""
    model, images = network(), some_data(validation=50).validation
    attacks = [named(name, THREAT) for name in ("pgd-3", "square-20")]
    outcomes = evaluate(model, images, attacks=attacks, threat=THREAT, batch_size=7)
    return torch.stack([torch.from_numpy(outcomes.correct[attack.name]) for attack in attacks])


def everything(folder: Path) -> dict[str, object]:
    """All of it, by name."""
    found: dict[str, object] = {case: trained(folder, case) for case in CASES}
    return found | {"quantised": quantised(folder), "judged": judged()}


if __name__ == "__main__":
    with distributed.joined():
        result = everything(Path(sys.argv[1]))
        torch.save(result, Path(sys.argv[1]) / f"result-{distributed.rank()}.pt")
