"""Low-pass and high-pass filters of images (Huang et al., "A Spectral Perspective", eq. 2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError


def low_pass(x: Tensor, bandwidth: int) -> Tensor:
    """The lowest bandwidth × bandwidth frequencies of each channel: Re IDFT(keep centre of shift DFT(x)).

    x: (n, c, h, w). bandwidth: 1 to the side; the side itself keeps everything. An even bandwidth keeps one
    more negative frequency than positive ones, and the real part is taken, as in the published code. The
    result may leave [0, 1] a little. Raises DataError for a bandwidth out of range.
    """
    _check(x, bandwidth)
    return _keep_centre(x, bandwidth, shift=True)


def high_pass(x: Tensor, bandwidth: int) -> Tensor:
    """The highest bandwidth × bandwidth frequencies: as `low_pass` without the shift. Others as there."""
    _check(x, bandwidth)
    return _keep_centre(x, bandwidth, shift=False)


def _keep_centre(x: Tensor, bandwidth: int, *, shift: bool) -> Tensor:
    mask = torch.zeros(x.shape[-2:], device=x.device)
    top, left = (side // 2 - bandwidth // 2 for side in x.shape[-2:])
    mask[top : top + bandwidth, left : left + bandwidth] = 1
    mask = torch.fft.ifftshift(mask) if shift else mask
    filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(x) * mask).real
    return filtered


def _check(x: Tensor, bandwidth: int) -> None:
    side = min(x.shape[-2:])
    if not 1 <= bandwidth <= side:
        raise DataError(f"expected a bandwidth in [1, {side}], the side of the images, got {bandwidth}; change it")
