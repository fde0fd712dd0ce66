"""Noise is what it says, and looks at no network."""

import pytest
import torch

from qrobust.attacks import gaussian_noise

from .helpers import seeded

GREY = torch.full((20, 3, 20, 20), 0.5)


@pytest.mark.parametrize("std", [0.05, 0.1])
def test_mean_and_spread(std):
    noise = gaussian_noise(GREY, std=std, generator=seeded()) - 0.5
    assert noise.mean().item() == pytest.approx(0, abs=0.003)
    assert noise.std().item() == pytest.approx(std, rel=0.02)


def test_pixels_stay_in_range():
    noisy = gaussian_noise(torch.rand(4, 3, 8, 8, generator=seeded()).round(), std=0.5)
    assert noisy.min() == 0
    assert noisy.max() == 1


def test_the_generator_decides():
    first, again, other = (gaussian_noise(GREY, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_cpu_generator_serves_every_device():
    assert gaussian_noise(GREY.to("meta"), generator=seeded()).device.type == "meta"
