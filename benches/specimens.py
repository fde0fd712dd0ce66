"""Artifacts whose networks are not trained: speed, size and memory do not depend on what weights say."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from qrobust import models
from qrobust.attacks import named
from qrobust.data import Dataset, Images
from qrobust.export.artifact import Contents, make_suite, write_artifact
from qrobust.export.target import load_target
from qrobust.models.inference import estimate_statistics
from qrobust.quant import quantize
from qrobust.runtime import Artifact
from qrobust.threat import Threat

NETWORKS = ("resnet20", "resnet18")
WIDTHS = (32, 8, 4, 2)
THREAT = Threat("linf", 8 / 255)


@functools.cache
def network(name: str, bits: int) -> nn.Module:
    """For CIFAR's images: random weights, statistics and clips of random images; the same every time.

    Not to be changed.
    """
    torch.manual_seed(0)
    model = models.build(name, in_channels=3, classes=10)
    x = torch.rand(64, 3, 32, 32)
    estimate_statistics(model, [x])
    if bits == 32:
        return model.eval()
    return quantize(model, bits, calibration=x, estimate_statistics=True).eval()


def images(n: int = 128) -> Tensor:
    return torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def artifact(folder: Path, name: str, bits: int, target: str = "ort-cpu") -> Artifact:
    """The artifact in folder/NAME-qm-BITS-TARGET, written if it is missing; labels are what the network says."""
    place = folder / f"{name}-qm-{bits}-{target}"
    if not (place / "manifest.json").exists():
        model, x = network(name, bits), images()
        part = Images(x, model(x / 255).argmax(1))
        dataset = Dataset("random", tuple("0123456789"), part, part, part, "0" * 64)
        with torch.enable_grad():
            suite = make_suite(model, part, attacks=[named("fgsm", THREAT)], threat=THREAT, seed=0)
        contents = Contents(f"{name}-qm-{bits}", bits, 0, THREAT, {"name": name}, suite, {})
        loose = load_target(target)  # labels of random weights hang on ties
        loose = loose.model_copy(update={"limits": loose.limits.model_copy(update={"label_flips": 0.1})})
        write_artifact(place, model, dataset, loose, contents)
    return Artifact.load(place)
