"""What an attacker may do: a norm ball around the image, inside the range of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from torch import Generator, Tensor

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Threat:
    r"""All images within `eps` of x in the given norm, with pixels inside `bounds`.

    norm: `"linf"` or `"l2"`. eps: radius in units of [0,1] pixels. bounds: range of a pixel.
    Tensors are batches (n, ...); norms are taken per sample.

    Attack loops call the three methods and never mention a norm:

    - `random_start(x, generator)`: a uniform draw from the ball (l2: uniform in volume);
    - `direction(gradient)`: the steepest ascent step of unit norm (sign, or g/‖g‖₂);
    - `project(x_adv, x)`: the nearest point of the ball, then of the pixel range.

    Raises RecipeError for an unknown norm or an eps outside (0, bounds' width] (times √pixels for l2).

    >>> Threat("linf", 8 / 255).eps
    0.03137254901960784
    """

    norm: Literal["linf", "l2"]
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise RecipeError(f"expected a norm, got {self.norm!r}{did_you_mean(self.norm, NORMS)}")
        width = self.bounds[1] - self.bounds[0]
        if not self.eps >= 0 or (self.norm == "linf" and self.eps > width):
            raise RecipeError(
                f"expected eps in [0, {width:g}], the range of a pixel, got {self.eps:g}; write 8/255, not 8"
            )

    def random_start(self, x: Tensor, generator: Generator | None = None) -> Tensor:
        """A random point of the ball around x (n, ...), inside the pixel range."""
        import torch

        source = x.device if generator is None else generator.device  # a CPU generator serves every device
        noise = torch.empty(x.shape, dtype=x.dtype, device=source)
        if self.norm == "linf":
            noise.uniform_(-self.eps, self.eps, generator=generator)
        else:
            noise.normal_(generator=generator)
            radius = torch.rand(len(x), generator=generator, device=source) ** (1 / x[0].numel())
            noise = self.direction(noise) * _per_sample(radius.to(x.dtype) * self.eps, x)
        return (x + noise.to(x.device)).clamp(*self.bounds)

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along which a linear loss with this gradient rises fastest; zero where it is zero."""
        if self.norm == "linf":
            return gradient.sign()
        largest = gradient.flatten(1).abs().amax(dim=1)
        scaled = gradient / _per_sample(largest.where(largest > 0, 1), gradient)  # else squares vanish or overflow
        return scaled / _per_sample(scaled.flatten(1).norm(dim=1).clamp_min(1), gradient)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """The point of the ball around x nearest to x_adv, inside the pixel range."""
        import torch

        if self.norm == "linf":
            x_adv = torch.minimum(torch.maximum(x_adv, x - self.eps), x + self.eps)
        else:
            delta = x_adv - x
            length = delta.flatten(1).norm(dim=1)
            x_adv = x + delta * _per_sample((self.eps / length.clamp_min(1e-12)).clamp_max(1.0), x)
        return x_adv.clamp(*self.bounds)

    def scaled(self, factor: float) -> Threat:
        """The same with eps times `factor`, in l-inf at most the range of a pixel."""
        eps, width = self.eps * factor, self.bounds[1] - self.bounds[0]
        return Threat(self.norm, min(eps, width) if self.norm == "linf" else eps, self.bounds)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Norm of x_adv - x per sample, shape (n,)."""
        delta = (x_adv - x).flatten(1)
        return delta.abs().amax(dim=1) if self.norm == "linf" else delta.norm(dim=1)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
