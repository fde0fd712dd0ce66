"""Small images, and where the shared real ones are."""

from pathlib import Path

import pytest
import torch

from qrobust.data import Images

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def shared(name: str) -> Path:
    """The shared folder of this name; skips the test where it is absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} in ../shared/data, next to the repository")
    return SHARED / name


def some_images(n: int = 12, classes: int = 3, side: int = 6, seed: int = 0) -> Images:
    """Random colour images, the labels going round."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    return Images(x, torch.arange(n) % classes)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
