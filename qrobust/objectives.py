"""Terms of training losses, pure functions of logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .spectrum import spectral_distance


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """mean_i -log softmax(z_i)[y_i]; logits (n, classes), y (n,)."""
    return F.cross_entropy(logits, y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k - z_y per sample, (n,): positive where the label is lost."""
    others = logits.scatter(1, y[:, None], float("-inf"))
    return others.amax(dim=1) - logits.gather(1, y[:, None])[:, 0]


def sar(clean: Tensor, adversarial: Tensor, *, form: str = "batch", distance: str = "l1") -> Tensor:
    """Spectral alignment: the distance of the logits' Fourier transforms.

    clean, adversarial: (n, classes), both with gradient.

    Huang et al., "A Spectral Perspective towards Understanding and Improving Adversarial Robustness", eq. 3.
    """
    return spectral_distance(clean, adversarial, form=form, distance=distance)
