"""Accuracy of a network on images, or under perturbations, of which a filter keeps a band.

`model` maps images (n, c, h, w) to logits (n, classes): a network in eval mode, or any function. Weights that cost
something to compute are best held while it is asked (`attacks.crafting`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError
from .filters import Band, filtered

Model = Callable[[Tensor], Tensor]
OnStep = Callable[[int], object]


@torch.no_grad()
def low_pass_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    bandwidths: Sequence[int],
    *,
    on_step: OnStep | None = None,
) -> list[float]:
    """Share of images that are right after LPF_k, clamped to [0,1], for each bandwidth k.

    batches: images x (n, c, h, w) in [0,1], clean or adversarial, and their labels y (n,). bandwidths: 1 to the side.
    on_step: called with the number of images after each pass; len(bandwidths) passes a batch, none larger than it.
    Raises DataError for a bandwidth out of range or no image, ModelError for a network in train mode.
    Reference: Huang et al., "A Spectral Perspective", table I; "A Fourier Domain-based Study", table 1.
    """
    views = ((_filtered(x, bandwidths), y) for x, y in batches)
    return _shares_right(model, views, len(bandwidths), on_step)


@torch.no_grad()
def perturbed_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    bandwidths: Sequence[int],
    *,
    band: Band,
    on_step: OnStep | None = None,
) -> list[float]:
    """Aggressiveness of a band: share right on x + F_k(x_adv - x), clamped to [0,1], F_k = LPF_k or HPF_k.

    batches: x, x_adv (n, c, h, w) in [0,1] and y (n,). band: "low" or "high", kept of the perturbation.
    Others as in `low_pass_accuracy`. Reference: "A Spectral Perspective", fig. 6.
    """
    views = ((banded(x, x_adv, bandwidths, band=band), y) for x, x_adv, y in batches)
    return _shares_right(model, views, len(bandwidths), on_step)


def banded(x: Tensor, x_adv: Tensor, bandwidths: Sequence[int], *, band: Band) -> Iterator[Tensor]:
    """x + F_k(x_adv - x), clamped to [0,1], for one bandwidth after the other; shapes (n, c, h, w)."""
    for delta in filtered(x_adv - x, bandwidths, band):
        yield (x + delta).clamp_(0, 1)


def _filtered(x: Tensor, bandwidths: Sequence[int]) -> Iterator[Tensor]:
    return (part.clamp(0, 1) for part in filtered(x, bandwidths, "low"))


def check_model(model: Model) -> None:
    """Raises ModelError for a network in train mode, whose answers depend on the batch and change it."""
    if isinstance(model, nn.Module) and model.training:
        raise ModelError("expected a network in eval mode, got one in train mode; call model.eval() first")


def as_placed(x: Tensor) -> Tensor:
    """Channels last, as networks are placed (`machine.placed`)."""
    return x.contiguous(memory_format=torch.channels_last)


def _shares_right(
    model: Model, batches: Iterable[tuple[Iterator[Tensor], Tensor]], views: int, on_step: OnStep | None
) -> list[float]:
    check_model(model)
    right, seen = torch.zeros(views, dtype=torch.int64), 0
    for images, y in batches:
        for index, x in enumerate(images):
            right[index] += int((model(as_placed(x)).argmax(1) == y).sum())
            if on_step:
                on_step(len(y))
        seen += len(y)
    if not seen:
        raise DataError("expected at least one image to count on, got none; give some")
    return (right.double() / seen).tolist()
