"""The Fourier heat map: how often a network errs when one frequency is added to its images."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..errors import DataError
from .accuracy import Model, OnStep, as_placed, check_model
from .basis import fourier_basis, half_plane, unfold


@torch.no_grad()
def heat_map(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    generator: Generator,
    batch_size: int = 128,
    on_step: OnStep | None = None,
) -> Tensor:
    r"""Error rate on x + r·v·U_ij at (i, j), (h, w) in [0, 1], the zero frequency at (h // 2, w // 2).

    model: maps images to logits; see `accuracy`. x: images (n, c, h, w) in [0,1]. y: labels (n,). norm: v, the L2 norm
    of what is added to each channel. r: 1 or -1, drawn from the generator (on the CPU) for every image, frequency
    and channel. As published nothing is clamped, which would add other frequencies; pixels may leave [0,1].
    A frequency and its partner are the same image, so each pair is asked once: n·len(half_plane(h, w)) images in
    all, batch_size of them a pass, over several frequencies where n is small; more are never held. The batch size
    changes no draw. on_step: called with the number of images after each pass.
    Raises DataError for no images, labels of another number or a batch size below 1, ModelError in train mode.
    Reference: Yin et al. 2019, arXiv 1906.08988; Huang et al., "A Spectral Perspective", fig. 7 and appendix B.
    """
    _check(model, x, y, batch_size)
    n, channels, height, width = x.shape
    positions = half_plane(height, width)
    wrong = torch.zeros(len(positions), dtype=torch.int64, device=x.device)
    for start in range(0, n * len(positions), batch_size):
        rows = torch.arange(start, min(start + batch_size, n * len(positions)))
        first, last = start // n, int(rows[-1]) // n
        waves = norm * fourier_basis(positions[first : last + 1].to(x.device), height, width)
        signs = 2 * torch.randint(2, (len(rows), channels, 1, 1), generator=generator) - 1
        which, image = (rows // n).to(x.device), (rows % n).to(x.device)
        noisy = x[image].addcmul_(signs.to(x), waves[which - first].unsqueeze(1))
        wrong.index_add_(0, which, (model(as_placed(noisy)).argmax(1) != y[image]).long())
        if on_step:
            on_step(len(rows))
    return unfold(wrong / n, height, width)


def _check(model: Model, x: Tensor, y: Tensor, batch_size: int) -> None:
    check_model(model)
    if not len(x) or len(x) != len(y):
        raise DataError(f"expected images and one label for each, got {len(x)} and {len(y)}; give both alike")
    if batch_size < 1:
        raise DataError(f"expected a batch size of at least 1, got {batch_size}; choose a positive number")
