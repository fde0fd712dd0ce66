"""Handwritten digits that come with scikit-learn: real images that need no download."""

from __future__ import annotations

import torch

from ..images import make_images
from ..settings import Settings
from .registry import Loaded, source

TRAIN = 1297


@source("digits")
def digits(settings: Settings) -> Loaded:  # noqa: ARG001, sources share one signature
    """1797 grey images of 8×8 pixels in ten classes; the first 1297 train and the last 500 test.

    Pixels 0..16 become round(255 v / 16). The order is that of the file, which is not sorted by class.
    Reference: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (test part).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).unsqueeze(1)
    x = (pixels * 255 / 16).round().to(torch.uint8)
    y = torch.from_numpy(bunch.target).long()
    classes = tuple(str(digit) for digit in range(10))
    train = make_images(x[:TRAIN], y[:TRAIN], classes=10, name="digits")
    return Loaded(train, make_images(x[TRAIN:], y[TRAIN:], classes=10, name="digits"), classes)
