"""Pictures: what filters leave of images, and what attacks add to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ... import devices
from ...data import to_unit
from ...spectrum import high_pass, log_spectrum, low_pass
from ..cases import Case
from .numbers import numbers, packed

FILTERED, PERTURBED = 6, 3  # images


def filtered(case: Case) -> dict[str, Any]:
    """Images of different classes under LPF_k and HPF_k; the latter, which have no mean, stretched around grey."""
    x, names = _examples(case, FILTERED)
    side = x.shape[-1]
    bandwidths = case.settings.bandwidths or tuple(sorted({max(1, side * part // 4) for part in (1, 2, 3)}))
    rows = [{"title": "image", "pixels": packed(x)}]
    rows += [{"title": f"LPF, k = {k}", "pixels": packed(low_pass(x, k))} for k in bandwidths]
    rows += [{"title": f"HPF, k = {k}", "pixels": packed(_stretched(high_pass(x, k)))} for k in bandwidths]
    return {"classes": names, "rows": rows, "shown": len(x)}


def perturbations(case: Case) -> dict[str, Any]:
    """Images x, x + δ and δ, stretched, with log10 of their spectra, of different classes.

    Spectra as `spectrum.log_spectrum`. right: whether the network still gives the label to x + δ.
    """
    which = _positions(case, PERTURBED)
    x, names = _examples(case, PERTURBED)
    crafted = torch.cat([x_adv.cpu() for _, x_adv, _ in case.adversarial()])
    x_adv = crafted[which].to(x.device)
    delta = x_adv - x
    views = {"clean": x, "adversarial": x_adv, "perturbation": delta}
    shown = {**views, "perturbation": _stretched(delta)}
    with torch.no_grad():
        right = case.model(x_adv).argmax(1).cpu() == case.images.y[which]
    return {
        "classes": names,
        "shown": len(x),
        "right": right.tolist(),
        "pixels": {name: packed(view) for name, view in shown.items()},
        "spectra": {name: numbers(log_spectrum(view)) for name, view in views.items()},
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
