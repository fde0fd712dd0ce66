"""Images with their labels as they rest in memory or in a file: 8 bits per channel, what a camera hands over."""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError

PIECE = 256  # images that are hashed at a time


@dataclass(frozen=True, eq=False)
class Images:
    """Images x, uint8 of shape (n, c, h, w), and their labels y, int64 of shape (n,); n may be 0.

    Build one from data of unknown quality with `make_images`, which checks it.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, c, h, w), for which no pixel is read."""
        return tuple(self.x.shape)

    def take(self, which: Tensor | slice | list[int]) -> Images:
        """The images at these positions, in this order; a tensor of positions counts from 0."""
        if isinstance(which, Tensor) and which.dtype == torch.int64:
            # 6 times faster on a CPU than x[which].
            return Images(self.x.index_select(0, which.to(self.x.device)), self.y[which])
        return Images(self.x[which], self.y[which])

    def relabelled(self, y: Tensor) -> Images:
        """The same images with other labels y, int64 (n,)."""
        return Images(self.x, y)

    def stream(self, parts: Iterable[Tensor | slice]) -> Iterator[Images]:
        """What `take` gives for each of these, one after the other, in memory."""
        return (self.take(part) for part in parts)

    def batches(self, size: int) -> Iterator[Images]:
        """All images in order, `size` at a time, the last batch maybe fewer. Raises DataError if size < 1."""
        check_batch_size(size)
        return self.stream(slice(start, start + size) for start in range(0, len(self), size))

    def to(self, device: torch.device | str) -> Images:
        """The same images on another device; at one byte per value a whole data set often fits."""
        return Images(self.x.to(device), self.y.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, ready for use.

    name: of its source. classes: names, label k is `classes[k]`. train, validation, test: disjoint images of
    one shape; validation may be empty. fingerprint: sha256 over shapes, pixels and labels of the three, after
    subset and split, so two runs with equal fingerprints saw the same data. skipped: files that were left out, as none
    of them could be read.
    """

    name: str
    classes: tuple[str, ...]
    train: Images
    validation: Images
    test: Images
    fingerprint: str
    skipped: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of every image."""
        _, channels, height, width = self.train.shape
        return channels, height, width


def make_images(x: Tensor, y: Tensor, *, classes: int, name: str = "images") -> Images:
    """Images that hold what they promise.

    x: uint8 (n, c, h, w) with n > 0; y: int64 (n,) in [0, classes). name: what to call them in an error.
    Raises DataError if dtype, shape, lengths or labels are otherwise.
    """
    _check_pixels(x, name)
    check_labels(y, len(x), classes, name)
    return Images(x, y)


def to_unit(x: Tensor, device: torch.device | str, channels_last: bool = False) -> Tensor:
    """x / 255: uint8 images (n, c, h, w) as float32 in [0, 1] on the device.

    The same bits on every device: CUDA multiplies by the reciprocal when the divisor is a number, so the
    divisor is a tensor there. `channels_last` sets the memory format, not the shape.
    """
    x = x.to(device, non_blocking=True)  # moved as bytes, a quarter of the traffic
    unit = x.to(torch.float32) / torch.full((), 255.0, device=x.device)
    return unit.contiguous(memory_format=torch.channels_last) if channels_last else unit


def fingerprint(*parts: Images) -> str:
    """sha256 (hex) over shapes, pixels and labels of all parts, in order."""
    state = hashlib.sha256()
    for part in parts:
        state.update(repr(part.shape).encode())
        for some in pixel_bytes(part):
            state.update(some)
        state.update(part.y.cpu().numpy().astype("<i8").tobytes())
    return state.hexdigest()


def pixel_bytes(images: Images) -> Iterator[bytes]:
    """The pixels of all images in order, in pieces, so that a file larger than memory can be hashed."""
    return (piece.x.cpu().numpy().tobytes() for piece in images.batches(PIECE))


def learning_batches(count: int, size: int) -> list[slice]:
    """The positions below count, `size` at a time, the last batch maybe fewer: but a single image joins the one before.

    For networks in train mode: in a batch of one image batch-norm over 1×1 maps has no variance.
    Raises DataError if size < 1.
    """
    check_batch_size(size)
    starts = range(0, count - 1 if count > 1 and count % size == 1 else count, size)
    return [slice(start, count if start == starts[-1] else start + size) for start in starts]


def check_batch_size(size: int) -> None:
    """Raises DataError for a batch of no images."""
    if size < 1:
        raise DataError(f"expected a batch size of at least 1, got {size}; choose a positive number")


def check_labels(y: Tensor, count: int, classes: int, name: str) -> None:
    """Raises DataError unless y is int64, of shape (count,), in [0, classes)."""
    if y.dtype != torch.int64:
        raise DataError(f"expected labels of {name} as torch.int64, got {y.dtype}; convert them by y.long()")
    if y.shape != (count,):
        raise DataError(
            f"expected labels of {name} of shape ({count},), got {tuple(y.shape)}; give one label per image"
        )
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise DataError(f"expected labels of {name} in [0, {classes - 1}], got {wrong}; number the classes from 0")


def _check_pixels(x: Tensor, name: str) -> None:
    if x.dtype != torch.uint8:
        raise DataError(f"expected {name} as torch.uint8, got {x.dtype}; convert images in [0, 1] by (x * 255).round()")
    if x.dim() != 4:
        raise DataError(f"expected {name} of shape (n, c, h, w), got {tuple(x.shape)}; reshape them")
    if x.numel() == 0:
        raise DataError(f"expected at least one image in {name}, got shape {tuple(x.shape)}; give some images")


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

    def relabelled(self, y: Tensor) -> Mapped:
        """The same images with other labels y, int64 (n,)."""
        return Mapped(self._file, y, self._positions)

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
