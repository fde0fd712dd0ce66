"""Sweeps against filters applied one by one, on networks that look at known frequencies."""

import math

import pytest
import torch
from torch import nn

from qrobust.errors import DataError, ModelError
from qrobust.spectrum import banded, high_pass, low_pass, low_pass_accuracy, perturbed_accuracy

SIDE = 8


def images(n=24, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, SIDE, SIDE, generator=generator), torch.arange(n) % 3


def in_batches(*tensors, size=7):
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def some_net(channels=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * SIDE * SIDE, 3)).eval()


def right(model, x, y):
    return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sweep_is_the_filter_one_bandwidth_at_a_time(channels):
    (x, y), model = images(channels=channels), some_net(channels)
    found = low_pass_accuracy(model, in_batches(x, y), [1, 4, 5, SIDE])
    expected = [right(model, low_pass(x, k).clamp(0, 1), y) for k in (1, 4, 5, SIDE)]
    assert found == pytest.approx(expected)
    assert found[-1] == pytest.approx(right(model, x, y))


@pytest.mark.parametrize(("band", "keep"), [("low", low_pass), ("high", high_pass)])
def test_aggressiveness_filters_the_perturbation_alone(band, keep):
    (x, y), model = images(), some_net()
    x_adv = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    found = perturbed_accuracy(model, in_batches(x, x_adv, y), [2, 5, SIDE], band=band)
    expected = [right(model, (x + keep(x_adv - x, k)).clamp(0, 1), y) for k in (2, 5, SIDE)]
    assert found == pytest.approx(expected)
    views = list(banded(x, x_adv, [3, SIDE], band=band))
    torch.testing.assert_close(views[0], (x + keep(x_adv - x, 3)).clamp(0, 1))
    torch.testing.assert_close(views[1], x_adv)
    assert min(float(view.min()) for view in views) >= 0


def test_a_band_beside_the_perturbation_does_nothing():
    """A wave at frequency 3 needs LPF_7 to pass, and HPF_3 of side 8 lets it pass."""
    x, _ = images(channels=1)
    x = 0.25 + 0.5 * x
    place = torch.arange(SIDE)
    wave = 0.2 * torch.cos(2 * math.pi * 3 * (place[:, None] + place) / SIDE)
    low = list(banded(x, x + wave, [5, 7], band="low"))
    high = list(banded(x, x + wave, [1, 3], band="high"))
    for without, with_it in (low, high):
        torch.testing.assert_close(without, x, atol=1e-6, rtol=0)
        torch.testing.assert_close(with_it, x + wave, atol=1e-6, rtol=0)


def test_progress_counts_every_pass():
    x, y = images()
    passed = []
    low_pass_accuracy(some_net(), in_batches(x, y), [1, 3], on_step=passed.append)
    assert passed == [7, 7, 7, 7, 7, 7, 3, 3]


def test_the_network_sees_pixels_in_range_and_no_gradient():
    (x, y), seen = images(), []
    x = x.round()  # black and white: filters ring

    def model(view):
        assert not torch.is_grad_enabled()
        seen.append(view)
        return view.flatten(1)

    low_pass_accuracy(model, in_batches(x, y), [3])
    perturbed_accuracy(model, in_batches(x, 1 - x, y), [3], band="high")
    assert low_pass(x, 3).max() > 1.01
    assert len(seen) == 8
    assert all(view.min() >= 0 and view.max() <= 1 for view in seen)


@pytest.mark.parametrize("k", [0, SIDE + 1])
def test_a_band_out_of_range_is_refused(k):
    with pytest.raises(DataError, match=rf"^expected a bandwidth in \[1, 8\], the side of the images, got {k}"):
        low_pass_accuracy(some_net(), in_batches(*images()), [3, k])


def test_no_images_and_train_mode_are_refused():
    with pytest.raises(DataError, match=r"^expected at least one image to count on, got none; give some$"):
        low_pass_accuracy(some_net(), [], [3])
    with pytest.raises(ModelError, match=r"^expected a network in eval mode, got one in train mode; call model.eval"):
        perturbed_accuracy(some_net().train(), [], [3], band="low")
