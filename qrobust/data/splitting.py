"""Random subsets and the split into training and validation, the same for the same seed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..errors import DataError
from .images import Images


def subset(images: Images, size: int | None, generator: Generator, *, key: str) -> Images:
    """The first `size` images after a random permutation, or all of them, in their own order, for None.

    key: the setting that asked for it, for the error. Raises DataError if there are fewer images.
    """
    if size is None:
        return images
    if size > len(images):
        raise DataError(f"expected {key} of at most {len(images)}, all images there are, got {size}; lower it")
    return images.take(torch.randperm(len(images), generator=generator)[:size])


def split(images: Images, share: float, generator: Generator) -> tuple[Images, Images]:
    """Training and validation images: every class gives `share` of its images to the latter, within one.

    A class with a single image keeps it for training. Both parts keep the order of `images`.
    Raises DataError if a share above 0 is too small to give one image.
    """
    if share == 0:
        return images, images.take(slice(0, 0))
    aside = _choose(images.y.cpu(), share, generator)
    if not aside.any():
        raise DataError(f"expected a validation share that gives an image, got {share:g} of {len(images)}; raise it")
    return images.take(torch.where(~aside)[0]), images.take(torch.where(aside)[0])


def _choose(y: Tensor, share: float, generator: Generator) -> Tensor:
    """Mask (n,) of the images set aside: in a random order of each class, the first `quota` of it."""
    counts = torch.bincount(y)
    quota = _quotas(counts, share)
    order = torch.randperm(len(y), generator=generator)
    by_class = order[y[order].argsort(stable=True)]
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # of an image in its class
    aside = torch.zeros(len(y), dtype=torch.bool)
    aside[by_class[place < quota.repeat_interleave(counts)]] = True
    return aside


def _quotas(counts: Tensor, share: float) -> Tensor:
    """How many images each class gives: the share rounded down, then one more by the largest remainder."""
    want = counts.double() * share
    want[counts < 2] = 0
    quota = want.floor().long()
    spare = int((want.sum() + 0.5).floor()) - int(quota.sum())
    quota[torch.argsort(want - quota, descending=True, stable=True)[:spare]] += 1
    return quota
