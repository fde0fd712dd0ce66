"""From settings to a data set."""

from __future__ import annotations

from torch import Generator

from ..errors import DataError, did_you_mean
from .images import Dataset, fingerprint
from .settings import Settings, check_settings
from .sources import SOURCES, Loaded
from .splitting import split, subset


def load(settings: Settings) -> Dataset:
    """The data set that the settings name: loaded, cut to size, split and fingerprinted.

    `train_size` images are taken first, then `validation` of them is set aside. Subsets and split depend on
    `seed` alone, and the test images on nothing that concerns training.
    Raises DataError for an unknown name, missing or damaged data, and settings that cannot be met.

    >>> from qrobust.data import DataSettings
    >>> len(load(DataSettings("digits", test_size=100)).test)
    100
    """
    if settings.name not in SOURCES:
        raise DataError(f"expected a data set, got {settings.name!r}{did_you_mean(settings.name, SOURCES)}")
    check_settings(settings)
    loaded = SOURCES[settings.name](settings)
    _check_shapes(loaded)
    if len(loaded.classes) < 2:
        raise DataError(f"expected two classes or more to tell apart, got {loaded.classes[0]!r} alone; add others")
    chosen = subset(loaded.train, settings.train_size, _generator(settings), key="train_size")
    train, validation = split(chosen, settings.validation, _generator(settings))
    test = subset(loaded.test, settings.test_size, _generator(settings), key="test_size")
    digest = fingerprint(train, validation, test)
    return Dataset(settings.name, loaded.classes, train, validation, test, digest)


def _generator(settings: Settings) -> Generator:
    # One for each draw, so that asking for fewer training images leaves the test images as they are.
    return Generator().manual_seed(settings.seed)


def _check_shapes(loaded: Loaded) -> None:
    train, test = loaded.train.shape[1:], loaded.test.shape[1:]
    if train != test:
        raise DataError(f"expected test images of shape {train} as in training, got {test}; give both one shape")
