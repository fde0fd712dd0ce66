"""Your own arrays, in one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...errors import DataError, did_you_mean
from ..images import Images, make_images
from .registry import Loaded, Settings, missing, root_of, source

Array = NDArray[Any]
NEEDED = ("x_train", "y_train", "x_test", "y_test")
REMEDY = "write it by np.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...) and set -o data.root=FILE"


@source("npz")
def npz(settings: Settings) -> Loaded:
    """The arrays x_train, y_train, x_test, y_test, and optionally classes, of the file ROOT.

    x: (n, c, h, w), uint8 or float in [0, 1] (rounded to 8 bits); y: integers (n,) from 0; classes: their
    names, by default the numbers up to the largest label in y_train, each of which must occur. Nothing pickled is
    ever loaded.
    Raises DataError that names the array and the value at fault.

    >>> np.savez("mine.npz", x_train=x, y_train=y, x_test=x, y_test=y)  # doctest: +SKIP
    """
    path = root_of(settings)
    arrays = _read(path)
    classes = _class_names(arrays)
    train = _images(arrays, "train", len(classes))
    return Loaded(train, _images(arrays, "test", len(classes)), classes)


def _read(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise missing("a .npz file", path, REMEDY)
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            _check_names(path, file)
            return {name: file[name] for name in (*NEEDED, "classes") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"expected a .npz file of numbers, cannot read {path}: {error}; {REMEDY}") from error


def _check_names(path: Path, file: Any) -> None:
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise DataError(f"expected a .npz file, got a single array in {path}; {REMEDY}")
    for name in NEEDED:
        if name not in file:
            raise DataError(f"expected an array {name} in {path}, got none{did_you_mean(name, file.files)}")


def _class_names(arrays: dict[str, Array]) -> tuple[str, ...]:
    labels = arrays["y_train"]
    _check_labels("y_train", labels)
    if "classes" in arrays:
        if arrays["classes"].ndim != 1:
            raise DataError(
                f"expected classes of shape (classes,), got {arrays['classes'].shape}; give one name a class"
            )
        return tuple(str(name) for name in arrays["classes"])
    found = np.unique(labels).tolist()
    if found and found[-1] >= len(found):
        absent = next(label for label, there in enumerate(found) if label != there)
        raise DataError(
            f"expected y_train to number the classes from 0 without gaps, got {found[0]} to {found[-1]} and "
            f"no {absent}; number them anew (np.unique with return_inverse), or name every class in an array classes"
        )
    return tuple(str(label) for label in range(max(found, default=-1) + 1))


def _images(arrays: dict[str, Array], part: str, classes: int) -> Images:
    x_name, y_name = f"x_{part}", f"y_{part}"
    _check_labels(y_name, arrays[y_name])
    _check_layout(x_name, arrays[x_name].shape)
    x = torch.from_numpy(_to_bytes(x_name, arrays[x_name]))
    y = torch.from_numpy(arrays[y_name].astype(np.int64))
    return make_images(x, y, classes=classes, name=x_name)


def _check_layout(name: str, shape: tuple[int, ...]) -> None:
    """Raises DataError for what is far more likely (n, h, w, c): a few channels last, behind sides of many pixels."""
    channels = (3, 4) if len(shape) == 4 and shape[1] != shape[2] else (1, 3, 4)
    if len(shape) == 4 and min(shape[1:3]) > 4 and shape[3] in channels:
        raise DataError(
            f"expected {name} of shape (n, c, h, w), got {shape}, which is as (n, h, w, c); "
            f"pass {name}.transpose(0, 3, 1, 2)"
        )


def _check_labels(name: str, labels: Array) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"expected {name} as integers, got {labels.dtype}; number the classes from 0")


def _to_bytes(name: str, values: Array) -> NDArray[np.uint8]:
    """uint8 as it is, in C order; floats in [0, 1] as round(255 v)."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"expected {name} as uint8 or float in [0, 1], got {values.dtype}; convert it")
    inside = (values >= 0) & (values <= 1)  # NaN is not
    if not inside.all():
        place = tuple(int(i) for i in np.argwhere(~inside)[0])
        raise DataError(
            f"expected {name} in [0, 1], got {values[place]:g} at {place}; "
            "pass uint8 or divide by 255, normalisation belongs inside the model"
        )
    return np.round(values.astype(np.float32) * 255).astype(np.uint8)
