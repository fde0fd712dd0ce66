"""Experiments on layers: what must be one is one, weights are those that convolve, logs are read."""

import numpy as np
import pytest
import torch

from qrobust.analysis.cases import open_cases
from qrobust.analysis.layers import (
    convolutions,
    frequency_ratio,
    inner_kernels,
    kernel_spectra,
    kernels,
    masked_layers,
    masks,
    similarity,
    similarity_to_artifact,
    similarity_to_float,
)
from qrobust.spectrum import low_to_high

from .conftest import FINISHED, SETTINGS


def test_ratios_are_of_the_first_activation_and_epochs_are_logged(cases, other_run):
    floating, quantised = cases
    found = frequency_ratio(floating)
    model, x = floating.model, torch.cat([x for x, _ in floating.batches()])
    with torch.no_grad():
        ratios = low_to_high(model.act(model.bn(model.conv(x))))
    assert found["mean"] == pytest.approx(float(ratios.mean()), rel=1e-4)
    assert found["quantiles"][2] == pytest.approx(float(ratios.quantile(0.5)), rel=1e-4)
    assert [epoch for epoch, _ in found["epochs"]] == [1, 2]
    assert len(frequency_ratio(quantised)["epochs"]) == 1
    assert frequency_ratio(open_cases([other_run], SETTINGS)[0])["epochs"] == []


def test_layers_are_like_themselves(cases):
    found = similarity(cases[0])
    cka = np.array(found["cka"])
    assert cka.shape == (len(found["layers"]),) * 2
    assert found["layers"] == found["other_layers"]
    assert np.allclose(cka.diagonal(), 1, atol=1e-4)
    assert np.allclose(cka, cka.T, atol=1e-4)
    biased = np.array(found["cka_biased"])
    assert np.allclose(biased.diagonal(), 1, atol=1e-4)
    assert (biased > cka + 1e-4).any()  # what few images share by chance


def test_the_float_network_is_compared_with_quantised_ones_alone(cases):
    floating, quantised = cases
    assert similarity_to_float(floating) is None
    found = similarity_to_float(quantised)
    assert found["layers"] == found["other_layers"]
    assert 0.7 < np.array(found["cka"])[0, 0] <= 1.0001


def test_an_artifact_sees_what_torch_sees():
    for case in open_cases([FINISHED], SETTINGS):
        found = similarity_to_artifact(case)
        assert len(found["layers"]) == len(found["other_layers"])
        assert np.array(found["cka"]).diagonal().min() > 0.99


def test_without_an_artifact_there_is_nothing_to_compare(cases):
    assert similarity_to_artifact(cases[0]) is None


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
