"""Small images, and where the shared real ones are."""

from pathlib import Path

import torch

from qrobust.data import Images

from ..conftest import evidence


def shared(name: str) -> Path:
    """The folder of this name among the real images, which are evidence."""
    return Path(str(evidence("images"))) / name


def some_images(n: int = 12, classes: int = 3, side: int = 6, seed: int = 0) -> Images:
    """Random colour images, the labels going round."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % classes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
