"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690), by the package that RobustBench uses.

It is never implemented again here: its four parts are called one by one, each on the images that the parts
before left right, with the batches and seeds of its own driver. So the result is the same to the image, and
an evaluation can stop and go on between batches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecipeError
from ..threat import Threat
from .crafting import crafting

PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")
NORMS = {"linf": "Linf", "l2": "L2"}
FEWEST_CLASSES = 4  # below, the targeted loss is not defined


def autoattack_part(model: nn.Module, x: Tensor, y: Tensor, *, part: str, threat: Threat, seed: int = 0) -> Tensor:
    """One part of AutoAttack's standard version on a batch; x_adv (n, c, h, w).

    part: one of PARTS. Raises RecipeError for fewer than four classes.
    """
    # Not folded: its result shall be the package's own to the last bit.
    with crafting(model, fold=False), torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        with torch.no_grad():
            classes = model(x[:1]).shape[1]
        if classes < FEWEST_CLASSES:
            raise RecipeError(f"expected {FEWEST_CLASSES} classes or more for autoattack, got {classes}; use pgd")
        attacker = _attacker(_Contiguous(model), x, threat, seed, part, min(9, classes - 1))
        found: Tensor = attacker.perturb(x.contiguous(), y)
    return found.detach()


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient comes back contiguous: the package takes flat views of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # noqa: ARG004
        return grads[0].contiguous()


class _Contiguous(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(_ContiguousGradient.apply(x))  # type: ignore[no-untyped-call]
        return logits


def _attacker(model: nn.Module, x: Tensor, threat: Threat, seed: int, part: str, targets: int) -> Any:
    from pyautoattack import AutoAttack

    whole = AutoAttack(model, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, device=x.device)
    whole.apgd_targeted.n_target_classes = whole.fab.n_target_classes = targets
    chosen = {
        "apgd-ce": whole.apgd,
        "apgd-t": whole.apgd_targeted,
        "fab-t": whole.fab,
        "square": whole.square,
    }[part]
    chosen.seed = seed
    if part == "apgd-ce":
        chosen.loss = "ce"
    if part == "fab-t":
        chosen.targeted = True
    return chosen
