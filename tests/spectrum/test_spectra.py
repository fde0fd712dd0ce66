"""Spectra against Parseval, waves of known frequency and matrices written out."""

import math

import pytest
import torch

from qrobust.errors import DataError
from qrobust.spectrum import kernel_spectrum, log_spectrum, low_to_high, magnitudes, mean_spectrum

SIZES = pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10), (10, 7)])


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@SIZES
@pytest.mark.parametrize("channels", [1, 3])
def test_parseval(size, channels):
    x = some(4, channels, *size)
    torch.testing.assert_close(magnitudes(x).square().sum((2, 3)), x.square().sum((2, 3)))


@SIZES
def test_a_wave_stands_at_its_frequency_and_its_mirror(size):
    height, width = size
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    x = torch.cos(2 * math.pi * (2 * rows[:, None] - columns[None]) + 0.3)[None, None]
    found = {tuple(place) for place in (magnitudes(x)[0, 0] > 1e-4).nonzero().tolist()}
    assert found == {(height // 2 + 2, width // 2 - 1), (height // 2 - 2, width // 2 + 1)}


@SIZES
def test_a_flat_image_stands_at_the_centre(size):
    height, width = size
    expected = torch.zeros(size)
    expected[height // 2, width // 2] = 0.5 * math.sqrt(height * width)
    torch.testing.assert_close(magnitudes(torch.full((1, 1, *size), 0.5))[0, 0], expected, atol=1e-6, rtol=1e-6)


def test_the_log_spectrum_is_one_an_image_with_a_floor():
    x = some(2, 3, 8, 8)
    torch.testing.assert_close(log_spectrum(x), magnitudes(x).mean(1).log10())
    assert (log_spectrum(torch.zeros(1, 3, 8, 8)) == -6).all()


def test_the_mean_does_not_depend_on_the_batches():
    x = some(10, 3, 8, 8)
    whole = mean_spectrum([x])
    torch.testing.assert_close(whole, magnitudes(x).mean((0, 1)))
    torch.testing.assert_close(mean_spectrum(x.split(3)), whole)  # the last batch is smaller: images count alike


def test_no_image_no_mean():
    with pytest.raises(DataError, match=r"^expected at least one image for a mean spectrum, got none; give some$"):
        mean_spectrum([])


def test_kernels_of_the_slowest_and_the_fastest_row():
    """A constant filter stands at the end, an alternating one in the middle of the row."""
    weight = torch.ones(2, 4, 3, 3)
    weight.view(2, -1)[1, 1::2] = -1
    constant, alternating = kernel_spectrum(weight)
    assert (constant.argmax(), alternating.argmax()) == (0, 18)
    torch.testing.assert_close(constant, torch.zeros(36).index_fill(0, torch.tensor(0), 36), atol=1e-4, rtol=0)
    w = some(5, 3, 3, 3)
    torch.testing.assert_close(kernel_spectrum(w).square().sum(1), 27 * w.square().sum((1, 2, 3)))


# low to high frequencies


def explicit(activation):
    """Matrices of the paper: x (p, c), LFI = 11ᵀx/p, HFI = (I - 11ᵀ/p)x."""
    x = activation.double().flatten(1).T
    mean = torch.ones(len(x), len(x), dtype=torch.float64) / len(x)
    return (mean @ x).norm() / ((torch.eye(len(x)) - mean) @ x).norm()


@SIZES
def test_the_ratio_is_that_of_the_explicit_matrices(size):
    activation = some(3, 5, *size).relu()
    expected = torch.stack([explicit(one) for one in activation])
    torch.testing.assert_close(low_to_high(activation).double(), expected, rtol=1e-5, atol=0)


def test_the_ratio_ignores_scale_and_grows_with_the_mean():
    activation = some(2, 4, 8, 8)
    torch.testing.assert_close(low_to_high(3 * activation), low_to_high(activation))
    means = [float(low_to_high(activation + offset)[0]) for offset in (1, 2, 4)]
    assert means == sorted(means)
    assert means[2] == pytest.approx(4, rel=0.1)  # offset over a standard deviation of 1


def test_a_flat_activation_is_all_low_and_a_wave_all_high():
    flat, wave = torch.ones(1, 2, 8, 8), torch.cos(math.pi * torch.arange(8.0)).expand(1, 2, 8, 8)
    assert low_to_high(flat) > 1e6
    assert low_to_high(wave) < 1e-6
