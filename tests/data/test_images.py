"""Images hold what they promise, whatever is given."""

import hashlib
import re

import pytest
import torch

from qrobust.data.images import Dataset, Images, fingerprint, make_images, to_unit
from qrobust.errors import DataError

from .helpers import some_images


def test_take_by_slice_list_and_tensor_agree():
    images = some_images()
    mask = torch.arange(12).sub(2).abs() < 2
    for which in ([1, 2, 3], torch.tensor([1, 2, 3]), slice(1, 4), mask):
        taken = images.take(which)
        assert torch.equal(taken.x, images.x[1:4])
        assert torch.equal(taken.y, images.y[1:4])


@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_batches_put_together_are_the_images(size):
    images = some_images()
    batches = list(images.batches(size))
    assert all(len(batch) == size for batch in batches[:-1])
    assert torch.equal(torch.cat([batch.x for batch in batches]), images.x)
    assert torch.equal(torch.cat([batch.y for batch in batches]), images.y)


def test_a_batch_of_none_is_refused():
    with pytest.raises(DataError, match="expected a batch size of at least 1, got 0; choose a positive number"):
        some_images().batches(0)


def test_to_unit_is_the_nearest_float_of_v_over_255():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unit = to_unit(values, "cpu")
    assert unit.dtype == torch.float32
    assert torch.equal(unit, (values.double() / 255).float())
    assert (unit.min(), unit.max()) == (0, 1)
    assert torch.equal((unit * 255).round().to(torch.uint8), values)


def test_to_unit_channels_last_has_the_same_values():
    x = some_images().x
    unit = to_unit(x, "cpu", channels_last=True)
    assert unit.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(unit, to_unit(x, "cpu"))


def test_fingerprint_sees_one_pixel_one_label_the_shape_and_the_parts():
    images = some_images()
    pixel, label = images.x.clone(), images.y.clone()
    pixel[3, 1, 2, 2] ^= 1
    label[5] += 1
    reshaped = Images(images.x.reshape(12, 3, 4, 9), images.y)
    halves = images.take(slice(0, 6)), images.take(slice(6, 12))
    variants = [(images,), (Images(pixel, images.y),), (Images(images.x, label),), (reshaped,), halves]
    assert len({fingerprint(*parts) for parts in variants}) == len(variants)


def test_fingerprint_is_of_values_not_of_memory():
    images = some_images()
    strided = Images(images.x.contiguous(memory_format=torch.channels_last), images.y)
    assert fingerprint(strided) == fingerprint(images)
    assert re.fullmatch("[0-9a-f]{64}", fingerprint(images, images.take([])))


def test_fingerprint_is_that_of_all_bytes_at_once():
    images = some_images(n=600)  # more than one piece
    whole = repr((600, 3, 6, 6)).encode() + images.x.numpy().tobytes() + images.y.numpy().tobytes()
    assert fingerprint(images) == hashlib.sha256(whole).hexdigest()


def test_shape_of_a_dataset():
    images = some_images()
    assert Dataset("mine", ("a", "b", "c"), images, images.take([]), images, "").shape == (3, 6, 6)


X, Y = some_images().x, some_images().y
WRONG = [
    (
        X.float(),
        Y,
        "expected mine as torch.uint8, got torch.float32; convert images in [0, 1] by (x * 255).round()",
    ),
    (X[0], Y, "expected mine of shape (n, c, h, w), got (3, 6, 6); reshape them"),
    (X[:0], Y[:0], "expected at least one image in mine, got shape (0, 3, 6, 6); give some images"),
    (X, Y.int(), "expected labels of mine as torch.int64, got torch.int32; convert them by y.long()"),
    (X, Y[:5], "expected labels of mine of shape (12,), got (5,); give one label per image"),
    (X, Y - 1, "expected labels of mine in [0, 2], got -1; number the classes from 0"),
    (X, Y + 1, "expected labels of mine in [0, 2], got 3; number the classes from 0"),
]


@pytest.mark.parametrize(("x", "y", "message"), WRONG)
def test_make_images_names_what_is_wrong(x, y, message):
    with pytest.raises(DataError) as caught:
        make_images(x, y, classes=3, name="mine")
    assert str(caught.value) == message


def test_make_images_keeps_what_is_right():
    images = make_images(X, Y, classes=3)
    assert images.x is X
    assert images.y is Y
