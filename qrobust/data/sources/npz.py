"""Your own arrays, in one .npz file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
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
PAIRS = (("x_train", "y_train"), ("x", "y"), ("image", "label"))
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
    arrays = _read(root_of(settings), _needed)
    classes = _class_names(arrays)
    train = _images(arrays, "train", len(classes))
    return Loaded(train, _images(arrays, "test", len(classes)), classes)


def labelled(path: Path) -> tuple[Images, tuple[str, ...]]:
    """One pair of arrays of a .npz file, and the names in an array `classes`; () without, where labels are numbers.

    The pair is the first that is there of x_train and y_train, x and y, image and label, otherwise as of `npz`; images
    in `image` may have their channels last, as published sets of generated images have them. Raises DataError.
    """
    arrays = _read(path, _pair)
    x_name, y_name, *_ = arrays
    if x_name == "image" and _is_channels_last(arrays[x_name].shape):
        arrays[x_name] = arrays[x_name].transpose(0, 3, 1, 2)
    names = _stated(arrays) or ()
    return _labelled(arrays, x_name, y_name, len(names) or 2**31), names


def _read(path: Path, wanted: Callable[[Path, Any], tuple[str, ...]]) -> dict[str, Array]:
    if not path.is_file():
        raise missing("a .npz file", path, REMEDY)
    try:
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise DataError(f"expected a .npz file, got a single array in {path}; {REMEDY}")
            return {name: file[name] for name in (*wanted(path, file), "classes") if name in file}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"expected a .npz file of numbers, cannot read {path}: {error}; {REMEDY}") from error


def _needed(path: Path, file: Any) -> tuple[str, ...]:
    for name in NEEDED:
        if name not in file:
            raise DataError(f"expected an array {name} in {path}, got none{did_you_mean(name, file.files)}")
    return NEEDED


def _pair(path: Path, file: Any) -> tuple[str, ...]:
    for pair in PAIRS:
        if all(name in file for name in pair):
            return pair
    wanted = ", ".join(" and ".join(pair) for pair in PAIRS)
    raise DataError(f"expected a pair of arrays in {path}, one of {wanted}, got none; name them so")


def _stated(arrays: dict[str, Array]) -> tuple[str, ...] | None:
    """Names of classes, where there are some."""
    if "classes" not in arrays:
        return None
    if arrays["classes"].ndim != 1:
        raise DataError(f"expected classes of shape (classes,), got {arrays['classes'].shape}; give one name a class")
    return tuple(str(name) for name in arrays["classes"])


def _class_names(arrays: dict[str, Array]) -> tuple[str, ...]:
    labels = arrays["y_train"]
    _check_labels("y_train", labels)
    if (stated := _stated(arrays)) is not None:
        return stated
    found = np.unique(labels).tolist()
    if found and found[-1] >= len(found):
        absent = next(label for label, there in enumerate(found) if label != there)
        raise DataError(
            f"expected y_train to number the classes from 0 without gaps, got {found[0]} to {found[-1]} and "
            f"no {absent}; number them anew (np.unique with return_inverse), or name every class in an array classes"
        )
    return tuple(str(label) for label in range(max(found, default=-1) + 1))


def _images(arrays: dict[str, Array], part: str, classes: int) -> Images:
    return _labelled(arrays, f"x_{part}", f"y_{part}", classes)


def _labelled(arrays: dict[str, Array], x_name: str, y_name: str, classes: int) -> Images:
    _check_labels(y_name, arrays[y_name])
    _check_layout(x_name, arrays[x_name].shape)
    x = torch.from_numpy(_to_bytes(x_name, arrays[x_name]))
    y = torch.from_numpy(arrays[y_name].astype(np.int64))
    return make_images(x, y, classes=classes, name=x_name)


def _check_layout(name: str, shape: tuple[int, ...]) -> None:
    """Raises DataError for what is far more likely (n, h, w, c): a few channels last, behind sides of many pixels."""
    if _is_channels_last(shape):
        raise DataError(
            f"expected {name} of shape (n, c, h, w), got {shape}, which is as (n, h, w, c); "
            f"pass {name}.transpose(0, 3, 1, 2)"
        )


def _is_channels_last(shape: tuple[int, ...]) -> bool:
    channels = (3, 4) if len(shape) == 4 and shape[1] != shape[2] else (1, 3, 4)
    return len(shape) == 4 and min(shape[1:3]) > 4 and shape[3] in channels


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
