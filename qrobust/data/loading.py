"""From settings to a data set: which n of many images, the split, the same for the same seed."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..errors import DataError, did_you_mean
from ..progress import note
from .images import Dataset, Images, fingerprint
from .sources import SOURCES, Loaded
from .sources.own import own
from .sources.registry import Settings, check_settings, is_own

TEST_SHARE = 0.2  # where a source has no images for testing


def stratified_order(y: Tensor, seed: int) -> Tensor:
    """A permutation of the positions of labels y (n,), int64 on the CPU, of which every prefix is stratified.

    The j-th image of a class of c, in random order, stands at (2j + 1) / c; of those at one place, one drawn by lot
    comes first. So a prefix holds of every class what Webster's method gives it: its share, within one image but for
    rare cases. Depends on y and seed alone. Data often rests class by class, and its first n images are of few.

    >>> y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    >>> y[stratified_order(y, seed=0)[:4]].sort().values.tolist()
    [0, 0, 1, 2]
    """
    generator = Generator().manual_seed(seed)
    _, classes, counts = torch.unique(y.cpu(), return_inverse=True, return_counts=True)
    lots, ties = (torch.randperm(len(classes), generator=generator) for _ in range(2))
    by_class = lots[classes[lots].argsort(stable=True)]
    rank = torch.arange(len(classes)) - (counts.cumsum(0) - counts).repeat_interleave(
        counts
    )  # of an image in its class
    place = (2 * rank + 1).double() / counts.repeat_interleave(counts)
    return by_class[ties][place[ties].argsort(stable=True)]


def choose(images: Images, n: int | None, seed: int) -> tuple[Images, Tensor | None]:
    """The first n images in `stratified_order`, with their positions int64 (n,).

    Of n None, or as many as there are: all, in the order they came, and None.
    """
    if n is None or n >= len(images):
        return images, None
    which = stratified_order(images.y, seed)[:n]
    return images.take(which), which


def subset(images: Images, size: int | None, generator: Generator, *, key: str) -> Images:
    """The first `size` images after a random permutation, or all of them, in their own order, for None.

    key: the setting that asked for it, for the error. Raises DataError if there are fewer images.
    """
    if size is None:
        return images
    if size > len(images):
        raise DataError(f"expected {key} of at most {len(images)}, all images there are, got {size}; lower it")
    return images.take(torch.randperm(len(images), generator=generator)[:size])


def split(images: Images, share: float, generator: Generator, *, what: str = "validation") -> tuple[Images, Images]:
    """Training and validation images: every class gives `share` of its images to the latter, within one.

    A class with a single image keeps it for training. Both parts keep the order of `images`. what: the latter are, for
    the error. Raises DataError if a share above 0 is too small to give one image.
    """
    if share == 0:
        return images, images.take(slice(0, 0))
    aside = _choose(images.y.cpu(), share, generator)
    if not aside.any():
        raise DataError(f"expected a {what} share that gives an image, got {share:g} of {len(images)}; raise it")
    return images.take(torch.where(~aside)[0]), images.take(torch.where(aside)[0])


def _choose(y: Tensor, share: float, generator: Generator) -> Tensor:
    """Mask (n,) of the images set aside: in a random order of each class, the first `quota` of it."""
    counts = torch.bincount(y)
    quota = _quotas(counts, share)
    order = torch.randperm(len(y), generator=generator)
    by_class = order[y[order].argsort(stable=True)]
    place = torch.arange(len(y)) - (counts.cumsum(0) - counts).repeat_interleave(counts)  # of an image in its class
    aside = torch.zeros(len(y), dtype=torch.bool)
    aside[by_class[place < quota.repeat_interleave(counts)]] = True
    return aside


def _quotas(counts: Tensor, share: float) -> Tensor:
    """How many images each class gives: the share rounded down, then one more by the largest remainder."""
    want = counts.double() * share
    want[counts < 2] = 0
    quota = want.floor().long()
    spare = int((want.sum() + 0.5).floor()) - int(quota.sum())
    quota[torch.argsort(want - quota, descending=True, stable=True)[:spare]] += 1
    return quota


def load(settings: Settings) -> Dataset:
    """The data set that the settings name: loaded, cut to size, split and fingerprinted.

    `train_size` images are taken first, then `validation` of them is set aside, unless the source has images for it.
    Subsets and split depend on `seed` alone, and the test images on nothing that concerns training. Where a source has
    no test images, `test_share` of the training images become some, the same for every seed, and this is said.
    Raises DataError for an unknown name, missing or damaged data, and settings that cannot be met.

    >>> from qrobust.data import DataSettings
    >>> len(load(DataSettings("digits", test_size=100)).test)
    100
    """
    if settings.name not in SOURCES and not is_own(settings.name):
        raise DataError(f"expected a data set, got {settings.name!r}{did_you_mean(settings.name, SOURCES)}")
    check_settings(settings)
    loaded = own(settings) if is_own(settings.name) else SOURCES[settings.name](settings)
    _check_shapes(loaded)
    if len(loaded.classes) < 2:
        raise DataError(f"expected two classes or more to tell apart, got {loaded.classes[0]!r} alone; add others")
    learned, judged = _tested(loaded, settings)
    train = subset(learned, settings.train_size, _generator(settings), key="train_size")
    validation = loaded.validation
    if validation is None:
        train, validation = split(train, settings.validation, _generator(settings))
    test = subset(judged, settings.test_size, _generator(settings), key="test_size")
    digest = fingerprint(train, validation, test)
    return Dataset(settings.name, loaded.classes, train, validation, test, digest, loaded.skipped)


def _tested(loaded: Loaded, settings: Settings) -> tuple[Images, Images]:
    """Training and test images; the latter drawn from the former where a source has none."""
    share = settings.test_share
    if loaded.test is not None:
        if share is not None:
            raise DataError(f"expected no test_share where there are test images, got {share:g}; remove it")
        return loaded.train, loaded.test
    share = TEST_SHARE if share is None else share
    # One seed for all: runs of several seeds are judged on the same images, and none was trained on another's.
    train, test = split(loaded.train, share, Generator().manual_seed(0), what="test")
    note(
        f"{settings.name}: no images for testing, so {len(test)} of {len(loaded.train)} training images are set aside, "
        f"by class, always the same (data.test_share = {share:g})"
    )
    return train, test


def _generator(settings: Settings) -> Generator:
    # One for each draw, so that asking for fewer training images leaves the test images as they are.
    return Generator().manual_seed(settings.seed)


def _check_shapes(loaded: Loaded) -> None:
    train = loaded.train.shape[1:]
    for what, others in (("validation", loaded.validation), ("test", loaded.test)):
        if others is not None and others.shape[1:] != train:
            other = others.shape[1:]
            raise DataError(f"expected {what} images of shape {train} as in training, got {other}; give both one shape")
