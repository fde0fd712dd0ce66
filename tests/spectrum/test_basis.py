"""Basis images against their promise: real, of unit norm, at most two coefficients, every frequency once."""

import math

import pytest
import torch

from qrobust.spectrum import fourier_basis, half_plane, magnitudes
from qrobust.spectrum.filters import partner, unfold

SIZES = pytest.mark.parametrize("size", [(8, 8), (9, 9), (7, 10), (10, 7), (1, 1), (1, 4)])


@SIZES
def test_unit_norm_and_the_promised_coefficients(size):
    positions = half_plane(*size)
    images = fourier_basis(positions, *size)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.flatten(1).norm(dim=1), torch.ones(len(positions)))
    expected = torch.zeros(len(positions), *size)
    for place in (positions, partner(positions, *size)):
        expected[torch.arange(len(place)), place[:, 0], place[:, 1]] = 1
    assert expected.sum((1, 2)).max() <= 2
    found = magnitudes(images[:, None])[:, 0]
    torch.testing.assert_close((found > 1e-3).float(), expected)
    torch.testing.assert_close(found, expected / expected.sum((1, 2), keepdim=True).sqrt(), atol=1e-5, rtol=0)


@SIZES
def test_every_frequency_once_up_to_symmetry(size):
    positions = half_plane(*size)
    pairs = [
        frozenset({tuple(a), tuple(b)})
        for a, b in zip(positions.tolist(), partner(positions, *size).tolist(), strict=True)
    ]
    assert len(set(pairs)) == len(pairs)
    assert set().union(*pairs) == {(i, j) for i in range(size[0]) for j in range(size[1])}
    own = sum(len(pair) == 1 for pair in pairs)
    assert own == (2 - size[0] % 2) * (2 - size[1] % 2)  # zero, and the highest of an even side
    assert len(pairs) == (size[0] * size[1] + own) // 2


@SIZES
def test_partners_are_mirror_images_and_give_the_same_image(size):
    positions = half_plane(*size)
    other = partner(positions, *size)
    torch.testing.assert_close(partner(other, *size), positions)
    torch.testing.assert_close(fourier_basis(other, *size), fourier_basis(positions, *size), atol=1e-6, rtol=0)


def test_basis_images_are_orthogonal():
    images = fourier_basis(half_plane(8, 8), 8, 8).flatten(1)
    torch.testing.assert_close(images @ images.T, torch.eye(len(images)), atol=1e-5, rtol=0)


def test_the_centre_is_flat_and_the_corner_is_a_chessboard():
    flat, chess = fourier_basis(torch.tensor([[4, 4], [0, 0]]), 8, 8)
    torch.testing.assert_close(flat, torch.full((8, 8), 1 / 8))
    board = 1 - 2 * (torch.arange(8)[:, None] + torch.arange(8)).remainder(2)
    torch.testing.assert_close(chess, board / 8)


def test_a_wave_of_a_large_side_does_not_drift():
    side, (u, v) = 1024, (511, -509)
    image = fourier_basis(torch.tensor([[side // 2 + u, side // 2 + v]]), side, side)[0]
    exact = torch.tensor([math.cos(2 * math.pi * ((u * a + v * 1023) % side) / side) for a in range(side)])
    torch.testing.assert_close(image[:, 1023], exact * math.sqrt(2) / side, atol=1e-9, rtol=1e-5)


@SIZES
def test_unfolding_writes_each_value_at_both_places(size):
    positions = half_plane(*size)
    values = torch.arange(len(positions)) + 1.0
    whole = unfold(values, *size)
    for place in (positions, partner(positions, *size)):
        torch.testing.assert_close(whole[place[:, 0], place[:, 1]], values)
