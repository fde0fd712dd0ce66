"""One pass over the training images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from .augment import augment
from .images import Images, learning_batches, to_unit


def epoch_batches(
    images: Images,
    batch_size: int,
    generator: Generator,
    device: torch.device | str,
    padding: int = 0,
    flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """All images once, in a random order: x float32 (n, c, h, w) in [0, 1] and y int64 (n,), on the device.

    Batches are those of `learning_batches`: a last image on its own joins the batch before, so that none is left out.
    padding, flip: see `augment`. generator: on the CPU; its state alone decides order and augmentation. `images` may
    rest on the CPU, in a file (`Mapped`: read one batch ahead) or, fastest, on the device already.
    Raises DataError if batch_size < 1.
    """
    spans = learning_batches(len(images), batch_size)
    return _epoch(images, spans, generator, torch.device(device), padding, flip)


def _epoch(
    images: Images, spans: list[slice], generator: Generator, device: torch.device, padding: int, flip: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=generator).to(images.y.device)
    for resting in images.stream(order[span] for span in spans):
        batch = resting.to(device)
        # Augmented as bytes, a quarter of the memory traffic of float32.
        x = augment(batch.x, padding=padding, flip=flip, generator=generator)
        yield to_unit(x, device), batch.y
