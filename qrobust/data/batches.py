"""One pass over the training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from ..errors import DataError
from .augment import augment
from .images import Images, check_batch_size, to_unit


def epoch_batches(
    images: Images,
    batch_size: int,
    generator: Generator,
    device: torch.device | str,
    padding: int = 0,
    flip: bool = False,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in a random order: x float32 (n, c, h, w) in [0, 1] and y int64 (n,), on the device.

    padding, flip: see `augment`. drop_last: leave out a last batch that is smaller than the others.
    generator: on the CPU; its state alone decides order and augmentation. `images` may rest on the CPU, in a
    file (`Mapped`: read one batch ahead) or, fastest, on the device already (`images.to(device)`).
    Raises DataError if batch_size < 1, or if drop_last would leave out everything.
    """
    check_batch_size(batch_size)
    if drop_last and batch_size > len(images):
        raise DataError(f"expected a batch size of at most {len(images)}, all there are, got {batch_size}; lower it")
    return _epoch(images, batch_size, generator, torch.device(device), (padding, flip, drop_last))


def _epoch(
    images: Images, size: int, generator: Generator, device: torch.device, options: tuple[int, bool, bool]
) -> Iterator[tuple[Tensor, Tensor]]:
    padding, flip, drop_last = options
    order = torch.randperm(len(images), generator=generator).to(images.y.device)
    stop = len(images) // size * size if drop_last else len(images)
    for resting in images.stream(order[start : start + size] for start in range(0, stop, size)):
        batch = resting.to(device)
        # Augmented as bytes, a quarter of the memory traffic of float32.
        x = augment(batch.x, padding=padding, flip=flip, generator=generator)
        yield to_unit(x, device), batch.y
