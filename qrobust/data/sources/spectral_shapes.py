"""Shapes under textures: images whose label lies at known frequencies, drawn on the spot."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from ..images import Images, make_images
from .registry import Loaded, Settings, source

SIDE, TRAIN, TEST = 16, 4000, 1000
CLASSES = ("disc", "bar", "pole", "cross")
LOWEST, HIGHEST = 5, 6  # frequencies of a texture's wave along the two axes, in periods a side
WAVES = torch.tensor([[HIGHEST, LOWEST], [HIGHEST, -LOWEST], [LOWEST, HIGHEST], [LOWEST, -HIGHEST]])
TEXTURE = 0.8
AMPLITUDE = 0.03  # of a texture: an attack of 8/255 takes it away, but no shape
CONTRAST = (0.25, 0.5)  # of a shape
CLUTTER, NOISE = 0.06, 0.03  # standard deviations: of waves as low as shapes, of every pixel
SHARP, WIDE = 4.0, 0.3  # concentration of a shape along an axis; the energy above frequency 4 is below 1e-4


@source("spectral-shapes")
def spectral_shapes(settings: Settings) -> Loaded:
    """5000 grey images of 16×16 pixels in four classes; 4000 train and 1000 test, drawn from `settings.seed`.

    Each is a smooth shape of its class at a random place, on clutter as smooth and a little noise, under the wave
    of a class: at frequencies (±5, ±6) or (±6, ±5), which `low_pass` removes up to bandwidth 11 and keeps from 13 on.

        x = 1/2 + c·shape_y(i - i₀, j - j₀) + clutter + noise + 0.03·cos(2π(u_z·i + v_z·j)/16 + φ)

    settings.texture: the share of images that wear the wave of their own class, z = y; the others' z is drawn from
    all four. 0: the wave says nothing. All else is the same for every share. None means 0.8.
    """
    share = TEXTURE if settings.texture is None else settings.texture
    # A stream for each part, so that neither depends on how many images the other has.
    train, test = (Generator().manual_seed(2 * settings.seed + part) for part in range(2))
    return Loaded(_draw(TRAIN, share, train), _draw(TEST, share, test), CLASSES)


def _draw(n: int, share: float, generator: Generator) -> Images:
    y = torch.arange(n) % len(CLASSES)
    x = 0.5 + _shapes(y, generator) + _clutter(n, generator)
    x = x + NOISE * torch.randn(x.shape, generator=generator) + AMPLITUDE * _textures(y, share, generator)
    pixels = (x.clamp(0, 1) * 255).round().to(torch.uint8)
    return make_images(pixels.unsqueeze(1), y, classes=len(CLASSES), name="spectral-shapes")


def _shapes(y: Tensor, generator: Generator) -> Tensor:
    """(n, h, w): products of periodic bumps around a random place, wide along the axes that the class says."""
    centre = torch.rand(len(y), 2, generator=generator) * SIDE
    sharp, wide = (_bumps(centre, concentration) for concentration in (SHARP, WIDE))
    disc, bar, pole = (
        rows[:, 0, :, None] * columns[:, 1, None, :]
        for rows, columns in ((_bumps(centre, 1.5),) * 2, (sharp, wide), (wide, sharp))
    )
    every = torch.stack([disc, bar, pole, (bar + pole) / 2], dim=1)
    low, high = CONTRAST
    contrast = low + (high - low) * torch.rand(len(y), 1, 1, generator=generator)
    return contrast * every[torch.arange(len(y)), y]


def _bumps(centre: Tensor, concentration: float) -> Tensor:
    """exp(κ(cos(2π(i - c)/side) - 1)), (n, 2, side) for centres (n, 2)."""
    angle = 2 * math.pi * (torch.arange(SIDE) - centre[..., None]) / SIDE
    return torch.exp(concentration * (angle.cos() - 1))


def _clutter(n: int, generator: Generator) -> Tensor:
    """Waves of frequencies up to 2 along each axis with random heights, (n, h, w) of standard deviation CLUTTER."""
    spectrum = torch.zeros(n, SIDE, SIDE, dtype=torch.complex64)
    low = torch.tensor([0, 1, 2, -2, -1])
    spectrum[:, low[:, None], low] = torch.randn(n, len(low), len(low), dtype=torch.complex64, generator=generator)
    waves: Tensor = torch.fft.ifft2(spectrum, norm="forward").real
    return waves * (CLUTTER * math.sqrt(2) / len(low))


def _textures(y: Tensor, share: float, generator: Generator) -> Tensor:
    """Waves of unit height with random phases, (n, h, w)."""
    own = torch.rand(len(y), generator=generator) < share
    other = torch.randint(len(CLASSES), y.shape, generator=generator)
    phase = 2 * math.pi * torch.rand(len(y), 1, 1, generator=generator)
    u, v = WAVES[torch.where(own, y, other)].T[..., None, None]
    place = torch.arange(SIDE)
    waves: Tensor = torch.cos(2 * math.pi * (u * place[:, None] + v * place) / SIDE + phase)
    return waves
