"""What each of several processes does in tests/test_distributed.py: train, evaluate, and let the first write.

python -m tests.distributed_job FOLDER 2
"""

import os
import socket
import sys
from pathlib import Path

import torch
from torch import nn

from qrobust import devices, distributed
from qrobust.attacks import named
from qrobust.evaluation import evaluate
from qrobust.quant import quantize
from qrobust.threat import Threat
from qrobust.train import fit

from .train.helpers import job, network, some_data, some_images, weights_of

THREAT = Threat("linf", 8 / 255)
# A rate at which another loss shows. Batches of 29, 29 and 2: unequal parts, and empty ones among four processes.
SCHEDULE = {"epochs": 2, "milestones": [1], "batch_size": 29, "lr": 0.1}
AVERAGED = {"average": {"start": 0}}


class Several(nn.Module):
    """Batch-norms of several kinds, and a weight that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spare = nn.Linear(3, 3)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6, affine=False),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 6),
            nn.BatchNorm1d(6, momentum=None),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        return self.layers(x)


class Exact(nn.Module):
    """A network in double precision: no rounding turns the sign of a gradient that nearly vanishes, as TRADES' does."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network().double()

    def forward(self, x):
        return self.network(x.double())


def sar(**settings):
    return {"sar": {"start": 0, "weight": 0.5, **settings}}


CASES = {
    "at": {},
    "natural": {"method": "natural"},
    "a last batch of one": {"schedule": {"batch_size": 59}},
    "at, sar": {"schedule": sar()},
    "at, sar l2": {"schedule": sar(distance="l2", weight=0.3)},
    "at, sar cosine": {"schedule": sar(distance="cosine", weight=5.0)},
    "at, sar of samples": {"schedule": sar(form="sample", weight=0.1)},
    "at, sar of samples, cosine": {"schedule": sar(form="sample", distance="cosine")},
    "at, sarwa": {"schedule": AVERAGED | sar(reference="average")},
    "at, sarwa of samples": {"schedule": AVERAGED | sar(reference="average", form="sample", weight=0.1)},
    "trades, sar, awp": {"method": "trades", "schedule": sar() | {"awp": {"start": 0}}},
    "mart, sarwa": {"method": "mart", "schedule": AVERAGED | sar(reference="average") | {"gradient_clip": 1.0}},
    "attack in train mode": {"attack": {"steps": 2, "mode": "train"}},
    "mixup": {"mix": {"kind": "mixup"}},
    "extra images, one cycle, ema": {
        "extra": {"name": "npz", "share": 0.4},
        "schedule": {
            "shape": "one-cycle",
            "milestones": [],
            "nesterov": True,
            "decay": "matrices",
            "average": {"start": 0, "kind": "exponential", "warmup": True, "statistics": "copied"},
        },
    },
    "cutmix of adversarial images": {"mix": {"kind": "cutmix", "on": "adversarial"}},
    "several norms, awp": {"schedule": {"awp": {"start": 0}}},
}
NETWORKS = {"trades, sar, awp": Exact, "several norms, awp": Several}
NORMS = {
    "1d": (lambda: nn.BatchNorm1d(4), (7, 4)),
    "1d of sequences": (lambda: nn.BatchNorm1d(4), (7, 4, 3)),
    "2d": (lambda: nn.BatchNorm2d(4), (7, 4, 3, 2)),
    "3d": (lambda: nn.BatchNorm3d(4), (7, 4, 3, 2, 2)),
    "not affine": (lambda: nn.BatchNorm2d(4, affine=False), (7, 4, 3, 2)),
    "no statistics": (lambda: nn.BatchNorm2d(4, track_running_stats=False), (7, 4, 3, 2)),
    "a plain mean": (lambda: nn.BatchNorm2d(4, momentum=None), (7, 4, 3, 2)),
    "one image": (lambda: nn.BatchNorm2d(4), (1, 4, 3, 2)),
}


def trained(folder: Path, case: str) -> dict[str, torch.Tensor]:
    """Weights of the best epoch, and of the best average."""
    options = dict(CASES[case])
    task = job(folder / case, schedule=SCHEDULE | options.pop("schedule", {}), **options)
    model = NETWORKS.get(case, network)()
    extra = some_images(40, 7) if "extra" in CASES[case] else None
    state = fit(devices.on_device(model), some_data(), task, extra=extra)
    return {f"{name}.{key}": value for name in state.best for key, value in state.best_of(name).items()}


def dropped_out(folder: Path) -> dict[str, torch.Tensor]:
    """The average of a network whose dropout each process draws for its part: of several, all have the same."""
    model = network()
    model.insert(3, nn.Dropout(0.5))
    model.insert(0, nn.Dropout(0.2))
    schedule = SCHEDULE | AVERAGED | sar(reference="average")
    return fit(devices.on_device(model), some_data(), job(folder / "dropout", schedule=schedule)).best_of("average")


def quantised(folder: Path) -> dict[str, torch.Tensor]:
    """The same for a network with quantisers and FAT."""
    images = some_data().train.x[:20] / 255
    model = quantize(network(width=8), 4, calibration=[images])
    fit(model, some_data(), job(folder / "quantised", schedule=SCHEDULE | {"lr": 0.01}))
    return weights_of(model)


def normalised(case: str) -> dict[str, torch.Tensor]:
    """What a batch-norm gives and passes back, all processes' together, and its statistics."""
    build, shape = NORMS[case]
    x, weights = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(build())
    keys = list(model.state_dict())
    x = distributed.part(3 * x + 1).requires_grad_()
    with distributed.synchronised(model) as whole:
        assert list(model.state_dict()) == keys
        y = whole(x)
        (y * distributed.part(weights)).sum().backward()
    found = {"y": distributed.gathered(y.detach()), "x": distributed.gathered(x.grad)}
    gradients = {f"gradient of {name}": distributed.summed(p.grad) for name, p in model.named_parameters()}
    return found | gradients | weights_of(model)


def judged() -> torch.Tensor:
    """Which images a network gets right under two attacks, (2, n)."""
    model, images = network(), some_data(validation=50).validation
    attacks = [named(name, THREAT) for name in ("pgd-3", "square-20")]
    outcomes = evaluate(model, images, attacks=attacks, threat=THREAT, batch_size=7)
    return torch.stack([torch.from_numpy(outcomes.correct[attack.name]) for attack in attacks])


def judged_alone() -> torch.Tensor:
    """The same by the first process, while the others have something else to do."""
    if not distributed.is_first():
        return torch.zeros(0)
    with distributed.alone():
        return judged()


def everything(folder: Path) -> dict[str, object]:
    """All of it, by name."""
    found: dict[str, object] = {case: trained(folder, case) for case in CASES}
    norms = {f"norm {case}": normalised(case) for case in NORMS}
    verdicts = {"judged": judged(), "judged alone": judged_alone()}
    return found | norms | verdicts | {"quantised": quantised(folder), "dropout": dropped_out(folder)}


def child(rank: int, folder: Path) -> int:
    """A process of its own for a rank, which needs no imports any more: half of all the time under torchrun."""
    if started := os.fork():
        return started
    os.environ["RANK"] = str(rank)
    with distributed.joined():
        torch.save(everything(folder), folder / f"result-{rank}.pt")
    sys.exit()


def main(folder: Path, world: int) -> int:
    """As many processes as torchrun would start, told of each other as it does; the worst exit status."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = [child(rank, folder) for rank in range(world)]
    return max(os.waitstatus_to_exitcode(os.waitpid(one, 0)[1]) % 256 for one in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
