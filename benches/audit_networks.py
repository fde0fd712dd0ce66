"""The networks that benches/audit.py attacks: what others claim to be robust, rebuilt small, and controls.

Each is made once, in the folder of a `Workshop`, and taken from there afterwards. All begin with one of two float
networks of ResNet-20 on 10,000 images of CIFAR-10: "at", adversarially trained, and "natural".
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from qrobust import devices, recipe
from qrobust.attacks import PgdConfig, pgd
from qrobust.data import Images, choose, to_unit
from qrobust.data.augment import epoch_batches
from qrobust.evaluation import predict
from qrobust.quant import QuantConfig, quantize, quantizers, round_biases
from qrobust.runs.folder import FLOAT
from qrobust.runs.run import Run
from qrobust.train import load_weights, save_weights

Table = dict[str, Any]
COMMON: Table = {
    "threads": 1,
    "data": {"name": "cifar10", "train_size": 10000, "validation": 0.05, "crop": 4, "flip": True},
    "model": {"name": "resnet20", "activation": "relu"},
    "quant": {"epochs": 4, "batch_size": 128, "lr": 0.02, "shape": "cosine", "fat": "none"},
}
SCHEDULE: Table = {"batch_size": 128, "lr": 0.2, "shape": "cyclic", "validation": {"every": 4, "steps": 10}}
BASES: dict[str, Table] = {
    "at": {
        **COMMON, "threat": {"eps": "8/255"},
        "train": {**SCHEDULE, "epochs": 20, "attack": {"kind": "fgsm-rs"}},
    },
    "natural": {
        **COMMON, "threat": {"eps": "1/255"},
        "train": {**SCHEDULE, "epochs": 10, "method": "natural", "attack": {}},
    },
}  # fmt: skip
PRECISIONS = (4, 6, 8)  # of weights and activations together
ALPHAS = tuple(step / 20 for step in range(1, 21))
MOST_LOST = 0.01  # of clean accuracy on the validation images, by a threshold
MISALIGNMENT = 1.0  # weight of the cosine of both input gradients


@dataclass(frozen=True)
class Built:
    """A network to attack, and the float one that it was made from. precisions: those that it draws from, if it does.

    file: its weights.
    """

    model: nn.Module
    images: Images
    float_model: nn.Module | None = None
    precisions: tuple[nn.Module, ...] = ()
    file: Path | None = None


@dataclass
class Workshop:
    """folder: where networks are made and kept. bases: recipes of the float networks, without bits. root: of the data.

    ready: finished runs whose float network is taken over, by base.
    """

    folder: Path
    bases: Mapping[str, Table] = field(default_factory=lambda: BASES)
    root: str | None = None
    ready: Mapping[str, Path] = field(default_factory=dict)

    def run(self, base: str, weights: int = FLOAT, activations: int | None = None) -> Run:
        """The trained run of a float network, or of a quantised one that starts from it."""
        quantised = weights != FLOAT
        name = f"{base}-w{weights}a{activations}" if quantised else base
        table = copy.deepcopy(dict(self.bases[base])) | {
            "name": name,
            "bits": [FLOAT, weights] if quantised else [FLOAT],
        }
        table["quant"] = {**table["quant"], "activation_bits": activations} if quantised else None
        if self.root is not None:
            table["data"]["root"] = self.root
        run, start = Run(recipe.parse(table, source="audit"), self.folder / name), self.ready.get(base)
        if quantised:
            start = self.run(base).folder
        place = run.folder / f"qm-{FLOAT}"
        if start is not None and not place.exists():
            shutil.copytree(start / place.name, place)
        run.train()
        return run

    def kept(self, name: str) -> Path:
        """Where the weights of a network that is no run's are kept."""
        (self.folder / "weights").mkdir(parents=True, exist_ok=True)
        return self.folder / "weights" / f"{name}.safetensors"


def trained(base: str, weights: int = FLOAT, activations: int | None = None) -> Callable[[Workshop], Built]:
    """A float network, or one of these bits that was trained on from it as it was."""

    def make(workshop: Workshop) -> Built:
        run = workshop.run(base, weights, activations)
        file = run.files.network(weights).weights("model")
        return Built(run.network(weights), run.dataset.test, run.float_model(weights), file=file)

    return make


