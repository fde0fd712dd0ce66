"""Frequency-aware transformation of convolution weights (Tao et al. 2021, arXiv 2102.07444).

The mask as published starts as the identity: with unit-variance weights |F| ≈ 0.9·√N, so the sigmoid
saturates (m ≥ 0.9997 at N = 144) and from N ≈ 1152 on has no gradient. `"normalised"` divides |F| by its
mean and centres the score, so that the mask starts around 1 and can move both ways.
"""

from __future__ import annotations

import torch
from torch import Tensor

FAT_FORMS = ("paper", "normalised", "identity")


def standardise(weight: Tensor) -> Tensor:
    """(w - mean) / std over the whole tensor, both without gradient; the scale is left to batch-norm."""
    return (weight - weight.mean().detach()) / weight.std().detach().clamp_min(1e-12)


def filter_spectrum(weight: Tensor) -> Tensor:
    """Half spectrum, complex (C_out, N/2 + 1), of the standardised filters of a weight (C_out, C_in, kh, kw)."""
    spectrum: Tensor = torch.fft.rfft(standardise(weight).flatten(1), dim=1)
    return spectrum


def fat_mask(spectrum: Tensor, mixing: Tensor, form: str = "normalised") -> Tensor:
    """The real mask m for a spectrum F of filters.

    "paper":      m = sigmoid(A·|F|)
    "normalised": m = 2·sigmoid(A·|F| / mean|F| - 1)
    "identity":   m = 1

    spectrum: complex (C_out, K). mixing: A, real (C_out, C_out), mixes filters at each frequency.
    Returns a real tensor (C_out, K).
    """
    magnitude = spectrum.abs()
    if form == "identity":
        return torch.ones_like(magnitude)
    if form == "paper":
        return torch.sigmoid(mixing @ magnitude)
    return 2 * torch.sigmoid(mixing @ (magnitude / magnitude.mean().detach().clamp_min(1e-12)) - 1)


def fat_transform(weight: Tensor, mixing: Tensor, form: str = "normalised") -> Tensor:
    """Re IDFT(m ⊙ DFT(standardise(W))), one-dimensional along C_in·kh·kw, per filter.

    weight: (C_out, C_in, kh, kw). mixing: (C_out, C_out). Returns a weight of the same shape.
    The spectrum of a real signal is Hermitian and so is its mask: the half spectrum is enough.
    """
    if form == "identity":
        return standardise(weight)
    spectrum = filter_spectrum(weight)
    masked = spectrum * fat_mask(spectrum, mixing, form)
    transformed: Tensor = torch.fft.irfft(masked, n=weight[0].numel(), dim=1)
    return transformed.view_as(weight)
