"""Reading many image files, and keeping what was decoded in a file, written once and whole."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from ... import distributed
from ...errors import DataError
from ...progress import bar, note
from ...storage import read_json, write_json
from ..given import colour
from .registry import Size, height_width

PIECE = 512  # images decoded at a time
Pixels = NDArray[np.uint8]


class Unreadable(DataError):
    """A file that is no whole image."""


def read_images(paths: Sequence[Path], size: Size | None = None) -> Tensor:
    """The images in these files (at least one) as uint8 (n, 3, h, w), upright as their EXIF data say.

    Grey ones become colour; of 16 bits v becomes round(v / 257); floats in [0, 1] become round(255 v); what is
    transparent is laid on white. size: (height, width) in pixels, or both in one, to which the largest centred part of
    these proportions of each image is resized (bilinear); with None all must have the size of the first. Raises
    DataError for a file that is no image, whose pixels have no known range, or that has another size.
    """
    x = np.empty((len(paths), *image_shape(paths[0], size)), dtype=np.uint8)

    def keep(start: int, pixels: Pixels) -> None:
        x[start : start + len(pixels)] = pixels

    decode(paths, size, keep)
    return torch.from_numpy(x)


def decode(paths: Sequence[Path], size: Size | None, put: Callable[[int, Pixels], object]) -> None:
    """`put(start, pixels)` for piece after piece of the images, uint8 (n, 3, h, w), which it must copy or write.

    size and errors: as for `read_images`.
    """
    piece = np.empty((min(PIECE, len(paths)), *image_shape(paths[0], size)), dtype=np.uint8)

    def fill(position: int, path: Path) -> None:
        image = _read(path, size)
        _check_size(image, piece[0], path)
        piece[position] = image

    # Decoding releases the interpreter lock, so threads do help.
    with ThreadPoolExecutor() as pool, bar("decode", len(paths), "images") as moving:
        for start in range(0, len(paths), PIECE):
            some = paths[start : start + PIECE]
            for _ in pool.map(fill, range(len(some)), some):
                moving.advance()
            put(start, piece[: len(some)])


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """Those that are no whole images, for which all are decoded; what `read_images` refuses otherwise is not among."""

    def is_broken(path: Path) -> bool:
        """Whether it is no whole image; moves the bar."""
        try:
            _read(path, None)
        except Unreadable:
            return True
        except DataError:
            return False
        finally:
            moving.advance()
        return False

    with ThreadPoolExecutor() as pool, bar("look through", len(paths), "images") as moving:
        return [path for path, broken in zip(paths, pool.map(is_broken, paths), strict=True) if broken]


def image_shape(path: Path, size: Size | None = None) -> tuple[int, ...]:
    """(3, h, w) of the image in a file. Raises DataError for a file that is no image."""
    return _read(path, size).shape


def _read(path: Path, size: Size | None) -> Pixels:
    """One image, (3, h, w)."""
    try:
        with Image.open(path) as file:
            image = colour(ImageOps.exif_transpose(file), file.format, path)
    except DataError:
        raise
    except Exception as error:  # what a damaged file makes Pillow's decoders raise is of many kinds
        raise Unreadable(
            f"expected an image at {path}, cannot read it: {error}; replace or remove it, or leave all such files out "
            "with -o data.skip_unreadable=true (folder only)"
        ) from error
    if size is not None:
        image = ImageOps.fit(image, height_width(size)[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).transpose(2, 0, 1)


def _check_size(image: Pixels, first: Pixels, path: Path) -> None:
    if image.shape != first.shape:
        expected, got = (f"{height}x{width}" for _, height, width in (first.shape, image.shape))
        raise DataError(
            f"expected images of {expected} pixels, as the first, got {got} at {path}; "
            "give all one size, or set one with -o data.size=PIXELS (folder only)"
        )


LAYOUT = 2  # raise it when decoding comes to give other pixels
STALE = 3600.0  # seconds without a write after which an unfinished file was left by a killed process
PAUSE = 0.5  # seconds


def decoded(paths: Sequence[Path], root: Path, size: Size | None, cache: Path) -> Path:
    """The .npy file in the folder `cache` that holds these images, below `root`, as `read_images` returns them.

    Its name has a digest of the files' names, sizes and times of change, and of `size`. The first process writes
    it where it is missing, the others wait. Raises DataError as `read_images` does, or if it cannot be written.
    """
    path = cache / f"{root.name}-{_digest(paths, root, size)}.npy"
    if not distributed.is_first():
        # Watched for, not met at a barrier: in a run that is continued the first process may load alone.
        _watch(path)
    elif not path.exists():
        _write(path, paths, size)
    return path


def unreadable_before(paths: Sequence[Path], root: Path, cache: Path) -> list[Path]:
    """What `unreadable` finds, kept in the folder `cache` for the next time, as long as no file changes."""
    place = cache / f"{root.name}-{_digest(paths, root, None)}.unreadable.json"
    if place.exists():
        return [paths[position] for position in read_json(place)]
    found = set(unreadable(paths))
    cache.mkdir(parents=True, exist_ok=True)
    write_json(place, [position for position, path in enumerate(paths) if path in found])
    return [path for path in paths if path in found]


def _digest(paths: Sequence[Path], root: Path, size: Size | None) -> str:
    state = hashlib.sha256(f"{LAYOUT}/{size}\n".encode())
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"expected an image at {path}, cannot read it: {error}; replace or remove it") from error
        line = f"{path.relative_to(root).as_posix()}\0{found.st_size}\0{found.st_mtime_ns}\n"
        state.update(line.encode(errors="surrogateescape"))
    return state.hexdigest()[:32]


def _watch(path: Path) -> None:
    until = time.monotonic() + distributed.PATIENCE.total_seconds()
    while not path.exists():
        if time.monotonic() > until:
            raise DataError(f"expected {path} from the first process, got none; give a folder that all machines see")
        time.sleep(PAUSE)


def _write(path: Path, paths: Sequence[Path], size: Size | None) -> None:
    shape = (len(paths), *image_shape(paths[0], size))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        _check_space(path.parent, math.prod(shape))
        note(f"decoding {len(paths)} images into {path}")
        with _whole(path) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            decode(paths, size, lambda _, pixels: file.write(pixels.data))
    except OSError as error:
        raise DataError(f"expected a writable place, cannot write {path}: {error}; change data.cache") from error


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A neighbour to write to, which takes the name of `path` when all is on disk."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _sweep(path: Path) -> None:
    """Remove what a killed process left; another that decodes the same right now writes every few seconds."""
    for left in path.parent.glob(f".{path.name}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"expected {needed / 1e9:.1f} GB free for decoded images in {folder}, got {free / 1e9:.1f}; "
            "choose another folder with -o data.cache=FOLDER"
        )
