"""What is seen in weights alone: kernels, their spectra, FAT's masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...models.inference import Computing
from ...quant import FAT
from ...spectrum import kernel_spectrum
from ..cases import Case
from .numbers import numbers

KERNELS, INNER, ROWS = 16, 16, 64  # filters shown; of an inner convolution also inputs; rows of a spectrum
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def kernels(case: Case) -> dict[str, Any]:
    """The first convolution's kernels as they convolve (quantised, behind FAT), (filters, inputs, kh, kw)."""
    name, weight = convolutions(case.model)[0]
    return {"layer": name, "filters": len(weight), "weight": numbers(weight[:KERNELS])}


def inner_kernels(case: Case) -> dict[str, Any]:
    """The second convolution's, the first inner one, of `quant.edge_layers`' other width."""
    name, weight = convolutions(case.model)[1]
    return {"layer": name, "filters": len(weight), "weight": numbers(weight[:INNER, :INNER])}


def kernel_spectra(case: Case) -> dict[str, Any]:
    """|DFT| of the first two convolutions' reshaped filters, each divided by its greatest, (filters, inputs·kh·kw)."""
    layers = []
    for name, weight in convolutions(case.model)[:2]:
        spectrum = kernel_spectrum(weight[:ROWS])
        layers.append({"name": name, "spectrum": numbers(spectrum / spectrum.max().clamp_min(1e-12))})
    return {"layers": layers}


@torch.no_grad()
def masks(case: Case) -> dict[str, Any] | None:
    """Quantiles of every FAT mask, layer by layer; none of a network without masks."""
    found = []
    for name, mask in masked_layers(case.model):
        values = mask.double().flatten()
        quantiles = torch.quantile(values, torch.tensor(QUANTILES).to(values))
        found.append({"name": name, "mean": float(values.mean()), "quantiles": numbers(quantiles)})
    return {"levels": list(QUANTILES), "layers": found} if found else None


@torch.no_grad()
def convolutions(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and effective weights of all convolutions that see neighbours, in the order of their definition."""
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    wide = [(name, layer) for name, layer in layers if layer.kernel_size != (1, 1)] or layers
    return [(name, layer.compute()[0] if isinstance(layer, Computing) else layer.weight) for name, layer in wide]


@torch.no_grad()
def masked_layers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Names and masks of all layers behind FAT whose masks learn."""
    return list(_masks(model))


def _masks(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, layer in model.named_modules():
        held = getattr(getattr(layer, "parametrizations", None), "weight", ())
        for part in held:
            if isinstance(part, FAT) and part.form != "identity":
                yield name, part.mask(held.original)  # type: ignore[union-attr]
