"""Your own image files, one folder per class."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from ...errors import MOST_NAMES, DataError, did_you_mean
from ...progress import note
from ..images import Images, make_images, map_images
from .files import decoded, read_images, unreadable, unreadable_before
from .registry import Loaded, Settings, missing, root_of, source

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
REMEDY = "lay the files out as ROOT/train/CLASS/* and ROOT/test/CLASS/* and set -o data.root=ROOT"


@source("folder")
def folder(settings: Settings) -> Loaded:
    """Colour images from ROOT/train/CLASS/* and ROOT/test/CLASS/*, or ROOT/val where there is no ROOT/test.

    Where there is neither, test images are drawn from training's; the classes may then lie in ROOT itself.
    The layout of torchvision's ImageFolder: classes are the folders of ROOT/train in alphabetical order,
    files are found at any depth, and what has no image's suffix is left aside; so is what is hidden (its name begins
    with a dot, as of `.ipynb_checkpoints` and `._1.png`), and a folder without images is no class. With `size` each
    image is centre-cropped and resized to it; without it all must have one size. With `cache` they are
    decoded once, and mapped from there on. With `skip_unreadable` files that cannot be decoded are left out, for which
    every one is decoded once more. `read_images` says what becomes of pixels: grey ones become colour.
    Raises DataError for a missing folder, or a test class not in training.
    """
    root = root_of(settings)
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    train = root if test is None and not (root / "train").is_dir() and root.is_dir() else root / "train"
    if not train.is_dir():
        raise missing("a folder of training images", train, REMEDY)
    learned, broken = _by_class(train, settings)
    if test is None:
        return Loaded(_read(train, learned, tuple(learned), settings), None, tuple(learned), skipped=_names(broken))
    judged, broken_too = _by_class(test, settings)
    _compare_classes(learned, test, judged)
    classes, skipped = tuple(learned), _names([*broken, *broken_too])
    judged_images = _read(test, judged, classes, settings)
    return Loaded(_read(train, learned, classes, settings), judged_images, classes, skipped=skipped)


def _names(paths: list[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)


def _by_class(path: Path, settings: Settings) -> tuple[dict[str, list[Path]], list[Path]]:
    """The image files of every class that has some, in alphabetical order, and those that are left out."""
    found, broken = _found(path), []
    if settings.skip_unreadable:
        every = [file for files in found.values() for file in files]
        cache = Path(settings.cache).expanduser() if settings.cache else None
        broken = unreadable_before(every, path, cache) if cache else unreadable(every)
        left_out = set(broken)
        left = {name: [file for file in files if file not in left_out] for name, files in found.items()}
        found = {name: files for name, files in left.items() if files}
        if broken:
            names = _listed([str(file.relative_to(path)) for file in broken])
            note(f"{path}: {len(broken)} of {len(every)} files cannot be read and are left out: {names}")
    if not found:
        raise missing("a folder with images per class", path, REMEDY)
    return found, broken


def _found(path: Path) -> dict[str, list[Path]]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    found = {name: _files(path / name) for name in names}
    if empty := [name for name, files in found.items() if not files]:
        note(f"{path}: no images, so no class: {_listed(empty)}")
    return {name: files for name, files in found.items() if files}


def _files(path: Path) -> list[Path]:
    """Image files at any depth, but those that are hidden or lie in a hidden folder."""
    found = (file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
    seen = (file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    return sorted(file for file in seen if not file.is_dir())


def _compare_classes(learned: Collection[str], test: Path, judged: Collection[str]) -> None:
    for name in judged:
        if name not in learned:
            raise DataError(f"expected in {test} only classes of training, got {name!r}{did_you_mean(name, learned)}")
    if untested := [name for name in learned if name not in judged]:
        note(f"{test}: no images of classes of training: {_listed(untested)}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more


def _read(path: Path, files: dict[str, list[Path]], classes: tuple[str, ...], settings: Settings) -> Images:
    paths = [file for some in files.values() for file in some]
    y = torch.tensor([classes.index(name) for name, some in files.items() for _ in some])
    name = f"images in {path}"
    if settings.cache is None:
        return make_images(read_images(paths, settings.size), y, classes=len(classes), name=name)
    cache = Path(settings.cache).expanduser()
    return map_images(decoded(paths, path, settings.size, cache), y, classes=len(classes), name=name)
