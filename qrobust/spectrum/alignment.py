"""Spectral alignment of logits: the distance in SAR (Huang et al., "A Spectral Perspective", eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT_FORMS = ("batch", "sample")
ALIGNMENT_DISTANCES = ("l1", "l2", "cosine")


def spectral_distance(first: Tensor, second: Tensor, *, form: str = "batch", distance: str = "l1") -> Tensor:
    """Distance between the Fourier transforms of two batches of logits, a scalar.

    form "sample": the equation of the paper, F a DFT over the classes of each sample,
        mean_i Σ_k (|Re d_ik| + |Im d_ik|) with d = F(first) - F(second).
    form "batch": the authors' published code, F a two-dimensional DFT of the (n, classes) matrix, not
        normalised, mean over the 2·n·classes real numbers. It grows as √(n·classes) for random
        differences, so a coefficient belongs to a batch size; the paper's numbers were made with it.
    distance: "l1"; "l2" squares instead; "cosine" is 1 - cosine of the real vectors.

    first, second: logits (n, classes), same shape.
    """
    a, b = _spectrum(first, form), _spectrum(second, form)
    if distance == "cosine":
        if form == "sample":
            return (1 - F.cosine_similarity(a, b, dim=1)).mean()
        return 1 - F.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    difference = (a - b).abs() if distance == "l1" else (a - b).square()
    return difference.mean() if form == "batch" else difference.sum(dim=1).mean()


def _spectrum(logits: Tensor, form: str) -> Tensor:
    """Real and imaginary parts side by side, (n, 2·classes)."""
    logits = logits.float()
    transformed = torch.fft.fft2(logits) if form == "batch" else torch.fft.fft(logits, dim=1)
    return torch.view_as_real(transformed).flatten(1)
