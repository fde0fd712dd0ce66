"""A suite without the images of others: which test images, what attacks changed of them, and what networks said.

Arrays of perturbations.npz: "which" int64 (n,), positions among the test images as their source gives them; "d.NAME"
int8, or int16 where changes are larger (L2), (n, c, h, w) in steps of 1/255, for each attack; all else as it stands in
the suite, without the labels "y", which come with the images.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..data import DataSettings, Images, load
from ..data.sources.registry import SOURCES
from ..errors import DataError, RunError

Arrays = dict[str, NDArray[Any]]
WITHOUT_FILES = {"digits", "spectral-shapes"}  # sources that need no folder
OF_FILES = {"folder", "npz"}  # sources of one's own images, which nobody else has
WHICH, CHANGE, PIXELS, CLEAN = "which", "d.", "x.", "x.clean"
STATED = ("name", "texture", "test_share", "seed")  # of a data set, what decides its test images
NEEDS = "the network itself loads without data; its check, bench and attack need them"


def data_table(settings: DataSettings) -> dict[str, Any]:
    """What an index says of the data set. Raises DataError for images that others cannot have."""
    if settings.name not in SOURCES or settings.name in OF_FILES:
        raise DataError(f"expected a published data set, which others have too, got {settings.name!r}; "
                        f"an entry takes {', '.join(sorted(set(SOURCES) - OF_FILES))}")  # fmt: skip
    return {key: value for key in STATED if (value := getattr(settings, key)) is not None}


def test_images(table: Mapping[str, Any], root: str | None) -> Images:
    """All test images of a data set, in the order of its source. Raises DataError, with what to do, without them."""
    try:
        found = load(DataSettings(**{key: table[key] for key in STATED if key in table}, root=root))
    except TypeError as error:
        raise RunError(f"expected a table of a data set in zoo.json, got: {error}; fetch the network again") from error
    except DataError as error:
        expected = str(error).partition(";")[0]
        raise DataError(f"{expected}; name the folder that holds them by --root DIR: {NEEDS}") from error
    return found.test


def pack(suite: Mapping[str, NDArray[Any]], images: Images) -> bytes:
    """A suite as perturbations.npz. images: all test images. Raises DataError for a suite of other images."""
    x, y = images.x.numpy(), images.y.numpy()
    position = {_key(x[at], y[at]): at for at in range(len(y))}
    found = [position.get(_key(*pair)) for pair in zip(suite[CLEAN], suite["y"], strict=True)]
    if None in found:
        raise DataError("expected a suite of the data set's test images, got others; export the artifact again")
    packed: Arrays = {WHICH: np.array(found, np.int64)}
    for name, array in suite.items():
        if name.startswith(PIXELS) and name != CLEAN:
            packed[CHANGE + name.removeprefix(PIXELS)] = _change(array, suite[CLEAN])
        elif name not in (CLEAN, "y"):
            packed[name] = array
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **packed)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpack(data: bytes, images: Images, sha256: str) -> Arrays:
    """The suite again, on the user's own images. Raises DataError where its arrays are not those of the hash."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            packed = {name: file[name] for name in file.files}
        chosen = images.take(torch.from_numpy(packed.pop(WHICH)))
        suite: Arrays = {CLEAN: chosen.x.numpy(), "y": chosen.y.numpy()}
        for name, array in packed.items():
            if name.startswith(CHANGE):
                pixels = suite[CLEAN].astype(np.int16) + array
                suite[PIXELS + name.removeprefix(CHANGE)] = pixels.astype(np.uint8)
            else:
                suite[name] = array
    except (IndexError, KeyError, OSError, ValueError) as error:
        raise DataError(f"expected the test images that were attacked, got others ({error}); {_OTHER}") from error
    if (found := arrays_sha256(suite)) != sha256:
        raise DataError(f"expected a suite of sha256 {sha256[:12]} on these images, got {found[:12]}: they are not "
                        f"those that were attacked; {_OTHER}")  # fmt: skip
    return suite


_OTHER = "name the folder of the official files by --root DIR"


def arrays_sha256(arrays: Mapping[str, NDArray[Any]]) -> str:
    """sha256 (hex) over names, types, shapes and values, independent of order and compression."""
    state = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        state.update(f"{name} {array.dtype.newbyteorder('<').str} {array.shape}\n".encode())
        state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()


def _change(pixels: NDArray[Any], clean: NDArray[Any]) -> NDArray[Any]:
    change: NDArray[Any] = pixels.astype(np.int16) - clean
    return change if abs(change).max(initial=0) > 127 else change.astype(np.int8)


def _key(pixels: NDArray[Any], label: Any) -> tuple[bytes, int]:
    return hashlib.sha256(pixels.tobytes()).digest(), int(label)
