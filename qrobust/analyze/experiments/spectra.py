"""Maps over frequencies: where perturbations are, and where networks err."""

from __future__ import annotations

import math
from typing import Any

import torch

from ... import devices
from ...models.inference import frozen
from ...progress import bar
from ...spectrum import half_plane
from ...spectrum import heat_map as measure
from ...spectrum import mean_spectrum as mean
from ..cases import BATCH, Case
from .numbers import numbers


def mean_spectrum(case: Case) -> dict[str, Any]:
    """Mean magnitude of the perturbations' spectra (h, w), and the share of it in the central half of both sides."""
    spectrum = mean(x_adv - x for x, x_adv, _ in case.adversarial())
    rows, columns = (slice(side // 2 - side // 4, side // 2 - side // 4 + side // 2) for side in spectrum.shape)
    central = spectrum[rows, columns].sum() / spectrum.sum().clamp_min(1e-12)
    return {"spectrum": numbers(spectrum), "central": float(central)}


def heat_map(case: Case) -> dict[str, Any]:
    """Error rate (h, w) on images with one wave added, and on images as they are.

    norm: of a wave in each channel; by default eps·√(h·w), that of an image whose every pixel moves by eps (of an
    L2 threat, eps shared by the channels).
    """
    height, width = case.images.shape[-2:]
    norm = case.settings.norm or _norm(case)
    x, y = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    total = len(x) * len(half_plane(height, width))
    with frozen(case.model), bar(f"{case.label}: heat map", total, "images") as moving:
        error = measure(
            case.model, x, y, norm=norm, batch_size=BATCH, on_step=moving.advance,
            generator=devices.generator(case.settings.seed, "analyze", "heat-map"),
        )  # fmt: skip
        with torch.no_grad():
            clean = sum(int((case.model(x).argmax(1) != y).sum()) for x, y in case.batches())
    return {"error": numbers(error), "norm": norm, "clean_error": clean / len(x)}


def _norm(case: Case) -> float:
    _, channels, height, width = case.images.shape
    threat = case.run.threat
    return threat.eps * math.sqrt(height * width) if threat.norm == "linf" else threat.eps / math.sqrt(channels)
