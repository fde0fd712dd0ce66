"""How strong each frequency is: of images, of perturbations, of kernels."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import DataError

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
