"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ...torchvision_cpu import import_torchvision
from ..images import Images, make_images
from ..settings import Settings
from .registry import Loaded, missing, root_of, source


@source("cifar10")
def cifar10(settings: Settings) -> Loaded:
    """60000 colour images of 32×32 pixels in ten classes, 10000 of them for testing.

    Looks for ROOT/cifar-10-batches-py and checks the md5 of every file. Raises DataError if it is not whole.
    Reference: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _load(settings, "CIFAR10")


@source("cifar100")
def cifar100(settings: Settings) -> Loaded:
    """As `cifar10`, with a hundred (fine) classes, in ROOT/cifar-100-python."""
    return _load(settings, "CIFAR100")


def _load(settings: Settings, kind: str) -> Loaded:
    reader = getattr(import_torchvision().datasets, kind)
    root = root_of(settings)
    train = _read(reader, root, train=True, download=settings.download)
    test = _read(reader, root, train=False, download=False)
    classes = tuple(train.classes)
    return Loaded(_images(train, kind, len(classes)), _images(test, kind, len(classes)), classes)


def _read(reader: Any, root: Path, *, train: bool, download: bool) -> Any:
    """torchvision's data set with `data` (n, 32, 32, 3), `targets` and `classes`."""
    try:
        with warnings.catch_warnings():
            # The official pickles, written in 2009, hold dtypes in a form that newer numpy warns of.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return reader(str(root), train=train, download=download)
    except RuntimeError as error:  # torchvision's word for a missing file and for a wrong md5
        raise _unusable(root / reader.base_folder, reader.__name__) from error
    except OSError as error:
        raise DataError(
            f"expected to read or fetch {reader.__name__} in {root}, got: {error}; "
            f"put the official files into {root / reader.base_folder} by hand"
        ) from error


def _unusable(folder: Path, kind: str) -> DataError:
    remedy = f"fetch them with -o data.download=true, or put the official {kind} files into {folder}"
    if not folder.is_dir():
        return missing(f"the {kind} files", folder, remedy)
    return DataError(f"expected the official {kind} files in {folder}, got some missing or altered; {remedy}")


def _images(read: Any, kind: str, classes: int) -> Images:
    # torchvision hands out a transposed view; undoing it costs no copy.
    x = torch.from_numpy(read.data.transpose(0, 3, 1, 2)).contiguous()
    return make_images(x, torch.tensor(read.targets), classes=classes, name=kind)