# Random precision


class RandomPrecision(nn.Module):
    """Of each image a precision is drawn anew in every pass."""

    def __init__(self, networks: Iterable[nn.Module], seed: int = 0) -> None:
        super().__init__()
        self.networks, self.generator = nn.ModuleList(networks), torch.Generator().manual_seed(seed)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → logits (n, classes), each image by one of the networks."""
        drawn = torch.randint(len(self.networks), (len(x),), generator=self.generator)
        found = [(drawn == number).nonzero()[:, 0] for number in range(len(self.networks))]
        parts = [network(x[which]) for network, which in zip(self.networks, found, strict=True) if len(which)]
        order = torch.cat([which for which in found if len(which)]).argsort()
        return torch.cat(parts)[order]


class Mean(nn.Module):
    """The expectation over the precision: mean logits of all."""

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → logits (n, classes)."""
        return torch.stack([network(x) for network in self.networks]).mean(0)


def random_precision(*, training: bool) -> Callable[[Workshop], Built]:
    """The adversarially trained network, quantised afterwards to several precisions; `training`: all of them trained
    on together, with weights in common and batch-norms and clips of their own.
    """

    def make(workshop: Workshop) -> Built:
        run = workshop.run("at")
        source, train = run.network(FLOAT), run.dataset.train
        some = to_unit(choose(train, 512, 0)[0].x, devices.device(), channels_last=True)
        nets = [quantize(source, QuantConfig(bits, fat="none"), calibration=some) for bits in PRECISIONS]
        path = workshop.kept(f"random-precision{'-trained' if training else ''}")
        if not path.exists():
            if training:
                nets = _together(nets, run, workshop)
            save_weights(path, nn.ModuleList(nets), {"precisions": PRECISIONS})
        load_weights(path, nn.ModuleList(nets))
        nets = [one.eval() for one in nets]
        return Built(RandomPrecision(nets).eval(), run.dataset.test, source, tuple(nets), path)

    return make


def _together(nets: list[nn.Module], run: Run, workshop: Workshop) -> list[nn.Module]:
    """Of every batch one precision is drawn: to attack by FGSM with a random start, and to train."""
    for other in nets[1:]:
        for name, layer in nets[0].named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                other.get_submodule(name)._parameters["weight"] = layer.weight
    config = PgdConfig(steps=1, step_size=1.25 * run.threat.eps)

    def loss(x: Tensor, y: Tensor, generator: Generator) -> Tensor:
        net = nets[int(torch.randint(len(nets), (1,), generator=generator))]
        x_adv = pgd(net.eval(), x, y, threat=run.threat, config=config, generator=generator)
        return F.cross_entropy(net.train()(x_adv), y)

    _train(nn.ModuleList(nets), loss, run, workshop.bases["at"]["quant"])
    apart = [copy.deepcopy(net).eval() for net in nets]
    for net in apart:
        round_biases(net)
    return apart


# A loss that turns gradients away


def misaligned(bits: int) -> Callable[[Workshop], Built]:
    """Natural training with a penalty on the cosine of the input gradient with the float network's."""

    def make(workshop: Workshop) -> Built:
        run, float_run = workshop.run("natural", bits, bits), workshop.run("natural")
        source, path = float_run.network(FLOAT), workshop.kept(f"misaligned-w{bits}a{bits}")
        model = run.networks.start(bits)
        if not path.exists():
            for quantizer in quantizers(model):
                quantizer.clip.requires_grad_(False)  # its gradient cannot be derived again
            _train(model, lambda x, y, _: _turned(model.train(), source, x, y), run, workshop.bases["natural"]["quant"])
            round_biases(model)
            save_weights(path, model, {"bits": bits, "misalignment": MISALIGNMENT})
        load_weights(path, model)
        return Built(devices.on_device(model).eval(), run.dataset.test, source, file=path)

    return make


