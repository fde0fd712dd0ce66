"""Which n of many images: one choice for evaluation, suite, calibration and analyses."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from .images import Images


def stratified_order(y: Tensor, seed: int) -> Tensor:
    """A permutation of the positions of labels y (n,), int64 on the CPU, of which every prefix is stratified.

    The j-th image of a class of c, in random order, stands at (2j + 1) / c; of those at one place, one drawn by lot
    comes first. So a prefix holds of every class what Webster's method gives it: its share, within one image but for
    rare cases. Depends on y and seed alone. Data often rests class by class, and its first n images are of few.

    >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    >>> y[stratified_order(y, seed=0)[:4]].sort().values.tolist()
    [0, 0, 1, 2]
    """
    generator = Generator().manual_seed(seed)
    _, classes, counts = torch.unique(y.cpu(), return_inverse=True, return_counts=True)
    lots, ties = (torch.randperm(len(classes), generator=generator) for _ in range(2))
    by_class = lots[classes[lots].argsort(stable=True)]
    rank = torch.arange(len(classes)) - (counts.cumsum(0) - counts).repeat_interleave(
        counts
    )  # of an image in its class
    place = (2 * rank + 1).double() / counts.repeat_interleave(counts)
    return by_class[ties][place[ties].argsort(stable=True)]


def choose(images: Images, n: int | None, seed: int) -> tuple[Images, Tensor | None]:
    """The first n images in `stratified_order`, with their positions int64 (n,).

    Of n None, or as many as there are: all, in the order they came, and None.
    """
    if n is None or n >= len(images):
        return images, None
    which = stratified_order(images.y, seed)[:n]
    return images.take(which), which
