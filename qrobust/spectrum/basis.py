"""Fourier basis images, each direction once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def half_plane(height: int, width: int) -> Tensor:
    """Positions (i, j) of a centred spectrum, one of each pair that a real image cannot tell apart, int64 (m, 2).

    The zero frequency is at (height // 2, width // 2); a position's `partner` is its mirror image there. The rest of
    the spectrum are partners of these: m = (height·width + s) / 2, s of them their own partner.
    """
    every = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    other = partner(every, height, width)
    return every[_rank(every, width) <= _rank(other, width)]


def partner(positions: Tensor, height: int, width: int) -> Tensor:
    """Where the conjugate coefficients of positions (m, 2) are: -(i, j) around the centre, modulo the sides."""
    sides = positions.new_tensor([height, width])
    return (2 * (sides // 2) - positions) % sides


def fourier_basis(positions: Tensor, height: int, width: int) -> Tensor:
    """U_ij: the real image whose DFT is zero but at (i, j) and its partner, ‖U_ij‖₂ = 1 (Yin et al. 2019).

        U_ij[a, b] ∝ cos(2π(u·a/h + v·b/w)),  (u, v) = (i - h // 2, j - w // 2)

    positions: int64 (m, 2), of a centred spectrum. Returns float32 (m, height, width) on their device.
    """
    sides = positions.new_tensor([height, width])
    u, v = ((positions - sides // 2) % sides).T[..., None, None]
    rows, columns = (torch.arange(side, device=positions.device) for side in (height, width))
    # Whole turns are taken off as integers: no wave drifts on a large image.
    turn = (u * rows[:, None] * width + v * columns * height) % (height * width)
    waves = torch.cos(2 * math.pi / (height * width) * turn.double())
    lengths: Tensor = waves.flatten(1).norm(dim=1)
    return (waves / lengths[:, None, None]).float()


def unfold(values: Tensor, height: int, width: int) -> Tensor:
    """Values (m,) at `half_plane(height, width)`, written there and at its partners, (height, width)."""
    positions = half_plane(height, width).to(values.device)
    whole = values.new_zeros(height, width)
    for place in (positions, partner(positions, height, width)):
        whole[place[:, 0], place[:, 1]] = values
    return whole


def _rank(positions: Tensor, width: int) -> Tensor:
    return positions[:, 0] * width + positions[:, 1]
