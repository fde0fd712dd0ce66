"""A second source of images to learn from, as generated ones: read for a data set, and what of it stands in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import DataError, did_you_mean
from .images import Dataset, Images, learning_batches
from .sources import SOURCES
from .sources.npz import labelled
from .sources.own import own
from .sources.registry import DataSettings, Size, check_settings, is_own, root_of

KNOWN = ("npz", "folder")


class ExtraSettings(Protocol):
    """Anything with these attributes, as the table `train.extra` of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    @property
    def size(self) -> Size | None: ...
    @property
    def cache(self) -> str | None: ...
    @property
    def skip_unreadable(self) -> bool: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def load_extra(settings: ExtraSettings, dataset: Dataset, seed: int = 0) -> Images:
    """Images of a second source, with labels of the data set's classes, by name where the source has names.

    npz: pairs of arrays as `labelled` says. folder: ROOT/train/CLASS/*, or ROOT/CLASS/*. Your own factory: its training
    images. Raises DataError for another source, image size, or class.
    """
    try:
        images, names = _read(settings, seed)
        if images.shape[1:] != dataset.shape:
            raise DataError(
                f"expected images of shape {dataset.shape}, the data set's, got {images.shape[1:]}; give both one shape"
            )
        return _relabelled(images, names, dataset.classes)
    except DataError as error:  # sources name keys of [data]
        raise DataError(f"train.extra: {str(error).replace('-o data.', '-o train.extra.')}") from error


def _read(settings: ExtraSettings, seed: int) -> tuple[Images, tuple[str, ...]]:
    """Images with the names of their labels; () where these are the numbers of classes."""
    if settings.name not in KNOWN and not is_own(settings.name):
        suggested = did_you_mean(settings.name, KNOWN)
        raise DataError(f"expected npz, folder or a function of yours, FILE.py:NAME, got {settings.name!r}{suggested}")
    keys = ("size", "cache", "skip_unreadable", "options")
    given = DataSettings(settings.name, settings.root, **{key: getattr(settings, key) for key in keys}, seed=seed)
    check_settings(given)
    if settings.name == "npz":
        return labelled(root_of(given))
    loaded = own(given) if is_own(settings.name) else SOURCES[settings.name](given)
    numbered = loaded.classes == tuple(map(str, range(len(loaded.classes))))
    return loaded.train, () if numbered else loaded.classes


def _relabelled(images: Images, names: tuple[str, ...], classes: tuple[str, ...]) -> Images:
    """With the data set's numbers as labels."""
    if not names:
        if (highest := int(images.y.max())) >= len(classes):
            raise DataError(f"expected labels in [0, {len(classes) - 1}], the data set's, got {highest}; relabel them")
        return images
    for name in names:
        if name not in classes:
            raise DataError(f"expected classes of the data set, got {name!r}{did_you_mean(name, classes)}")
    return images.relabelled(torch.tensor([classes.index(name) for name in names])[images.y])


@dataclass(frozen=True)
class Extra:
    """The images of a second source that stand in every batch beside the first one's, which alone make an epoch.

    share: of a batch, in (0, 0.95]. order: the permutation, int64 (n,), of each pass over these images, counted from 0.
    A pass shows every one once, goes on from epoch to epoch, and depends on nothing that was drawn before. epoch: from
    0, of which batches are asked for.
    """

    images: Images
    share: float
    order: Callable[[int], Tensor]
    epoch: int = 0

    def spans(self, count: int, batch_size: int) -> list[slice]:
        """Where the `count` images of the first source stand, batch by batch: what the share leaves them."""
        return learning_batches(count, batch_size - round(self.share * batch_size))

    def counts(self, count: int, batch_size: int) -> list[int]:
        """How many of these images each batch of an epoch has: round(share · batch_size), in another batch as many for
        each of the first source's.
        """
        beside = round(self.share * batch_size)
        own = (len(range(count)[span]) for span in self.spans(count, batch_size))
        return [round(beside * one / (batch_size - beside)) for one in own]

    def stream(self, count: int, batch_size: int) -> Iterator[Images]:
        """These images of each batch of the epoch."""
        counts = self.counts(count, batch_size)
        positions = self._positions(self.epoch * sum(counts), sum(counts)).to(self.images.y.device)
        return self.images.stream(torch.split(positions, counts))

    def _positions(self, first: int, count: int) -> Tensor:
        """Those from `first` on of all passes, one after the other."""
        size = len(self.images)
        passes = range(first // size, (first + count - 1) // size + 1)
        return torch.cat([self.order(one) for one in passes])[first - size * passes.start :][:count]
