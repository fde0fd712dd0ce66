"""Drawn images: what stands at which frequency, and what the setting changes."""

import pytest
import torch

from qrobust import recipe
from qrobust.data import DataSettings, load
from qrobust.data.sources.spectral_shapes import AMPLITUDE, WAVES, spectral_shapes


def drawn(texture=None, seed=0):
    return spectral_shapes(DataSettings("spectral-shapes", texture=texture, seed=seed))


DEFAULT, ALL, NONE = drawn(), drawn(1.0), drawn(0.0)


def waves(images):
    """(n, 4): height of the wave of each class in each image, from the DFT at its frequency."""
    spectrum = torch.fft.fft2(images.x[:, 0].float() / 255) * 2 / 16**2
    return spectrum[:, WAVES[:, 0], WAVES[:, 1]].abs()


def worn(images):
    return waves(images).argmax(1)


def test_counts_shape_and_classes():
    assert DEFAULT.train.x.shape == (4000, 1, 16, 16)
    assert DEFAULT.test.x.shape == (1000, 1, 16, 16)
    assert DEFAULT.classes == ("disc", "bar", "pole", "cross")
    assert DEFAULT.train.y.bincount().tolist() == [1000] * 4
    assert DEFAULT.test.y.bincount().tolist() == [250] * 4


def test_no_image_is_black_white_or_twice_there():
    x = torch.cat([DEFAULT.train.x, DEFAULT.test.x]).flatten(1)
    assert len(x.unique(dim=0)) == len(x)
    assert ((x == 0) | (x == 255)).float().mean() < 0.01  # what is cut off adds frequencies


def test_the_texture_is_one_wave_of_the_height_promised():
    heights = waves(ALL.train)
    own = heights[torch.arange(4000), ALL.train.y]
    assert float(own.mean()) == pytest.approx(AMPLITUDE, rel=0.05)
    heights[torch.arange(4000), ALL.train.y] = 0
    assert heights.mean() < AMPLITUDE / 5  # noise


@pytest.mark.parametrize(("share", "agree"), [(1.0, 1.0), (None, 0.85), (0.5, 0.625), (0.0, 0.25)])
def test_the_share_says_how_many_agree(share, agree):
    images = drawn(share).train
    assert float((worn(images) == images.y).float().mean()) == pytest.approx(agree, abs=0.03)


def test_shapes_lie_below_every_texture():
    """Energy of the mean over classes' waves, clutter and noise aside: what is left above frequency 4 is noise."""
    x = NONE.train.x[:, 0].float() / 255
    energy = torch.fft.fft2(x - x.mean((1, 2), keepdim=True), norm="ortho").abs().square().mean(0)
    frequency = torch.fft.fftfreq(16).abs() * 16
    reach = torch.maximum(frequency[:, None], frequency)
    noise = 0.03**2
    assert energy[reach == 5].max() < 2 * noise
    assert energy[(reach <= 2) & (reach > 0)].min() > 20 * noise
    assert energy[5, 6] > 3 * noise  # the textures


def test_all_else_is_the_same_for_every_share():
    """Without the textures' frequencies the images are equal, to rounding and clipping."""

    def without(images):
        spectrum = torch.fft.fft2(images.x[:, 0].float())
        for sign in (1, -1):
            spectrum[:, sign * WAVES[:, 0], sign * WAVES[:, 1]] = 0
        return torch.fft.ifft2(spectrum).real

    assert torch.equal(ALL.test.y, NONE.test.y)
    assert (without(ALL.test) - without(NONE.test)).abs().mean() < 1
    assert (ALL.test.x.float() - NONE.test.x.float()).abs().mean() > 2


def test_drawn_from_the_seed_alone():
    assert torch.equal(drawn().train.x, DEFAULT.train.x)
    assert not torch.equal(drawn(seed=1).train.x, DEFAULT.train.x)
    assert not torch.equal(DEFAULT.train.x[:1000], DEFAULT.test.x)
    assert not torch.equal(drawn(seed=1).train.x[:1000], DEFAULT.test.x)  # seeds share no stream


def test_it_loads_like_every_other():
    small = load(DataSettings("spectral-shapes", train_size=100, test_size=40, validation=0.1))
    assert (len(small.train), len(small.validation), len(small.test)) == (90, 10, 40)
    with_texture = load(DataSettings("spectral-shapes", train_size=100, test_size=40, validation=0.1, texture=1.0))
    assert with_texture.fingerprint != small.fingerprint


def test_a_recipe_sets_the_share():
    table = "data={name='spectral-shapes', texture=0.5, train_size=100, test_size=40}"
    loaded = recipe.load("spectral-shapes", [table])
    assert loaded.data.texture == 0.5
    assert "texture = 0.5" in recipe.dump(loaded)
    assert "texture" not in recipe.load("digits").data.model_dump()
