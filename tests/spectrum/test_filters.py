"""Filters against the frequencies they are to keep, written out by the definition of the DFT."""

import math

import numpy as np
import pytest
import torch

from qrobust.errors import DataError
from qrobust.spectrum import high_pass, low_pass

SIZES = [(8, 8), (9, 9), (7, 10), (10, 7)]
FILTERS = pytest.mark.parametrize("keep", [low_pass, high_pass])
BANDS = [(size, k) for size in SIZES for k in (1, 2, 3, 4, 5, 6, 7)]


def some_images(size, n=2):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(0))


def frequencies(side, bandwidth, *, low):
    """Which of a side's frequencies are kept, as whole numbers; from the published description, not the code.

    Sorted from the most negative to the most positive one, zero in the middle, low keeps the `bandwidth` ones
    around zero. high keeps as many around the middle of the order 0, 1, …, -1 in which a DFT comes.
    """
    order = [f if f <= (side - 1) // 2 else f - side for f in range(side)]
    order = sorted(order) if low else order
    first = side // 2 - bandwidth // 2
    return order[first : first + bandwidth]


def explicit(x, bandwidth, *, low):
    """Σ over the kept frequencies, through DFT matrices in double precision."""

    def matrix(side):
        kept = np.array(frequencies(side, bandwidth, low=low))
        waves = np.exp(2j * np.pi * np.outer(kept, np.arange(side)) / side)
        return waves.T @ waves.conj() / side  # projects on the kept waves

    rows, columns = (matrix(side) for side in x.shape[-2:])
    return torch.from_numpy((rows @ x.double().numpy() @ columns.T).real)


def wave(size, u, v, phase=0.4):
    """cos(2π(u·i/h + v·j/w) + phase), (1, 1, h, w)."""
    rows, columns = (torch.arange(side, dtype=torch.float64) / side for side in size)
    return torch.cos(2 * math.pi * (u * rows[:, None] + v * columns[None]) + phase)[None, None].float()


@pytest.mark.parametrize(("size", "k"), BANDS)
def test_filters_keep_what_the_definition_names(size, k):
    x = some_images(size)
    torch.testing.assert_close(low_pass(x, k).double(), explicit(x, k, low=True), atol=1e-6, rtol=0)
    torch.testing.assert_close(high_pass(x, k).double(), explicit(x, k, low=False), atol=1e-6, rtol=0)


@FILTERS
@pytest.mark.parametrize("side", [8, 9])
def test_the_side_keeps_everything(keep, side):
    x = some_images((side, side))
    torch.testing.assert_close(keep(x, side), x)


def test_the_lowest_frequency_is_the_mean():
    x = some_images((7, 10))
    torch.testing.assert_close(low_pass(x, 1), x.mean((2, 3), keepdim=True).expand_as(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_an_odd_band_and_the_rest_share_the_image(size, k):
    """What is kept is untouched and what is not is gone, for a band as wide to both sides of zero."""
    x = some_images(size)
    low, spectrum = low_pass(x, k), torch.fft.fftshift(torch.fft.fft2(some_images(size)), dim=(-2, -1))
    centre = [side // 2 for side in size]
    inside = torch.zeros(size, dtype=torch.bool)
    reach = k // 2
    inside[centre[0] - reach : centre[0] + reach + 1, centre[1] - reach : centre[1] + reach + 1] = True
    kept, rest = (torch.fft.fftshift(torch.fft.fft2(part), dim=(-2, -1)) for part in (low, x - low))
    torch.testing.assert_close(kept, spectrum * inside, atol=1e-4, rtol=0)
    torch.testing.assert_close(rest, spectrum * ~inside, atol=1e-4, rtol=0)
    torch.testing.assert_close(x.square().sum(), low.square().sum() + (x - low).square().sum())  # Parseval


@FILTERS
@pytest.mark.parametrize("size", SIZES)
def test_energy_falls_and_a_wider_band_keeps_more(keep, size):
    x = some_images(size) - 0.5
    energies = [float(keep(x, k).square().sum()) for k in range(1, min(size) + 1)]
    assert energies == sorted(energies)
    assert energies[-1] <= float(x.square().sum()) * (1 + 1e-6)
    assert energies[0] < energies[-1] / 2


@FILTERS
def test_an_odd_band_of_even_sides_is_a_projection(keep):
    x = some_images((8, 8))
    once = keep(x, 5)
    torch.testing.assert_close(keep(once, 5), once, atol=1e-6, rtol=0)


@FILTERS
def test_filters_are_linear_and_every_image_alone(keep):
    x, y = some_images((8, 8)), some_images((8, 8)).flip(0) ** 2
    torch.testing.assert_close(keep(2 * x - y, 3), 2 * keep(x, 3) - keep(y, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(keep(x, 3)[1:, 2:], keep(x[1:, 2:], 3))


# Waves at the edge of the band


@pytest.mark.parametrize("side", [8, 9, 10, 11])
@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_waves_at_the_edge_of_an_odd_band(side, k):
    """The last one inside passes unchanged, the first one outside vanishes: along rows, columns and both."""
    edge = k // 2
    for u, v in ((edge, 0), (0, edge), (edge, edge), (edge, -edge)):
        x = wave((side, side), u, v)
        torch.testing.assert_close(low_pass(x, k), x, atol=1e-6, rtol=0)
    for u, v in ((edge + 1, 0), (0, edge + 1), (edge + 1, edge), (-edge, edge + 1)):
        if edge + 1 < side / 2:
            x = wave((side, side), u, v)
            assert low_pass(x, k).abs().max() < 1e-6


@pytest.mark.parametrize("side", [9, 10, 11])
@pytest.mark.parametrize("k", [2, 4, 6])
def test_waves_at_the_edge_of_an_even_band(side, k):
    """At frequency k/2 the negative half alone is kept: half of the wave's height. Below it all, above it nothing."""
    edge = k // 2
    for u, v in ((edge, 0), (0, edge)):
        x = wave((side, side), u, v)
        torch.testing.assert_close(low_pass(x, k), x / 2, atol=1e-6, rtol=0)
    inside, outside = wave((side, side), edge - 1, 1 - edge), wave((side, side), edge + 1, 0)
    torch.testing.assert_close(low_pass(inside, k), inside, atol=1e-6, rtol=0)
    if edge + 1 < side / 2:
        assert low_pass(outside, k).abs().max() < 1e-6


@pytest.mark.parametrize(("side", "k", "lowest"), [(8, 1, 4), (8, 3, 3), (8, 5, 2), (10, 3, 4)])
def test_high_pass_keeps_the_fastest_waves(side, k, lowest):
    """An odd band of an even side lies symmetrically around side/2."""
    for f in range(side // 2 + 1):
        x = wave((side, side), f, f)
        passed = high_pass(x, k)
        expected = x if f >= lowest else torch.zeros_like(x)
        torch.testing.assert_close(passed, expected, atol=1e-6, rtol=0)
    assert high_pass(wave((side, side), side // 2, 0), k).abs().max() < 1e-6  # both directions must be fast


@FILTERS
@pytest.mark.parametrize("k", [0, -1, 8])
def test_a_band_out_of_range_is_refused(keep, k):
    expected = rf"^expected a bandwidth in \[1, 7\], the side of the images, got {k}; change it$"
    with pytest.raises(DataError, match=expected):
        keep(some_images((7, 10)), k)
