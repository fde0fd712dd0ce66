"""Experiments on layers: kernels and their spectra, FAT's masks, what activations hold, how alike layers are.

Each takes one case (`cases.Case`) and returns data that JSON can hold, None where it says nothing of the case.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import devices
from ..models.inference import Computing, frozen
from ..progress import bar
from ..quant import FAT
from ..runs.folder import FLOAT
from ..spectrum import Alignment, first_activation, kernel_spectrum, layer_names, low_to_high, network_alignment
from ..spectrum.similarity import LEAST, gram, layer_grams
from ..storage import read_lines
from .cases import Case
from .encoding import numbers

KERNELS, INNER, ROWS = 16, 16, 64  # filters shown; of an inner convolution also inputs; rows of a spectrum
MASK_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
RATIO_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
PRODUCTS = ("Conv", "Gemm", "MatMul")  # operators of a graph that stand for layers


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
        quantiles = torch.quantile(values, torch.tensor(MASK_LEVELS).to(values))
        found.append({"name": name, "mean": float(values.mean()), "quantiles": numbers(quantiles)})
    return {"levels": list(MASK_LEVELS), "layers": found} if found else None


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
        parts = getattr(getattr(layer, "parametrizations", None), "weight", ())
        for part in parts:
            if isinstance(part, FAT) and part.form != "identity":
                yield name, part.mask(parts.original)  # type: ignore[union-attr]


def frequency_ratio(case: Case) -> dict[str, Any]:
    """R of the first activation: quantiles over the test images, and its mean on training images after every epoch.

    The latter only where `train.log_frequency_ratio` was set.
    """
    with frozen(case.model):
        ratios = torch.cat([low_to_high(first_activation(case.model, x)).cpu() for x, _ in case.batches()])
    quantiles = torch.quantile(ratios.double(), torch.tensor(RATIO_LEVELS, dtype=torch.float64))
    records = read_lines(case.files.metrics)
    epochs = [[record["epoch"], record["frequency_ratio"]] for record in records if "frequency_ratio" in record]
    return {
        "mean": float(ratios.mean()),
        "levels": list(RATIO_LEVELS),
        "quantiles": numbers(quantiles),
        "epochs": epochs,
    }


def similarity(case: Case) -> dict[str, Any]:
    """Linear CKA between all layers of the network, on its adversarial images."""
    return _between(case, case.model, case.model)


def similarity_to_float(case: Case) -> dict[str, Any] | None:
    """Linear CKA between the layers of a quantised network and of the float one, on the former's adversarial images."""
    return None if case.bits == FLOAT else _between(case, case.model, case.run.network(FLOAT))


@torch.no_grad()
def similarity_to_artifact(case: Case) -> dict[str, Any] | None:
    """Linear CKA between the network's layers and those of its artifact, computed by torch from the graph.

    On adversarial images rounded to 8 bits. Batch-norm counts with the convolution before it, as in the graph.
    """
    path = case.files.artifact / "model.onnx"
    if not path.exists():
        return None
    from ..onnx_module import load_onnx

    rebuilt, alignment = load_onnx(path).to(devices.device_of(case.model)), Alignment()
    names = layer_names(case.model)
    products = [step.node.outputs[0] for step in rebuilt.plan.steps if step.node.op in PRODUCTS]
    batches = case.adversarial()
    with frozen(case.model), _progress(case) as moving:
        for _, x_adv, _ in batches:
            x = (x_adv * 255).round() / 255
            if len(x) >= LEAST:
                alignment.update(layer_grams(case.model, names, x), _rebuilt_grams(rebuilt, products, x))
            moving.advance(len(x))
    return _aligned(names, products, alignment)


def _between(case: Case, first: nn.Module, second: nn.Module) -> dict[str, Any]:
    batches: Iterator[Tensor] = (x_adv for _, x_adv, _ in case.adversarial())
    # A batch-norm that is folded would count with the convolution before it.
    with frozen(first, fold=False), frozen(second, fold=False), _progress(case) as moving:
        alignment = network_alignment(first, second, batches, on_step=moving.advance)
    return _aligned(layer_names(first), layer_names(second), alignment)


def _aligned(names: list[str], others: list[str], alignment: Alignment) -> dict[str, Any]:
    """CKA of both estimates: the unbiased one is drawn, the biased one is that of most papers."""
    estimates = {"cka": alignment.value(), "cka_biased": alignment.value(biased=True)}
    return {"layers": names, "other_layers": others, **{name: numbers(cka) for name, cka in estimates.items()}}


def _rebuilt_grams(rebuilt: Any, names: list[str], x: Tensor) -> list[Tensor]:
    if rebuilt.plan.images.dtype == torch.uint8:  # bytes, channels last
        x = (x * 255).round().byte().permute(0, 2, 3, 1)
    parts = [rebuilt.inside(part) for part in torch.split(x, rebuilt.plan.batch or len(x))]
    return [gram(torch.cat([part[name] for part in parts])) for name in names]


def _progress(case: Case) -> Any:
    return bar(f"{case.label}: similarity", len(case.images), "images")
