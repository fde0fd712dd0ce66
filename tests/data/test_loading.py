"""From settings to a data set: sizes, seeds and fingerprints."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qrobust.data import DataSettings, load
from qrobust.errors import DataError

DIGITS = DataSettings("digits", validation=0.1)


def test_one_class_alone_is_refused(tmp_path):
    images = np.zeros((4, 1, 3, 3), np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=[0] * 4, x_test=images, y_test=[0] * 4)
    with pytest.raises(DataError, match="expected two classes or more to tell apart, got '0' alone; add others"):
        load(DataSettings("npz", root=str(tmp_path / "mine.npz")))


def test_sizes_are_met_before_the_split():
    data = load(replace(DIGITS, train_size=200, test_size=50))
    assert (len(data.train), len(data.validation), len(data.test)) == (180, 20, 50)


def test_any_object_with_the_attributes_will_do():
    data = load(SimpleNamespace(**vars(DIGITS)))
    assert (data.name, len(data.train) + len(data.validation)) == ("digits", 1297)


def test_same_settings_same_fingerprint():
    assert load(DIGITS).fingerprint == load(DIGITS).fingerprint


@pytest.mark.parametrize("change", [{"seed": 1}, {"validation": 0.2}, {"train_size": 1296}, {"test_size": 499}])
def test_the_fingerprint_is_of_what_is_used(change):
    assert load(replace(DIGITS, **change)).fingerprint != load(DIGITS).fingerprint


def test_training_settings_leave_the_test_images_alone():
    first = load(replace(DIGITS, test_size=50))
    second = load(replace(DIGITS, test_size=50, train_size=100, validation=0.5))
    assert torch.equal(first.test.x, second.test.x)


def test_more_than_there_is():
    with pytest.raises(DataError, match="expected train_size of at most 1297, all images there are, got 1298"):
        load(replace(DIGITS, train_size=1298))


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(DataError) as caught:
        load(DataSettings("cifar-10"))
    assert str(caught.value) == "expected a data set, got 'cifar-10'; did you mean 'cifar10'?"


def test_settings_are_checked():
    with pytest.raises(DataError, match="expected validation in"):
        load(replace(DIGITS, validation=0.6))


def test_train_and_test_of_two_shapes(tmp_path):
    path, y = tmp_path / "mine.npz", np.zeros(2, dtype=int)
    small, large = (np.zeros((2, 1, side, side), dtype=np.uint8) for side in (4, 8))
    np.savez(path, x_train=small, y_train=y, x_test=large, y_test=y)
    with pytest.raises(DataError) as caught:
        load(DataSettings("npz", root=str(path)))
    assert str(caught.value) == (
        "expected test images of shape (1, 4, 4) as in training, got (1, 8, 8); give both one shape"
    )
