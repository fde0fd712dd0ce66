"""Attacks that only ask for logits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ..runtime import square_attack
from ..threat import Threat
from .checks import check_images
from .crafting import crafting


def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    queries: int = 5000,
    generator: Generator | None = None,
) -> Tensor:
    """The Square attack (Andriushchenko et al. 2020, arXiv 1912.00049), as it runs on an artifact.

    x: images (n, c, h, w) in [0,1]. y: labels (n,). queries: at most, an image.
    """
    check_images(x)
    seed = int(torch.randint(2**31, (1,), generator=generator))

    def logits(images: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(x.device, x.dtype)
        result: np.ndarray = model(batch).float().cpu().numpy()
        return result

    with crafting(model), torch.no_grad():
        arrays = x.clamp(0, 1).contiguous().float().cpu().numpy(), y.cpu().numpy()
        found, _, _ = square_attack(logits, *arrays, threat.eps, queries, seed, norm=threat.norm)
    return torch.from_numpy(found).to(x.device, x.dtype)
