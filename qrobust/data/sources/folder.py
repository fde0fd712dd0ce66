"""Your own image files, one folder per class."""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import DataError, did_you_mean
from ..images import Images, make_images
from ..mapped import map_images
from ..settings import Settings
from .cache import decoded
from .files import read_images
from .registry import Loaded, missing, root_of, source

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
REMEDY = "lay the files out as ROOT/train/CLASS/* and ROOT/test/CLASS/* and set -o data.root=ROOT"


@source("folder")
def folder(settings: Settings) -> Loaded:
    """Colour images from ROOT/train/CLASS/* and ROOT/test/CLASS/*, or ROOT/val where there is no ROOT/test.

    The layout of torchvision's ImageFolder: classes are the folders of ROOT/train in alphabetical order,
    files are found at any depth, and what has no image's suffix is left aside. With `size` each image is
    resized and centre-cropped to size×size; without it all must have one size. With `cache` they are decoded
    once, and mapped from there on.
    Raises DataError for a missing folder, a class without training images, or a test class not in training.
    """
    root = root_of(settings)
    train = _folder(root / "train", "training images")
    test = _folder(root / "test" if (root / "test").is_dir() else root / "val", "test images")
    classes = _class_names(train)
    _check_test_classes(test, classes)
    return Loaded(_read(train, classes, settings), _read(test, classes, settings), classes)


def _folder(path: Path, what: str) -> Path:
    if not path.is_dir():
        raise missing(f"a folder of {what}", path, REMEDY)
    return path


def _class_names(path: Path) -> tuple[str, ...]:
    names = tuple(_directories(path))
    if not names:
        raise missing("one folder per class", path, REMEDY)
    for name in names:
        if not _files(path / name):
            raise missing(f"images of class {name}", path / name, f"add some, or remove the folder; {REMEDY}")
    return names


def _check_test_classes(path: Path, classes: tuple[str, ...]) -> None:
    for name in _directories(path):
        if name not in classes:
            raise DataError(f"expected in {path} only classes of training, got {name!r}{did_you_mean(name, classes)}")


def _directories(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)


def _read(path: Path, classes: tuple[str, ...], settings: Settings) -> Images:
    found = [(file, label) for label, name in enumerate(classes) for file in _files(path / name)]
    if not found:
        raise missing("images", path, REMEDY)
    files, y = [file for file, _ in found], torch.tensor([label for _, label in found])
    name = f"images in {path}"
    if settings.cache is None:
        return make_images(read_images(files, settings.size), y, classes=len(classes), name=name)
    cache = Path(settings.cache).expanduser()
    return map_images(decoded(files, path, settings.size, cache), y, classes=len(classes), name=name)
