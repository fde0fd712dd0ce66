"""Your own arrays, and every way to get them wrong."""

import numpy as np
import pytest
import torch

from qrobust.data import DataSettings
from qrobust.data.sources.npz import REMEDY, npz
from qrobust.errors import DataError

RANDOM = np.random.default_rng(0)
X = RANDOM.integers(256, size=(6, 2, 3, 4), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])
GOOD = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2]}


def read(tmp_path, **arrays):
    path = tmp_path / "mine.npz"
    np.savez(path, **(GOOD | arrays))
    return npz(DataSettings("npz", root=str(path)))


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
def test_round_trip(tmp_path, dtype):
    x = X if dtype == np.uint8 else (X / 255).astype(dtype)
    loaded = read(tmp_path, x_train=x)
    assert torch.equal(loaded.train.x, torch.from_numpy(X))
    assert loaded.train.y.tolist() == Y.tolist()
    assert loaded.classes == ("0", "1", "2")
    assert torch.equal(loaded.test.x, torch.from_numpy(X[:2]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_labels_of_any_integer_type(tmp_path, dtype):
    assert read(tmp_path, y_train=Y.astype(dtype)).train.y.dtype == torch.int64


def test_memory_order_and_byte_order_do_not_matter(tmp_path):
    loaded = read(tmp_path, x_train=np.asfortranarray(X), y_train=Y.astype(">i4"))
    assert torch.equal(loaded.train.x, torch.from_numpy(X))
    assert loaded.train.y.tolist() == Y.tolist()


def test_class_names(tmp_path):
    assert read(tmp_path, classes=np.array(["a", "b", "c", "d"])).classes == ("a", "b", "c", "d")


def with_pixel(value):
    x = (X / 255).astype(np.float32)
    x[4, 1, 2, 3] = value
    return x


def layout(name, shape):
    as_it_is = f"expected {name} of shape (n, c, h, w), got {shape}, which is as (n, h, w, c)"
    return f"{as_it_is}; pass {name}.transpose(0, 3, 1, 2)"


GAPS = "expected y_train to number the classes from 0 without gaps"
ANEW = "number them anew (np.unique with return_inverse), or name every class in an array classes"
INSIDE = "pass uint8 or divide by 255, normalisation belongs inside the model"
WRONG = [
    ({"x_train": with_pixel(np.nan)}, f"expected x_train in [0, 1], got nan at (4, 1, 2, 3); {INSIDE}"),
    ({"x_train": with_pixel(np.inf)}, f"expected x_train in [0, 1], got inf at (4, 1, 2, 3); {INSIDE}"),
    ({"x_train": with_pixel(-0.5)}, f"expected x_train in [0, 1], got -0.5 at (4, 1, 2, 3); {INSIDE}"),
    ({"x_test": with_pixel(255)}, f"expected x_test in [0, 1], got 255 at (4, 1, 2, 3); {INSIDE}"),
    ({"x_train": X.astype(int)}, "expected x_train as uint8 or float in [0, 1], got int64; convert it"),
    ({"x_train": X[0]}, "expected x_train of shape (n, c, h, w), got (2, 3, 4); reshape them"),
    (
        {"x_test": X[:0], "y_test": Y[:0]},
        "expected at least one image in x_test, got shape (0, 2, 3, 4); give some images",
    ),
    ({"y_train": Y / 1}, "expected y_train as integers, got float64; number the classes from 0"),
    ({"y_train": Y[:4]}, "expected labels of x_train of shape (6,), got (4,); give one label per image"),
    ({"y_train": Y - 1}, "expected labels of x_train in [0, 1], got -1; number the classes from 0"),
    ({"y_train": np.array(["cat", "dog"] * 3)}, "expected y_train as integers, got <U3; number the classes from 0"),
    ({"y_train": Y + 1}, f"{GAPS}, got 1 to 3 and no 0; {ANEW}"),
    ({"y_train": Y * 5}, f"{GAPS}, got 0 to 10 and no 1; {ANEW}"),
    ({"y_train": Y * 10**15}, f"{GAPS}, got 0 to 2000000000000000 and no 1; {ANEW}"),
    ({"classes": np.array("abc")}, "expected classes of shape (classes,), got (); give one name a class"),
    ({"x_train": np.zeros((6, 8, 8, 3), np.uint8)}, layout("x_train", (6, 8, 8, 3))),
    ({"x_test": np.zeros((2, 8, 8, 1), np.uint8)}, layout("x_test", (2, 8, 8, 1))),
    ({"x_train": np.zeros((6, 9, 7, 4), np.float32)}, layout("x_train", (6, 9, 7, 4))),
    ({"y_test": np.array([0, 3])}, "expected labels of x_test in [0, 2], got 3; number the classes from 0"),
]


@pytest.mark.parametrize(("arrays", "message"), WRONG)
def test_the_array_and_the_value_are_named(tmp_path, arrays, message):
    with pytest.raises(DataError) as caught:
        read(tmp_path, **arrays)
    assert str(caught.value) == message


def test_named_classes_may_have_no_images(tmp_path):
    """Which is the remedy for labels with gaps, where each number is to keep its meaning."""
    loaded = read(tmp_path, y_train=Y + 1, classes=np.array(["none", "a", "b", "c"]))
    assert loaded.train.y.tolist() == (Y + 1).tolist()


@pytest.mark.parametrize("shape", [(6, 12, 30, 1), (6, 512, 4, 4), (6, 3, 32, 3), (6, 1, 8, 1)])
def test_channels_first_with_narrow_images(tmp_path, shape):
    assert read(tmp_path, x_train=np.zeros(shape, np.uint8)).train.x.shape == shape


def test_missing_file(tmp_path):
    with pytest.raises(DataError) as caught:
        npz(DataSettings("npz", root=str(tmp_path / "no.npz")))
    assert str(caught.value) == f"expected a .npz file at {tmp_path / 'no.npz'}, got none; {REMEDY}"


def test_missing_array(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=X, y_train=Y, x_tests=X, y_test=Y)
    with pytest.raises(DataError) as caught:
        npz(DataSettings("npz", root=str(path)))
    assert str(caught.value) == f"expected an array x_test in {path}, got none; did you mean 'x_tests'?"


def test_nothing_pickled_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"expected a \.npz file of numbers, cannot read .*allow_pickle=False"):
        read(tmp_path, y_train=np.array([{}] * 6, dtype=object))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"hello"])
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"expected a \.npz file of numbers, cannot read"):
        npz(DataSettings("npz", root=str(path)))


def test_a_single_array(tmp_path):
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(DataError, match=r"expected a \.npz file, got a single array in"):
        npz(DataSettings("npz", root=str(tmp_path / "x.npy")))
