"""Ratios and likeness: what must be one is one, and logs are read."""

import numpy as np
import pytest
import torch

from qrobust.analyze.cases import open_cases
from qrobust.analyze.experiments.layers import frequency_ratio, similarity, similarity_to_artifact, similarity_to_float
from qrobust.spectrum import low_to_high

from ..conftest import SETTINGS


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


def test_the_float_network_is_compared_with_quantised_ones_alone(cases):
    floating, quantised = cases
    assert similarity_to_float(floating) is None
    found = similarity_to_float(quantised)
    assert found["layers"] == found["other_layers"]
    assert 0.7 < np.array(found["cka"])[0, 0] <= 1.0001


def test_an_artifact_sees_what_torch_sees(small_run):
    for case in open_cases([small_run], SETTINGS):
        found = similarity_to_artifact(case)
        assert len(found["layers"]) == len(found["other_layers"])
        assert np.array(found["cka"]).diagonal().min() > 0.99


def test_without_an_artifact_there_is_nothing_to_compare(cases):
    assert similarity_to_artifact(cases[0]) is None
