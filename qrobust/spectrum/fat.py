"""Frequency-aware transformation of convolution weights (Tao et al. 2021, arXiv 2102.07444).

The mask as published starts as the identity: with unit-variance weights |F| ≈ 0.9·√N, so the sigmoid
saturates (m ≥ 0.9997 at N = 144) and from N ≈ 1152 on has no gradient. `"normalised"` divides |F| by its
mean and centres the score, so that the mask starts around 1 and can move both ways.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

Parameters = tuple[Tensor, Tensor | None]  # weight and bias
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


class FAT(nn.Module):
    """Weight parametrisation: the frequency-aware transform with its learned channel mixing A (C_out, C_out).

    rescale: give the standard deviation back, for a layer that no batch-norm follows.
    """

    def __init__(self, channels: int, form: str, *, rescale: bool = False) -> None:
        super().__init__()
        self.form, self.rescale = form, rescale
        # Several processes wait for the gradient of every parameter that asks for one: the identity has none.
        self.mixing = nn.Parameter(torch.full((channels, channels), 1 / channels), requires_grad=form != "identity")

    def forward(self, weight: Tensor) -> Tensor:
        """(C_out, C_in, kh, kw) → the same shape, in float32 under autocast too: a mask near 1 needs its digits."""
        with torch.autocast(weight.device.type, enabled=False):
            transformed = fat_transform(weight, self.mixing, self.form)
            return transformed * weight.std().detach() if self.rescale else transformed

    def mask(self, weight: Tensor) -> Tensor:
        """The mask on the spectrum of a weight, (C_out, N/2 + 1), in float32 too."""
        with torch.autocast(weight.device.type, enabled=False):
            return fat_mask(filter_spectrum(weight), self.mixing, self.form)


class TransformedConv2d(nn.Conv2d):
    """A float convolution behind FAT, which tells the weight that it convolves with."""

    computed: Parameters | None = None

    def compute(self) -> Parameters:
        """Weight (C_out, C_in/groups, kh, kw) as FAT gives it, and bias."""
        return effective_weight(self), self.bias

    def _weight(self) -> Tensor:
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """As torch's own."""
        return cast(Tensor, self._conv_forward(x, *(self.computed or self.compute())))


def effective_weight(layer: Any) -> Tensor:
    """What a layer's `_weight` computes. What FAT computes on the way is several times as large as a weight: it is
    computed again when gradients pass.
    """
    if _is_trained_behind_fat(layer):
        return cast(Tensor, checkpoint(layer._weight, use_reentrant=False, preserve_rng_state=False))
    weight: Tensor = layer._weight()
    return weight


def _is_trained_behind_fat(layer: nn.Module) -> bool:
    """Not while an attack works on it, which asks for no gradient of a weight."""
    if not (torch.is_grad_enabled() and parametrize.is_parametrized(layer, "weight")):
        return False
    return bool(layer.parametrizations.weight.original.requires_grad)  # type: ignore[union-attr]


def transformed_conv(conv: nn.Conv2d, fat: FAT) -> nn.Module:
    """A float convolution with this one's weight and bias, the weight behind FAT."""
    layer = TransformedConv2d(
        conv.in_channels, conv.out_channels, cast(Any, conv.kernel_size), cast(Any, conv.stride),
        cast(Any, conv.padding), cast(Any, conv.dilation), conv.groups, conv.bias is not None, conv.padding_mode,
        device="meta",
    )  # fmt: skip
    layer.weight, layer.bias = conv.weight, conv.bias
    layer.train(conv.training)
    parametrize.register_parametrization(layer, "weight", fat)
    return layer


def fold_fat(model: nn.Module) -> nn.Module:
    """Every layer behind FAT replaced by one with the weight that it gives, in place; outputs stay bit-equal.

    Returns the model, or what stands for it if it is such a layer itself.
    """
    for parent in list(model.modules()):
        for name, layer in parent._modules.items():
            if layer is not None and parametrize.is_parametrized(layer, "weight"):
                parent._modules[name] = _without_fat(layer)
    return _without_fat(model) if parametrize.is_parametrized(model, "weight") else model


def _without_fat(layer: nn.Module) -> nn.Module:
    """A layer that shares all but the weight. torch's own remove_parametrizations changes the class in place, which a
    deep copy shares with its original.
    """
    kind: Any = parametrize.type_before_parametrizations(layer)
    kind = nn.Conv2d if kind is TransformedConv2d else kind
    made: nn.Module = kind.__new__(kind)
    parameters = {**layer._parameters, "weight": nn.Parameter(cast(Tensor, layer.weight).detach().clone())}
    modules = {name: child for name, child in layer._modules.items() if name != "parametrizations"}
    vars(made).update({**vars(layer), "_parameters": parameters, "_modules": modules})
    for proxy in modules.values():  # Brevitas' exporter goes from them to the layer
        tracked = getattr(proxy, "tracked_module_list", [])
        tracked[:] = [made if module is layer else module for module in tracked]
    return made
