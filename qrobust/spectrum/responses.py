"""What a network answers to frequencies: accuracy over bandwidths, its first layer, the Fourier heat map.

`model` maps images (n, c, h, w) to logits (n, classes): a network in eval mode, or any function. Weights that cost
something to compute are best held while it is asked (`models.inference.frozen`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..errors import DataError, ModelError
from .filters import Band, filtered, fourier_basis, half_plane, unfold

Model = Callable[[Tensor], Tensor]
OnStep = Callable[[int], object]


@torch.no_grad()
def low_pass_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    bandwidths: Sequence[int],
    *,
    on_step: OnStep | None = None,
) -> list[float]:
    """Share of images that are right after LPF_k, clamped to [0,1], for each bandwidth k.

    batches: images x (n, c, h, w) in [0,1], clean or adversarial, and their labels y (n,). bandwidths: 1 to the side.
    on_step: called with the number of images after each pass; len(bandwidths) passes a batch, none larger than it.
    Raises DataError for a bandwidth out of range or no image, ModelError for a network in train mode.
    Reference: Huang et al., "A Spectral Perspective", table I; "A Fourier Domain-based Study", table 1.
    """
    views = ((_filtered(x, bandwidths), y) for x, y in batches)
    return _shares_right(model, views, len(bandwidths), on_step)


@torch.no_grad()
def perturbed_accuracy(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    bandwidths: Sequence[int],
    *,
    band: Band,
    on_step: OnStep | None = None,
) -> list[float]:
    """Aggressiveness of a band: share right on x + F_k(x_adv - x), clamped to [0,1], F_k = LPF_k or HPF_k.

    batches: x, x_adv (n, c, h, w) in [0,1] and y (n,). band: "low" or "high", kept of the perturbation.
    Others as in `low_pass_accuracy`. Reference: "A Spectral Perspective", fig. 6.
    """
    views = ((banded(x, x_adv, bandwidths, band=band), y) for x, x_adv, y in batches)
    return _shares_right(model, views, len(bandwidths), on_step)


def banded(x: Tensor, x_adv: Tensor, bandwidths: Sequence[int], *, band: Band) -> Iterator[Tensor]:
    """x + F_k(x_adv - x), clamped to [0,1], for one bandwidth k after the other.

    x, x_adv: (n, c, h, w) in [0,1]; so is each result. band: what F_k keeps, "low" or "high" frequencies.
    """
    for delta in filtered(x_adv - x, bandwidths, band):
        yield (x + delta).clamp_(0, 1)


def _filtered(x: Tensor, bandwidths: Sequence[int]) -> Iterator[Tensor]:
    return (part.clamp(0, 1) for part in filtered(x, bandwidths, "low"))


def check_model(model: Model) -> None:
    """Raises ModelError for a network in train mode, whose answers depend on the batch and change it."""
    if isinstance(model, nn.Module) and model.training:
        raise ModelError("expected a network in eval mode, got one in train mode; call model.eval() first")


def channels_last_of(x: Tensor) -> Tensor:
    """Channels last, as networks are placed (`machine.placed`)."""
    return x.contiguous(memory_format=torch.channels_last)


def _shares_right(
    model: Model, batches: Iterable[tuple[Iterator[Tensor], Tensor]], views: int, on_step: OnStep | None
) -> list[float]:
    check_model(model)
    right, seen = torch.zeros(views, dtype=torch.int64), 0
    for images, y in batches:
        for index, x in enumerate(images):
            right[index] += int((model(channels_last_of(x)).argmax(1) == y).sum())
            if on_step:
                on_step(len(y))
        seen += len(y)
    if not seen:
        raise DataError("expected at least one image to count on, got none; give some")
    return (right.double() / seen).tolist()


LAYERS = (nn.Conv2d, nn.modules.batchnorm._NormBase)


@torch.no_grad()
def first_activation(model: nn.Module, x: Tensor) -> Tensor:
    """act(bn(conv(x))) of the first convolution, (n, c, h, w) ("A Fourier Domain-based Study", 3.1.3).

    That is what the first module gives that begins behind it and holds neither convolution nor batch-norm; where none
    does before the second convolution (an activation that is a function), what the last module gave.
    x: images (n, c, h, w) in [0,1]. Raises ModelError for a network in train mode or without a convolution.
    """
    check_model(model)
    seen = _Seen()
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(seen.begin))
        handles.append(module.register_forward_hook(seen.end))
    try:
        model(channels_last_of(x))
    finally:
        for handle in handles:
            handle.remove()
    if seen.output is None:
        raise ModelError("expected a network with a convolution, got one without; its first layer has no frequencies")
    return seen.output


class _Seen:
    """Listens to one pass, from the first convolution to its activation."""

    def __init__(self) -> None:
        self.conv: nn.Module | None = None
        self.activation: nn.Module | None = None
        self.output: Tensor | None = None
        self.done = False

    def begin(self, module: nn.Module, inputs: Any) -> None:  # noqa: ARG002, a hook's signature
        """The convolution, the activation behind it, or a second convolution: then there was none."""
        if isinstance(module, nn.Conv2d):
            self.done = self.done or (self.conv is not None and self.activation is None)
            self.conv = self.conv or module
        elif self.output is not None and self.activation is None and _may_be_activation(module):
            self.activation = module

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        """What comes last counts, up to the activation; what runs inside one (its quantisers) ends before it."""
        behind = self.output is not None or module is self.conv
        if self.done or not behind or not isinstance(output, Tensor) or output.dim() != 4:
            return
        self.output, self.done = output, module is self.activation


def _may_be_activation(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity) and not any(isinstance(part, LAYERS) for part in module.modules())


@torch.no_grad()
def heat_map(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: float,
    generator: Generator,
    batch_size: int = 128,
    on_step: OnStep | None = None,
) -> Tensor:
    r"""Error rate on x + r·v·U_ij at (i, j), (h, w) in [0, 1], the zero frequency at (h // 2, w // 2).

    model: maps images to logits; see `accuracy`. x: images (n, c, h, w) in [0,1]. y: labels (n,). norm: v, the L2 norm
    of what is added to each channel. r: 1 or -1, drawn from the generator (on the CPU) for every image, frequency
    and channel. As published nothing is clamped, which would add other frequencies; pixels may leave [0,1].
    A frequency and its partner are the same image, so each pair is asked once: n·len(half_plane(h, w)) images in
    all, batch_size of them a pass, over several frequencies where n is small; more are never held. The batch size
    changes no draw. on_step: called with the number of images after each pass.
    Raises DataError for no images, labels of another number or a batch size below 1, ModelError in train mode.
    Reference: Yin et al. 2019, arXiv 1906.08988; Huang et al., "A Spectral Perspective", fig. 7 and appendix B.
    """
    _check(model, x, y, batch_size)
    n, channels, height, width = x.shape
    positions = half_plane(height, width)
    wrong = torch.zeros(len(positions), dtype=torch.int64, device=x.device)
    for start in range(0, n * len(positions), batch_size):
        rows = torch.arange(start, min(start + batch_size, n * len(positions)))
        first, last = start // n, int(rows[-1]) // n
        waves = norm * fourier_basis(positions[first : last + 1].to(x.device), height, width)
        signs = 2 * torch.randint(2, (len(rows), channels, 1, 1), generator=generator) - 1
        which, image = (rows // n).to(x.device), (rows % n).to(x.device)
        noisy = x[image].addcmul_(signs.to(x), waves[which - first].unsqueeze(1))
        wrong.index_add_(0, which, (model(channels_last_of(noisy)).argmax(1) != y[image]).long())
        if on_step:
            on_step(len(rows))
    return unfold(wrong / n, height, width)


def _check(model: Model, x: Tensor, y: Tensor, batch_size: int) -> None:
    check_model(model)
    if not len(x) or len(x) != len(y):
        raise DataError(f"expected images and one label for each, got {len(x)} and {len(y)}; give both alike")
    if batch_size < 1:
        raise DataError(f"expected a batch size of at least 1, got {batch_size}; choose a positive number")
