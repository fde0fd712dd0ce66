"""How much of its margin under attack a network loses by few bits in one layer alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import devices
from ..attacks import StrongConfig, strong
from ..errors import ModelError
from ..objectives import margin
from ..quant import Quantizer, best_clip, quantizers
from ..threat import Threat

# Which layer loses most shows in few steps; the first part of the cascade, and no more.
ATTACK = StrongConfig(quick=True, budget=61)


@dataclass(frozen=True)
class Sensitivity:
    """Of a layer at so many bits, all others as they are: what an image loses of its margin, in logits, under attack
    and clean, and of the clean accuracy. A mean over images; one whose margin grows loses 0 and makes good for no
    other: rounding moves margins both ways, and of a mean of both only noise is left.
    """

    layer: str
    bits: int
    margin: float
    clean_margin: float
    clean_accuracy: float


@dataclass(frozen=True)
class _Margins:
    """By image, how far the right class leads: under attack and clean."""

    attacked: Tensor
    clean: Tensor


class Sensitivities:
    """Of a network from `quantize` or `ptq`, on images x (n, c, h, w) in [0,1] with labels y (n,) that it was given.

    Images that the network has wrong when clean count for nothing: their margin is lost already. Raises ModelError
    where it is right on none.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, config: StrongConfig = ATTACK, seed: int = 0
    ) -> None:
        self.model, self.threat, self.config, self.seed = model.eval(), threat, config, seed
        right = self._logits(x).argmax(1) == y
        if not right.any():
            raise ModelError(
                f"expected a network that is right on some of {len(y)} images, got none; train it longer, or mend the "
                "labels"
            )
        self.x, self.y = x[right], y[right]
        self._whole: _Margins | None = None

    def count(self, bits: Collection[int]) -> int:
        """How many pairs of a layer and a width there are."""
        return sum(width < quantizer.bits for _, quantizer, _ in weight_quantizers(self.model) for width in bits)

    def measure(self, bits: Collection[int], done: Collection[tuple[str, int]] = ()) -> Iterator[Sensitivity]:
        """Every layer with integer weights at each width, but for pairs of them that are `done`."""
        self._whole = self._whole or self._margins()
        for name, quantizer, layer in weight_quantizers(self.model):
            for width in bits:
                if (name, width) not in done and width < quantizer.bits:
                    with _narrowed(quantizer, layer, width):
                        found = self._of(name, width)
                    yield found  # outside, where the network is as it was

    def _of(self, name: str, bits: int) -> Sensitivity:
        narrow = self._margins()
        whole = self._whole
        assert whole is not None
        attacked, clean = _lost(whole.attacked, narrow.attacked), _lost(whole.clean, narrow.clean)
        return Sensitivity(name, bits, attacked, clean, float((narrow.clean <= 0).float().mean()))

    def _margins(self) -> _Margins:
        generator = devices.generator(self.seed, "sensitivity")
        found = strong(self.model, self.x, self.y, threat=self.threat, config=self.config, generator=generator)
        return _Margins(-found.lead, -margin(self._logits(self.x), self.y))

    @torch.no_grad()
    def _logits(self, x: Tensor) -> Tensor:
        return torch.cat([self.model(part) for part in torch.split(x, self.config.batch_size)])


def _lost(before: Tensor, after: Tensor) -> float:
    return float((before - after).clamp(min=0).mean())


def weight_quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer, nn.Module]]:
    """Path, quantiser and layer of all integer weights."""
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            for quantizer in quantizers(layer):
                if not quantizer.masked:
                    yield name, quantizer, layer


@contextmanager
def _narrowed(quantizer: Quantizer, layer: nn.Module, bits: int) -> Iterator[None]:
    """Inside, a layer's weights have so many bits, with the clip of least error."""
    before, clip = quantizer.bits, quantizer.clip.detach().clone()
    quantizer.set_bits(bits)
    try:
        with torch.no_grad():
            weight = layer.weight
            assert isinstance(weight, Tensor)
            found = best_clip(weight, quantizer.low, quantizer.high, per_channel=clip.dim() > 0)
            quantizer.clip.copy_(found.view_as(clip) / quantizer.unit)
        yield
    finally:
        quantizer.set_bits(before)
        with torch.no_grad():
            quantizer.clip.copy_(clip)
