"""Images that stay in a file: what is asked for is read, the rest is not."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .images import Images, check_labels


class Mapped(Images):
    """Images at some positions of a mapped file, uint8 (m, c, h, w), and their labels y, int64 (n,).

    `take` composes positions and reads nothing; `x` reads these images anew each time. Processes that map one
    file share its pages, and the system drops them where memory is short.
    """

    _file: NDArray[np.uint8]
    _positions: Tensor

    def __init__(self, file: NDArray[np.uint8], y: Tensor, positions: Tensor | None = None) -> None:
        every = torch.arange(len(file)) if positions is None else positions
        vars(self).update(_file=file, _positions=every, y=y)  # frozen, as all images

    def __repr__(self) -> str:
        return f"Mapped({', '.join(map(str, self.shape))})"  # the parent's would read all pixels

    @property
    def x(self) -> Tensor:
        """A copy of these images, uint8 (n, c, h, w), on the CPU."""
        _announce(self._file, self._positions)
        return torch.from_numpy(self._file[self._positions.numpy()])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, h, w), for which no pixel is read."""
        return (len(self), *self._file.shape[1:])

    def take(self, which: Tensor | slice | list[int]) -> Mapped:
        """The images at these positions, in this order; not read yet."""
        return Mapped(self._file, self.y[which], self._positions[which])

    def stream(self, parts: Iterable[Tensor | slice]) -> Iterator[Images]:
        """As `take` for each of these, in memory; a thread reads one while the one before is in use."""
        with ThreadPoolExecutor(1) as reader:
            ahead = None
            for part in parts:
                coming = reader.submit(self.take(part)._read)
                if ahead is not None:
                    yield ahead.result()
                ahead = coming
            if ahead is not None:
                yield ahead.result()

    def to(self, device: torch.device | str) -> Images:  # noqa: ARG002, batches move, the file cannot
        """These images where they are."""
        return self

    def _read(self) -> Images:
        return Images(self.x, self.y)


def map_images(path: Path, y: Tensor, *, classes: int, name: str = "images") -> Mapped:
    """The images in a .npy file, uint8 (n, c, h, w), checked as `make_images` does, with none of them read.

    y: int64 (n,) in [0, classes). Raises DataError for a file or labels that are otherwise.
    """
    try:
        file = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"expected decoded images in {path}, cannot read it: {error}; remove it") from error
    if file.dtype != np.uint8 or file.ndim != 4 or file.size == 0:
        raise DataError(f"expected uint8 (n, c, h, w) in {path}, got {file.dtype} {file.shape}; remove it")
    check_labels(y, len(file), classes, name)
    return Mapped(file, y)


def _announce(file: NDArray[np.uint8], positions: Tensor) -> None:
    """Ask the system for these rows all at once.

    From a disk that is about ten times faster than row after row, and nothing around the rows is read.
    """
    pages = file.base if isinstance(file, np.memmap) else None
    if sys.platform == "win32" or not isinstance(pages, mmap.mmap):
        return
    row, first = file.strides[0], file.offset % mmap.ALLOCATIONGRANULARITY
    with suppress(OSError):  # no more than advice
        for position in positions.tolist():
            start = first + position * row
            begin = start - start % mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, begin, start + row - begin)
