"""Filters, spectra and basis images in the frequency domain (Huang et al., "A Spectral Perspective", eq. 2)."""

from __future__ import annotations

import math
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


FLOOR = 1e-6


def magnitudes(x: Tensor) -> Tensor:
    """|DFT(x)| / √(h·w) of each channel, the zero frequency moved to (h // 2, w // 2).

    x: real (n, c, h, w). Returns (n, c, h, w), ≥ 0. So scaled, squares sum to the squares of the pixels (Parseval).
    """
    shifted: Tensor = torch.fft.fftshift(torch.fft.fft2(x, norm="ortho"), dim=(-2, -1))
    return shifted.abs()


def log_spectrum(x: Tensor) -> Tensor:
    """log10 of each image's magnitudes, mean over channels, (n, h, w) (Huang et al., "A Spectral Perspective", fig. 5).

    x: (n, c, h, w), images or perturbations. Magnitudes below 1e-6 count as 1e-6, so the result is ≥ -6.
    """
    return magnitudes(x).mean(dim=1).clamp_min(FLOOR).log10()


def mean_spectrum(batches: Iterable[Tensor]) -> Tensor:
    """Mean of the magnitudes over all images and channels, (h, w) ("A Spectral Perspective", fig. 4).

    batches: perturbations (n, c, h, w), taken one after the other. Not a logarithm: `.clamp_min(1e-6).log10()` is
    what a figure shows. Raises DataError if there is no image.
    """
    total, count = torch.zeros(()), 0
    for x in batches:
        total = magnitudes(x).double().mean(dim=1).sum(dim=0) + total.to(x.device)
        count += len(x)
    if not count:
        raise DataError("expected at least one image for a mean spectrum, got none; give some")
    return (total / count).float()


def kernel_spectrum(weight: Tensor) -> Tensor:
    """|DFT| along C_in·kh·kw of each filter, (C_out, C_in·kh·kw) ("A Fourier Domain-based Study", fig. 4).

    weight: (C_out, C_in, kh, kw). Not shifted, as published: low frequencies at both ends, the highest in the middle.
    """
    spectrum: Tensor = torch.fft.fft(weight.float().flatten(1), dim=1)
    return spectrum.abs()


def low_to_high(activation: Tensor) -> Tensor:
    r"""R = ‖LFI‖ / ‖HFI‖ of each image's activation, (n,), ≥ 0 ("A Fourier Domain-based Study", 3.1.3).

        LFI = (1/p)·11ᵀx,  HFI = (I - (1/p)·11ᵀ)x

    activation: (n, c, h, w); x is one image's (p, c), p = h·w positions of c channels, so LFI is each channel's mean;
    norms are Frobenius'. The paper averages R over a batch. An activation without variation counts as 1e-12.
    """
    x = activation.float().flatten(2)
    low = x.mean(dim=2, keepdim=True)
    lfi, hfi = (part.flatten(1).norm(dim=1) for part in (low.expand_as(x), x - low))
    ratio: Tensor = lfi / hfi.clamp_min(1e-12)
    return ratio


def half_plane(height: int, width: int) -> Tensor:
    """Positions (i, j) of a centred spectrum, one of each pair that a real image cannot tell apart, int64 (m, 2).

    The zero frequency is at (height // 2, width // 2); a position's `partner` is its mirror image there. The rest of
    the spectrum are partners of these: m = (height·width + s) / 2, s of them their own partner.
    """
    every = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    other = partner(every, height, width)
    return every[_rank(every, width) <= _rank(other, width)]


def partner(positions: Tensor, height: int, width: int) -> Tensor:
    """Where the conjugate coefficients of positions (m, 2) are: -(i, j) around the centre, modulo the sides."""
    sides = positions.new_tensor([height, width])
    return (2 * (sides // 2) - positions) % sides


def fourier_basis(positions: Tensor, height: int, width: int) -> Tensor:
    """U_ij: the real image whose DFT is zero but at (i, j) and its partner, ‖U_ij‖₂ = 1 (Yin et al. 2019).

        U_ij[a, b] ∝ cos(2π(u·a/h + v·b/w)),  (u, v) = (i - h // 2, j - w // 2)

    positions: int64 (m, 2), of a centred spectrum. Returns float32 (m, height, width) on their device.
    """
    sides = positions.new_tensor([height, width])
    u, v = ((positions - sides // 2) % sides).T[..., None, None]
    rows, columns = (torch.arange(side, device=positions.device) for side in (height, width))
    # Whole turns are taken off as integers: no wave drifts on a large image.
    turn = (u * rows[:, None] * width + v * columns * height) % (height * width)
    waves = torch.cos(2 * math.pi / (height * width) * turn.double())
    lengths: Tensor = waves.flatten(1).norm(dim=1)
    return (waves / lengths[:, None, None]).float()


def unfold(values: Tensor, height: int, width: int) -> Tensor:
    """Values (m,) at `half_plane(height, width)`, written there and at its partners, (height, width)."""
    positions = half_plane(height, width).to(values.device)
    whole = values.new_zeros(height, width)
    for place in (positions, partner(positions, height, width)):
        whole[place[:, 0], place[:, 1]] = values
    return whole


def _rank(positions: Tensor, width: int) -> Tensor:
    return positions[:, 0] * width + positions[:, 1]
