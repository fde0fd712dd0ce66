"""Low-pass and high-pass filters of images (Huang et al., "A Spectral Perspective", eq. 2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ..errors import DataError

Band = Literal["low", "high"]


def low_pass(x: Tensor, bandwidth: int) -> Tensor:
    """The lowest bandwidth × bandwidth frequencies of each channel: Re IDFT(keep centre of shift DFT(x)).

    x: (n, c, h, w). bandwidth: 1 to the side; the side itself keeps everything. An even bandwidth keeps one
    more negative frequency than positive ones, and the real part is taken, as in the published code. The
    result may leave [0, 1] a little. Raises DataError for a bandwidth out of range.
    """
    return next(filtered(x, [bandwidth], "low"))


def high_pass(x: Tensor, bandwidth: int) -> Tensor:
    """The highest bandwidth × bandwidth frequencies: as `low_pass` without the shift. Others as there."""
    return next(filtered(x, [bandwidth], "high"))


def filtered(x: Tensor, bandwidths: Iterable[int], band: Band) -> Iterator[Tensor]:
    """`low_pass` or `high_pass` of x (n, c, h, w) for one bandwidth after the other; x is transformed once."""
    spectrum = torch.fft.fft2(x)
    for bandwidth in bandwidths:
        check_bandwidth(bandwidth, x)
        yield torch.fft.ifft2(spectrum * _mask(x, bandwidth, band)).real


def check_bandwidth(bandwidth: int, x: Tensor) -> None:
    """Raises DataError unless images (n, c, h, w) have a band that wide."""
    side = min(x.shape[-2:])
    if not 1 <= bandwidth <= side:
        raise DataError(f"expected a bandwidth in [1, {side}], the side of the images, got {bandwidth}; change it")


def _mask(x: Tensor, bandwidth: int, band: Band) -> Tensor:
    """(h, w): 1 where kept, in the order of a DFT."""
    mask = torch.zeros(x.shape[-2:], device=x.device)
    top, left = (side // 2 - bandwidth // 2 for side in x.shape[-2:])
    mask[top : top + bandwidth, left : left + bandwidth] = 1
    return torch.fft.ifftshift(mask) if band == "low" else mask
