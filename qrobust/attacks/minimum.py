"""Attacks that look for the smallest perturbation instead of staying in a ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..objectives import margin
from .checks import check_images, check_output
from .crafting import crafting, input_gradient, ordinary

INSIDE = 1 - 1e-6  # atanh is infinite at black and white


def cw(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 20,
    c: float = 1.0,
    kappa: float = 0.0,
    lr: float = 0.01,
) -> Tensor:
    r"""Carlini and Wagner's L2 attack (2017, arXiv 1608.04644), with one constant c and no search for it.

        minimise over w:  ‖x' - x‖₂² + c · max(-margin(f(x'), y), -κ),   x' = (tanh w + 1) / 2

    by Adam from x itself. margin = max_{k≠y} z_k - z_y. Returns, per image, the nearest x' seen that the
    network gets wrong, or x. **Not bounded by any eps**: a robust accuracy under it compares with no other.

    x: images (n, c, h, w) in [0,1]. y: labels (n,). lr: of Adam, in the units of w.
    """
    check_images(x)
    with crafting(model):
        x, y = ordinary(x, y)
        best = x.to(torch.promote_types(x.dtype, torch.float32))  # in bf16, INSIDE would be 1
        nearest = torch.full((len(x),), float("inf"), dtype=best.dtype, device=x.device)
        w = torch.atanh((2 * best.clamp(0, 1) - 1) * INSIDE).requires_grad_(True)
        # Distances are to where w begins: else Adam would stretch the 1e-7 between it and x to a whole step.
        origin, best = (torch.tanh(w.detach()) + 1) / 2, best.clone()
        optimizer = torch.optim.Adam([w], lr=lr)
        for step in range(steps):
            candidate = (torch.tanh(w) + 1) / 2
            distance = (candidate - origin).flatten(1).square().sum(dim=1)
            logits = model(candidate.to(x.dtype))
            if step == 0:
                check_output(logits, y)
            lost = margin(logits, y)
            loss = distance.sum() + c * (-lost).clamp_min(-kappa).sum()
            w.grad = input_gradient(loss, w)
            with torch.no_grad():
                better = (lost > 0) & (distance < nearest)
                best[better], nearest[better] = candidate[better], distance[better]
            optimizer.step()
    return best.detach().to(x.dtype)
