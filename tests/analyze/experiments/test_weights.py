"""Weights as they convolve, their spectra, and masks."""

import pytest
import torch

from qrobust.analyze.experiments.weights import (
    convolutions,
    inner_kernels,
    kernel_spectra,
    kernels,
    masked_layers,
    masks,
)


def test_kernels_are_those_that_convolve(cases):
    """A quantised layer's are on its grid; 1 × 1 convolutions of shortcuts are left out."""
    for case in cases:
        found = kernels(case)
        assert (found["layer"], found["filters"]) == ("conv", 16)
        layer = case.model.get_submodule("conv")
        weight = layer.compute()[0] if hasattr(layer, "compute") else layer.weight
        assert torch.allclose(torch.tensor(found["weight"]), weight, rtol=1e-4)
        assert all(weight.shape[-1] > 1 for _, weight in convolutions(case.model))


def test_inner_kernels_of_four_bits_have_fifteen_values_a_filter(cases):
    for case, most in zip(cases, (None, 15), strict=True):
        weight = torch.tensor(inner_kernels(case)["weight"])
        assert weight.shape == (16, 16, 3, 3)
        values = max(len(filter_.unique()) for filter_ in weight)
        assert values > 100 if most is None else values <= most


def test_spectra_are_those_of_reshaped_filters(cases):
    (name, weight), *_ = convolutions(cases[0].model)
    first, second = kernel_spectra(cases[0])["layers"]
    spectrum = torch.fft.fft(weight.flatten(1)).abs()
    assert first["name"] == name
    assert torch.allclose(torch.tensor(first["spectrum"]), spectrum / spectrum.max(), atol=1e-4)
    assert torch.tensor(second["spectrum"]).shape == (16, 144)


def test_masks_of_every_layer_behind_fat(cases):
    floating, quantised = cases
    assert masks(floating) is None
    found = masks(quantised)
    layers = dict(masked_layers(quantised.model))
    assert [layer["name"] for layer in found["layers"]] == list(layers)
    assert "conv" not in layers
    for layer in found["layers"]:
        mask = layers[layer["name"]]
        assert layer["quantiles"][::3] == pytest.approx([float(q) for q in mask.flatten().quantile(
            torch.tensor([0.0, 0.5, 1.0]))], rel=1e-4)  # fmt: skip
        assert layer["mean"] == pytest.approx(float(mask.mean()), rel=1e-4)
