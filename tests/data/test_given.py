"""Whatever users have at hand becomes images, or one line says what is wrong with it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from qrobust.data import Images, as_images, image_batches
from qrobust.errors import DataError

X = torch.arange(48, dtype=torch.uint8).view(12, 1, 2, 2) * 5
Y = torch.arange(12) % 3
UNIT = X.float() / 255
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
PAIRS = {
    "images": lambda: Images(X, Y),
    "images with small labels": lambda: Images(X, Y.int()),
    "images of floats": lambda: Images(UNIT, Y),
    "tensors": lambda: (X, Y),
    "floats": lambda: [UNIT, Y],
    "doubles": lambda: (UNIT.double(), Y),
    "with a gradient": lambda: (UNIT.clone().requires_grad_(True), Y),
    "a rounding outside": lambda: (torch.where(UNIT == 0, -1e-7, UNIT), Y),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "arrays of unsigned labels": lambda: (UNIT.numpy(), Y.numpy().astype(np.uint32)),
    "lists": lambda: (UNIT.tolist(), Y.tolist()),
    "data set": lambda: TensorDataset(X, Y),
    "loader": lambda: DataLoader(TensorDataset(UNIT, Y), batch_size=5),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_all_give_the_same_images(make):
    found = as_images(make())
    assert (found.x.dtype, found.y.dtype) == (torch.uint8, torch.int64)
    assert torch.equal(found.x, X)
    assert torch.equal(found.y, Y)


def test_pictures_of_a_data_set_become_colour():
    """As torchvision's data sets give them without a transform."""
    pictures = [
        (Image.fromarray(np.full((4, 6), 20 * k, np.uint8)).convert(("L", "RGB")[k % 2]), k % 3) for k in range(5)
    ]
    expected = (20 * torch.arange(5)).to(torch.uint8).view(5, 1, 1, 1).expand(5, 3, 4, 6)
    found = as_images(Listed(pictures))
    assert torch.equal(found.x, expected)
    assert found.y.tolist() == [0, 1, 2, 0, 1]
    assert torch.equal(torch.cat(list(image_batches(Listed(pictures)))), expected / 255)
    with pytest.raises(DataError, match=r"expected float pixels in \[0, 1\], got \[3, 3\] at a picture; scale them"):
        as_images(Listed([(Image.fromarray(np.full((4, 6), 3, np.float32)), 0)]))


class Listed(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, position):
        return self.items[position]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_type(dtype):
    assert torch.equal(as_images((X, Y.to(dtype))).y, Y.to(dtype).long())


REFUSED = {
    "normalised": (lambda: (UNIT * 4 - 2, Y), r"expected images in \[0, 1\] or as uint8, got \[-2, 1.68\d+\]; pass"),
    "not divided": (lambda: (X.float(), Y), r"got \[0, 235\]"),
    "NaN": (lambda: (UNIT * torch.nan, Y), r"got \[nan, nan\]"),
    "integers": (lambda: (X.long(), Y), "expected images as torch.uint8, got torch.int64"),
    "floats as labels": (lambda: (X, Y.float()), "expected labels of images as whole numbers, got torch.float32"),
    "negative": (lambda: (X, Y - 1), r"expected labels of images in \[0, 1\], got -1"),
    "fewer labels": (lambda: (X, Y[:5]), r"expected labels of images of shape \(12,\), got \(5,\)"),
    "a column": (lambda: (X, Y[:, None]), r"expected labels of images of shape \(12,\), got \(12, 1\)"),
    "no channels": (lambda: (X[:, 0], Y), r"expected images of shape \(n, c, h, w\), got \(12, 2, 2\)"),
    "nothing": (lambda: (X[:0], Y[:0]), "expected at least one image"),
    "one tensor": (lambda: X, r"expected images, got Tensor; give Images, a pair \(x, y\), or a DataLoader"),
    "text": (lambda: ("x", "y"), "expected images as numbers"),
    "ragged": (lambda: ([[1], [1, 2]], [0, 1]), "expected images as numbers of one shape, got: "),
    "a path": (lambda: "images.npz", "expected images, got str; give Images"),
    "a loader of images alone": (lambda: DataLoader(TensorDataset(X)), "expected a DataLoader of pairs"),
    "a loader of unlike images": (lambda: DataLoader([(X[0], 0), (X[0, 0], 1)], 2), "expected a DataLoader of pairs"),
    "an empty loader": (lambda: DataLoader([]), "expected a DataLoader of pairs .*, got: no batch"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "text"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_images_is_refused_in_one_line(make, text):
    with pytest.raises(DataError, match=text) as caught:
        as_images(make())
    assert "\n" not in str(caught.value)


BATCHES = {
    "a tensor": lambda: UNIT,
    "bytes": lambda: X,
    "an array": lambda: UNIT.numpy(),
    "batches": lambda: UNIT.split(5),
    "pairs": lambda: zip(UNIT.split(5), Y.split(5), strict=True),
    "a pair": lambda: (UNIT, Y),
    "a pair of arrays": lambda: [X.numpy(), Y.numpy()],
    "a pair with a list": lambda: (UNIT, Y.tolist()),
    "two batches": lambda: (UNIT[:6], UNIT[6:]),
    "images": lambda: Images(X, Y),
    "data set": lambda: TensorDataset(X, Y),
    "a loader": lambda: DataLoader(TensorDataset(UNIT, Y), 5),
    "a loader of images alone": lambda: DataLoader(TensorDataset(X), 5),
}


@pytest.mark.parametrize("make", BATCHES.values(), ids=BATCHES)
def test_batches_of_images_alone(make):
    assert torch.equal(torch.cat(list(image_batches(make()))), UNIT)


def test_batches_of_nothing_are_refused():
    with pytest.raises(DataError, match="expected batches of images, got int; give Images"):
        list(image_batches(3))
