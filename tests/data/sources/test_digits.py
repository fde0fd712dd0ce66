"""scikit-learn's digits."""

import torch
from sklearn.datasets import load_digits

from qrobust.data import DataSettings
from qrobust.data.sources.published import digits

LOADED = digits(DataSettings("digits"))


def test_counts_shape_and_range():
    assert LOADED.train.x.shape == (1297, 1, 8, 8)
    assert LOADED.test.x.shape == (500, 1, 8, 8)
    assert LOADED.train.x.dtype == torch.uint8
    assert (int(LOADED.train.x.min()), int(LOADED.train.x.max())) == (0, 255)
    assert LOADED.classes == tuple("0123456789")


def test_every_class_is_in_both_parts():
    assert LOADED.train.y.bincount().min() >= 120
    assert LOADED.test.y.bincount().min() >= 40


def test_the_seventeen_grey_levels_come_back():
    x = torch.cat([LOADED.train.x, LOADED.test.x])
    assert x.unique()[[0, 1, 8, 15, 16]].tolist() == [0, 16, 128, 239, 255]
    assert len(x.unique()) == 17
    original = torch.from_numpy(load_digits().images).unsqueeze(1)
    assert torch.equal((x.double() * 16 / 255).round(), original)