def _turned(model: nn.Module, source: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy, and how far the gradient goes the float network's way."""
    x = x.clone().requires_grad_(True)
    own, other = (F.cross_entropy(net(x), y, reduction="sum") for net in (model, source))
    (ours,) = torch.autograd.grad(own, x, create_graph=True)
    (theirs,) = torch.autograd.grad(other, x)
    cosine = F.cosine_similarity(ours.flatten(1), theirs.flatten(1), dim=1)
    return own / len(x) + MISALIGNMENT * cosine.relu().mean()


# A threshold on activations


class Threshold(nn.Module):
    """What lies within alpha deviations of its channel's mean becomes the mean."""

    mean: Tensor
    deviation: Tensor
    alpha: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("mean", "deviation"):
            self.register_buffer(name, torch.zeros(1, channels, 1, 1))
        self.register_buffer("alpha", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h, w)."""
        return torch.where((x - self.mean).abs() <= self.alpha * self.deviation, self.mean, x)


def threshold(workshop: Workshop) -> Built:
    """The adversarially trained network with a threshold before every ReLU, as wide as costs hardly any accuracy."""
    run = workshop.run("at")
    source, path = run.network(FLOAT), workshop.kept("threshold")
    model = copy.deepcopy(source).eval()
    found = _insert(model, to_unit(choose(run.dataset.train, 500, 0)[0].x, "cpu", channels_last=True))
    if not path.exists():
        held = run.dataset.validation
        before = _accuracy(model, held)
        for alpha in ALPHAS:
            kept = found[0].alpha.clone()
            _set(found, alpha)
            if before - _accuracy(model, held) > MOST_LOST:
                _set(found, float(kept))
                break
        save_weights(path, model, {"alpha": float(found[0].alpha), "alphas": ALPHAS})
    load_weights(path, model)
    return Built(model, run.dataset.test, source, file=path)


@torch.no_grad()
def _insert(model: nn.Module, images: Tensor) -> list[Threshold]:
    """Thresholds with the statistics of what each ReLU reads of these images, alpha 0."""
    places = [(parent, name) for parent in model.modules() for name, child in parent.named_children()
              if isinstance(child, nn.ReLU)]  # fmt: skip
    read: dict[int, Tensor] = {}
    hooks = [
        getattr(parent, name).register_forward_pre_hook(lambda _, x, place=place: read.__setitem__(place, x[0]))
        for place, (parent, name) in enumerate(places)
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    made = []
    for place, (parent, name) in enumerate(places):
        deviation, mean = torch.std_mean(read[place], dim=(0, 2, 3), keepdim=True)
        one = Threshold(mean.shape[1])
        one.mean.copy_(mean)
        one.deviation.copy_(deviation)
        setattr(parent, name, nn.Sequential(one, getattr(parent, name)))
        made.append(one)
    return made


def _set(found: Iterable[Threshold], alpha: float) -> None:
    for one in found:
        one.alpha.fill_(alpha)


# What both trainings share


def _accuracy(model: nn.Module, images: Images) -> float:
    right = predict(model, to_unit(images.x, "cpu", channels_last=True)) == images.y
    return float(right.float().mean())


def _train(model: nn.Module, loss: Callable[[Tensor, Tensor, Generator], Tensor], run: Run, settings: Table) -> None:
    """SGD on a loss of images and labels, with the epochs, rate and batches of `settings`, a cosine to zero."""
    images, generator = run.dataset.train, devices.generator(0, "audit")
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(weights, settings["lr"], momentum=0.9, weight_decay=5e-4)
    steps = settings["epochs"] * -(-len(images) // settings["batch_size"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    data = run.recipe.data
    for epoch in range(settings["epochs"]):
        total = 0.0
        for x, y in epoch_batches(images, settings["batch_size"], generator, devices.device(), data.crop, data.flip):
            optimizer.zero_grad()
            value = loss(x, y, generator)
            value.backward()
            optimizer.step()
            schedule.step()
            total += float(value.detach()) * len(x)
        print(f"epoch {epoch + 1}/{settings['epochs']}  loss {total / len(images):.3f}", flush=True)
    model.eval()
