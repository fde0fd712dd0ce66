"""Accuracy over bandwidths: of filtered images, and of images under filtered perturbations."""

from __future__ import annotations

from typing import Any, Literal

from ...attacks import named
from ...models.inference import frozen
from ...progress import bar
from ...runtime import wilson
from ...spectrum import low_pass_accuracy, perturbed_accuracy
from ..cases import Case

BANDS: tuple[Literal["low", "high"], ...] = ("low", "high")


def low_pass(case: Case) -> dict[str, Any]:
    """Accuracy under LPF_k, clean and under each attack, crafted on whole images: it does not know the filter."""
    curves = {}
    for name in ("clean", *case.settings.attacks):
        batches = case.batches() if name == "clean" else ((x, y) for _, x, y in case.adversarial(name))
        with frozen(case.model), _moving(case, f"LPF, {name}", len(case.bandwidths)) as moving:
            shares = low_pass_accuracy(case.model, batches, case.bandwidths, on_step=moving.advance)
        bounded = name == "clean" or named(name, case.run.threat).bounded
        curves[name] = {**_curve(shares, len(case.images)), "bounded": bounded}
    return {"bandwidths": list(case.bandwidths), "curves": curves}


def aggressiveness(case: Case) -> dict[str, Any]:
    """Accuracy on x + LPF_k(δ) and on x + HPF_k(δ), and without δ; the whole δ is k = side of either."""
    curves, side = {}, case.images.shape[-1]
    for band in BANDS:
        batches = case.adversarial()
        with frozen(case.model), _moving(case, f"δ, {band}", len(case.bandwidths)) as moving:
            shares = perturbed_accuracy(
                case.model, batches, case.bandwidths, band=band, on_step=moving.advance
            )  # fmt: skip
        curves[band] = _curve(shares, len(case.images))
    with frozen(case.model):
        (clean,) = low_pass_accuracy(case.model, case.batches(), [side])
    return {"bandwidths": list(case.bandwidths), "curves": curves, "clean": clean}


def _moving(case: Case, what: str, passes: int) -> Any:
    return bar(f"{case.label}: {what}", passes * len(case.images), "images")


def _curve(shares: list[float], n: int) -> dict[str, Any]:
    return {"accuracy": shares, "ci95": [list(wilson(round(share * n), n)) for share in shares]}
