"""Decoded images in a file, written once and whole."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ... import distributed
from ...errors import DataError
from ...progress import note
from .files import decode, image_shape

LAYOUT = 2  # raise it when decoding comes to give other pixels
STALE = 3600.0  # seconds without a write after which an unfinished file was left by a killed process
PAUSE = 0.5  # seconds


def decoded(paths: Sequence[Path], root: Path, size: int | None, cache: Path) -> Path:
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


def _digest(paths: Sequence[Path], root: Path, size: int | None) -> str:
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


def _write(path: Path, paths: Sequence[Path], size: int | None) -> None:
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
