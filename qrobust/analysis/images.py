"""Experiments on images and answers: what filters and attacks do to them, where perturbations lie, what survives.

Each takes one case (`cases.Case`) and returns data that JSON can hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from .. import devices, spectrum
from ..attacks import named
from ..data import to_unit
from ..models.inference import frozen
from ..progress import bar
from ..runtime import wilson
from ..storage import read_json
from .cases import BATCH, Case, Result
from .encoding import numbers, pack

BANDS: tuple[Literal["low", "high"], ...] = ("low", "high")
FILTERED, PERTURBED = 6, 3  # images shown
DECIDES = {"seed", "data", "model", "threat", "train", "quant"}  # parts of a recipe


def low_pass(case: Case) -> dict[str, Any]:
    """Accuracy under LPF_k, clean and under each attack, made on whole images: it does not know the filter."""
    curves = {}
    for name in ("clean", *case.settings.attacks):
        batches = case.batches() if name == "clean" else ((x, y) for _, x, y in case.adversarial(name))
        with frozen(case.model), _sweep(case, f"LPF, {name}") as moving:
            shares = spectrum.low_pass_accuracy(case.model, batches, case.bandwidths, on_step=moving.advance)
        bounded = name == "clean" or named(name, case.run.threat).bounded
        curves[name] = {**_curve(shares, len(case.images)), "bounded": bounded}
    return {"bandwidths": list(case.bandwidths), "curves": curves}


def aggressiveness(case: Case) -> dict[str, Any]:
    """Accuracy on x + LPF_k(δ) and on x + HPF_k(δ), and without δ; the whole δ is k = side of either."""
    curves, side, model = {}, case.images.shape[-1], case.model
    for band in BANDS:
        batches = case.adversarial()
        with frozen(model), _sweep(case, f"δ, {band}") as moving:
            shares = spectrum.perturbed_accuracy(model, batches, case.bandwidths, band=band, on_step=moving.advance)
        curves[band] = _curve(shares, len(case.images))
    with frozen(model):
        (clean,) = spectrum.low_pass_accuracy(model, case.batches(), [side])
    return {"bandwidths": list(case.bandwidths), "curves": curves, "clean": clean}


def _sweep(case: Case, what: str) -> Any:
    return bar(f"{case.label}: {what}", len(case.bandwidths) * len(case.images), "images")


def _curve(shares: list[float], n: int) -> dict[str, Any]:
    return {"accuracy": shares, "ci95": [list(wilson(round(share * n), n)) for share in shares]}


def filtered(case: Case) -> dict[str, Any]:
    """Images of different classes under LPF_k and HPF_k; the latter, which have no mean, stretched around grey."""
    x, names = _examples(case, FILTERED)
    side = x.shape[-1]
    bandwidths = case.settings.bandwidths or tuple(sorted({max(1, side * part // 4) for part in (1, 2, 3)}))
    low = [{"title": f"LPF, k = {k}", "pixels": pack(spectrum.low_pass(x, k))} for k in bandwidths]
    high = [{"title": f"HPF, k = {k}", "pixels": pack(_stretched(spectrum.high_pass(x, k)))} for k in bandwidths]
    return {"classes": names, "rows": [{"title": "image", "pixels": pack(x)}, *low, *high], "shown": len(x)}


def perturbations(case: Case) -> dict[str, Any]:
    """Images x, x + δ and δ, stretched, with log10 of their spectra, of different classes.

    Spectra as `spectrum.log_spectrum`. right: whether the network still gives the label to x + δ.
    """
    which = _positions(case, PERTURBED)
    x, names = _examples(case, PERTURBED)
    x_adv = torch.cat([x_adv.cpu() for _, x_adv, _ in case.adversarial()])[which].to(x.device)
    delta = x_adv - x
    views = {"clean": x, "adversarial": x_adv, "perturbation": delta}
    with torch.no_grad():
        right = case.model(x_adv).argmax(1).cpu() == case.images.y[which]
    return {
        "classes": names,
        "shown": len(x),
        "right": right.tolist(),
        "pixels": {name: pack(view) for name, view in (views | {"perturbation": _stretched(delta)}).items()},
        "spectra": {name: numbers(spectrum.log_spectrum(view)) for name, view in views.items()},
    }


def _stretched(delta: Tensor) -> Tensor:
    """1/2 + δ/(2·max|δ|) for each image of (n, c, h, w)."""
    return 0.5 + delta / (2 * delta.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12))


def _positions(case: Case, count: int) -> Tensor:
    """Of the first image of each class, class by class, as many as asked; then of the first of the others."""
    firsts: dict[int, int] = {}
    for index, label in enumerate(case.images.y.tolist()):
        firsts.setdefault(label, index)
    rest = [index for index in range(len(case.images)) if index not in firsts.values()]
    return torch.tensor([*(firsts[label] for label in sorted(firsts)), *rest][:count])


def _examples(case: Case, count: int) -> tuple[Tensor, list[str]]:
    some = case.images.take(_positions(case, count))
    names = [case.run.dataset.classes[label] for label in some.y.tolist()]
    return to_unit(some.x, devices.device(), channels_last=True), names


def mean_spectrum(case: Case) -> dict[str, Any]:
    """Mean magnitude of the perturbations' spectra (h, w), and the share of it in the central half of both sides."""
    mean = spectrum.mean_spectrum(x_adv - x for x, x_adv, _ in case.adversarial())
    rows, columns = (slice(side // 2 - side // 4, side // 2 - side // 4 + side // 2) for side in mean.shape)
    central = mean[rows, columns].sum() / mean.sum().clamp_min(1e-12)
    return {"spectrum": numbers(mean), "central": float(central)}


def heat_map(case: Case) -> dict[str, Any]:
    """Error rate (h, w) on images with one wave added, and on images as they are.

    norm: of a wave in each channel; by default eps·√(h·w), that of an image whose every pixel moves by eps (of an
    L2 threat, eps shared by the channels).
    """
    height, width = case.images.shape[-2:]
    norm = case.settings.norm or _wave_norm(case)
    x, y = (torch.cat(parts) for parts in zip(*case.batches(), strict=True))
    total = len(x) * len(spectrum.half_plane(height, width))
    with frozen(case.model), bar(f"{case.label}: heat map", total, "images") as moving:
        error = spectrum.heat_map(
            case.model, x, y, norm=norm, batch_size=BATCH, on_step=moving.advance,
            generator=devices.generator(case.settings.seed, "analyze", "heat-map"),
        )  # fmt: skip
        with torch.no_grad():
            clean = sum(int((case.model(x).argmax(1) != y).sum()) for x, y in case.batches())
    return {"error": numbers(error), "norm": norm, "clean_error": clean / len(x)}


def _wave_norm(case: Case) -> float:
    _, channels, height, width = case.images.shape
    threat = case.run.threat
    return threat.eps * math.sqrt(height * width) if threat.norm == "linf" else threat.eps / math.sqrt(channels)


def ablation(case: Case | Result) -> dict[str, Any]:
    """Accuracies of an evaluation, and by path all settings that decided the weights."""
    if isinstance(case, Case):
        evaluation = read_json(case.files.evaluation)
        settings = dict(_flat(case.run.recipe.model_dump(mode="json", include=DECIDES))) | {"bits": case.bits}
    else:
        evaluation, settings = case.evaluation, {}
    attacks = {name: _share(found) for name, found in evaluation["attacks"].items()}
    return {"settings": settings, "n": evaluation["n"], "accuracy": {"clean": _share(evaluation["clean"]), **attacks}}


def _share(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("accuracy", "ci95")}


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
