"""What attacks ask of images, labels and networks, told in one line."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError, ModelError

ROUNDING = 1e-6  # what resizing in float32 leaves beyond [0, 1]


def check_images(x: Tensor) -> None:
    """Raises DataError for images that are no floats in [0, 1]."""
    if not x.is_floating_point():
        raise DataError(f"expected float images in [0, 1], got {x.dtype}; divide 8-bit images by 255")
    if not x.numel() or _recording(x):
        return
    low, high = float(x.min()), float(x.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
        raise DataError(
            f"expected images in [0, 1], got [{low:.7g}, {high:.7g}]; pass unnormalised images, "
            "normalisation belongs inside the model"
        )


def check_output(logits: object, y: Tensor) -> None:
    """Raises ModelError for an output that is no logits (n, classes ≥ 2), DataError for labels out of range."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(y):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"expected logits of shape ({len(y)}, classes), got {got}; return the logits alone")
    if logits.shape[1] < 2:
        raise ModelError(
            f"expected logits of two classes or more, got {logits.shape[1]}; "
            "return one a class: torch.cat([torch.zeros_like(z), z], 1) for a single logit z"
        )
    if not len(y) or _recording(y):
        return
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= logits.shape[1]:
        wrong = low if low < 0 else high
        raise DataError(f"expected labels in [0, {logits.shape[1] - 1}], got {wrong}; number the classes from 0")


def _recording(tensor: Tensor) -> bool:
    """Whether nothing can be read back: while a CUDA graph is being recorded, and of shapes without values."""
    return tensor.is_meta or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
