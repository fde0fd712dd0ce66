"""Crops are windows, flips are mirrors, and the generator decides both."""

import pytest
import torch
import torch.nn.functional as F

from qrobust.data.augment import _windows, augment, crop, flip, resized_crop
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


@pytest.mark.parametrize("x", [*INPUTS, BYTES[:, :, :3] / 255, (BYTES / 255).double()])
def test_a_resized_crop_is_a_window_resized(x):
    """Bilinear, as torch resizes the window on its own, of no pixel outside; uint8 is rounded."""
    got = resized_crop(x, (0.1, 0.9), seeded())
    assert (got.shape, got.dtype) == (x.shape, x.dtype)
    windows = _windows(len(x), *x.shape[2:], (0.1, 0.9), seeded()).T.tolist()
    assert len(set(map(tuple, windows))) > 10
    for image, other, (top, left, height, width) in zip(got, x, windows, strict=True):
        window = other[None, :, top : top + height, left : left + width].to(torch.float64)
        expected = F.interpolate(window, size=x.shape[2:], mode="bilinear", align_corners=False)[0]
        error = (image.double() - expected).abs().max()
        assert error <= (0.5 + 1e-4 if x.dtype == torch.uint8 else 1e-6)


def test_windows_are_those_of_inception():
    """Share of the area and proportions within their bounds, up to rounding, all of them reached; every place."""
    top, left, height, width = _windows(20_000, 150, 150, (0.25, 0.5), seeded()).double()
    share, shape = height * width / 150**2, width / height
    assert 0.24 < share.min() < 0.26 < 0.48 < share.max() < 0.51
    assert share.mean() == pytest.approx(0.375, abs=0.01)
    assert 0.73 < shape.min() < 0.76
    assert 1.3 < shape.max() < 1.35
    assert float(shape.log().mean()) == pytest.approx(0, abs=0.01)
    assert min(top.min(), left.min()) == 0
    assert (left + width).max() == 150
    assert (top + height).max() == 150
    free = 150 - height + 1
    assert float((top / free).mean()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("side", "window"), [((9, 9), [0, 0, 9, 9]), ((4, 90), [0, 42, 4, 5]), ((90, 4), [42, 0, 5, 4])]
)
def test_where_no_window_lies_inside_the_largest_in_the_centre_is_taken(side, window):
    found = _windows(50, *side, (1.0, 1.0), seeded())
    assert window in found.T.tolist()
    assert side == (9, 9) or len({tuple(one) for one in found.T.tolist()}) == 1


def test_the_seed_decides():
    first, again, other = (augment(BYTES, padding=2, flip=True, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_augment_is_crop_then_flip():
    generator = seeded()
    expected = flip(crop(BYTES, 2, generator), generator)
    assert torch.equal(augment(BYTES, padding=2, flip=True, generator=seeded()), expected)
    assert torch.equal(augment(BYTES, padding=2, flip=False, generator=seeded()), crop(BYTES, 2, seeded()))
    generator = seeded()
    expected = flip(resized_crop(BYTES, (0.3, 1.0), generator), generator)
    assert torch.equal(augment(BYTES, padding=0, flip=True, resized=(0.3, 1.0), generator=seeded()), expected)


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
    there, here = (resized_crop(x, (0.1, 1.0), seeded()) for x in ((BYTES / 255).cuda(), BYTES / 255))
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)
