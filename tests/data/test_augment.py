"""Crops are windows, flips are mirrors, and the generator decides both."""

import pytest
import torch
import torch.nn.functional as F

from qrobust.data.augment import augment, crop, flip
from qrobust.errors import DataError

from .helpers import seeded, some_images

BYTES = some_images(n=60, side=5).x
INPUTS = [BYTES, BYTES / 255, BYTES[:, :1, :, :4]]


def offset_of(image, padded, side):
    """The (top, left) of the window of `padded` that `image` is, or None."""
    height, width = image.shape[1:]
    for top in range(side):
        for left in range(side):
            if torch.equal(padded[:, top : top + height, left : left + width], image):
                return top, left
    return None


@pytest.mark.parametrize("x", INPUTS)
def test_every_crop_is_a_window_of_the_padded_image(x):
    cropped = crop(x, 2, seeded())
    assert (cropped.shape, cropped.dtype) == (x.shape, x.dtype)
    offsets = [offset_of(image, p, 5) for image, p in zip(cropped, F.pad(x, [2] * 4), strict=True)]
    assert None not in offsets
    assert {top for top, _ in offsets} == {left for _, left in offsets} == set(range(5))
    assert len(set(offsets)) > 15  # of 25: drawn per image, rows and columns apart


@pytest.mark.parametrize("x", INPUTS)
def test_crop_without_padding_is_the_identity_and_draws_nothing(x):
    generator = seeded()
    state = generator.get_state()
    assert torch.equal(crop(x, 0, generator), x)
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize("x", INPUTS)
def test_flip_twice_is_the_identity(x):
    assert torch.equal(flip(flip(x, seeded(3)), seeded(3)), x)


@pytest.mark.parametrize("x", INPUTS)
def test_flip_mirrors_about_half_and_leaves_the_rest(x):
    flipped = flip(x, seeded())
    mirrored = (flipped == x.flip(-1)).flatten(1).all(1)
    kept = (flipped == x).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 15 < int(mirrored.sum()) < 45


def test_the_seed_decides():
    first, again, other = (augment(BYTES, padding=2, flip=True, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augment_is_crop_then_flip():
    generator = seeded()
    expected = flip(crop(BYTES, 2, generator), generator)
    assert torch.equal(augment(BYTES, padding=2, flip=True, generator=seeded()), expected)
    assert torch.equal(augment(BYTES, padding=2, flip=False, generator=seeded()), crop(BYTES, 2, seeded()))


def test_the_input_is_left_alone():
    before = BYTES.clone()
    augment(BYTES, padding=2, flip=True, generator=seeded())
    assert torch.equal(BYTES, before)


def test_negative_padding_is_refused():
    with pytest.raises(DataError, match="expected a padding of at least 0 pixels, got -1; use 0 for no crop"):
        crop(BYTES, -1, seeded())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_does_not_change_the_result():
    there = augment(BYTES.cuda(), padding=2, flip=True, generator=seeded())
    assert torch.equal(there.cpu(), augment(BYTES, padding=2, flip=True, generator=seeded()))
