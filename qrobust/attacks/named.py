# ruff: noqa: ARG001 – all families are called alike, whatever they need
"""Attacks as recipes and the command line spell them:

`gn`, `fgsm`, `pgd-20`, `pgd-20x5`, `bim-20`, `cw-inf-30`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Generator, Tensor, nn

from ..errors import RecipeError, did_you_mean
from ..threat import Threat
from .gradient import bim, fgsm, pgd
from .noise import gaussian_noise

COUNT = "[1-9][0-9]*"  # no steps, or no restarts, would be no attack
SPELLING = re.compile(rf"(?P<family>[a-z]+(?:-[a-z]+)*?)(?:-(?P<steps>{COUNT})(?:x(?P<restarts>{COUNT}))?)?")


@dataclass(frozen=True)
class Attack:
    """An attack with its settings. bounded: whether what it returns must lie within the threat."""

    name: str
    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    bounded: bool = True

    def run(self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Generator) -> Tensor:
        """x_adv for images x (n, c, h, w) in [0,1] and labels y (n,)."""
        return _FAMILIES[self.family].run(self, model, x, y, threat, generator)


@dataclass(frozen=True)
class _Family:
    run: Callable[[Attack, nn.Module, Tensor, Tensor, Threat, Generator], Tensor]
    steps: bool = False
    restarts: bool = False
    bounded: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


def named(name: str, threat: Threat) -> Attack:
    """The attack of a name, its step size set by the threat. Raises RecipeError for what is no attack."""
    match = SPELLING.fullmatch(name)
    family = _FAMILIES.get(match["family"]) if match else None
    if match is None or family is None:
        raise RecipeError(f"expected an attack, got {name!r}{did_you_mean(name, _EXAMPLES)}")
    if family.steps != (match["steps"] is not None) or (match["restarts"] and not family.restarts):
        raise RecipeError(f"expected an attack, got {name!r}{did_you_mean(name, _EXAMPLES)}")
    settings = dict(family.extra)
    if family.steps:
        settings |= {"steps": int(match["steps"]), "step_size": threat.eps / 4}
    if family.restarts:
        settings["restarts"] = int(match["restarts"] or 1)
    return Attack(name, match["family"], settings, family.bounded)


def _noise(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Generator
) -> Tensor:
    return gaussian_noise(x, **attack.settings, generator=generator)


def _fgsm(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Generator
) -> Tensor:
    return fgsm(model, x, y, threat=threat)


def _bim(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Generator
) -> Tensor:
    return bim(model, x, y, threat=threat, **attack.settings)


def _pgd(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, generator: Generator
) -> Tensor:
    return pgd(model, x, y, threat=threat, generator=generator, **attack.settings)


_FAMILIES = {
    "gn": _Family(_noise, bounded=False, extra={"std": 0.1}),
    "fgsm": _Family(_fgsm),
    "bim": _Family(_bim, steps=True),
    "pgd": _Family(_pgd, steps=True, restarts=True),
    "cw-inf": _Family(_pgd, steps=True, restarts=True, extra={"loss": "margin"}),
}
_EXAMPLES = ("gn", "fgsm", "bim-20", "pgd-20", "pgd-20x5", "cw-inf-30")
