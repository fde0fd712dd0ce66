"""Random crops and flips of whole batches, on the device the batch is on.

Random numbers are drawn on the CPU and then moved, so an image is cropped the same on every device.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import DataError


def augment(x: Tensor, *, padding: int, flip: bool, generator: Generator) -> Tensor:
    """A random crop of x (n, c, h, w) after `padding` pixels of zeros, then a random flip if asked for.

    Shape, dtype (uint8 or float) and device are kept. generator: on the CPU.
    """
    x = crop(x, padding, generator)
    return _flip(x, generator) if flip else x


def crop(x: Tensor, padding: int, generator: Generator) -> Tensor:
    """One window of the size of x (n, c, h, w) from each image, padded by `padding` zeros on every side.

    Both offsets are uniform in [0, 2 padding], drawn per image. A padding of 0 draws nothing and returns x.
    Raises DataError if padding is negative.
    """
    if padding < 0:
        raise DataError(f"expected a padding of at least 0 pixels, got {padding}; use 0 for no crop")
    if padding == 0:
        return x
    n, _, h, w = x.shape
    top, left = torch.randint(2 * padding + 1, (2, n), generator=generator).to(x.device)
    # A view of all windows, (n, c, top, left, h, w): only the chosen ones are ever copied.
    windows = F.pad(x, [padding] * 4).unfold(2, h, 1).unfold(3, w, 1)
    return windows[torch.arange(n, device=x.device), :, top, left]


def flip(x: Tensor, generator: Generator) -> Tensor:
    """x (n, c, h, w) with each image mirrored left to right with probability 1/2."""
    mirror = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirror.to(x.device).view(-1, 1, 1, 1), x.flip(-1), x)


_flip = flip  # `augment` has a parameter of that name
