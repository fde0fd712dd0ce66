"""Tiny ImageNet, in the layout of its official archive."""

from __future__ import annotations

from pathlib import Path

import torch

from ...errors import DataError
from ..images import Images, make_images
from ..settings import Settings
from .files import read_images
from .registry import Loaded, missing, root_of, source

ARCHIVE = "tiny-imagenet-200"
REMEDY = f"unpack http://cs231n.stanford.edu/{ARCHIVE}.zip and set -o data.root to the folder with wnids.txt"


@source("tiny-imagenet")
def tiny_imagenet(settings: Settings) -> Loaded:
    """Colour images of 64×64 pixels in 200 classes; its official validation images are the test images.

    Looks in ROOT and ROOT/tiny-imagenet-200 for `wnids.txt`, `train/WNID/images/*.JPEG`, `val/images/`,
    `val/val_annotations.txt` and, if there, `words.txt`. An archive with fewer classes is read the same way.
    Label k is the k-th WNID in alphabetical order, named by its first word. Bounding boxes are ignored.
    Raises DataError for anything missing.
    Reference: Y. Le and X. Yang, Tiny ImageNet Visual Recognition Challenge, 2015.
    """
    root = _find(root_of(settings))
    wnids = sorted(_lines(root / "wnids.txt"))
    train, test = _train_files(root, wnids), _test_files(root, wnids)
    return Loaded(_images(train, len(wnids)), _images(test, len(wnids)), _class_names(root, wnids))


def _find(root: Path) -> Path:
    for folder in (root, root / ARCHIVE):
        if (folder / "wnids.txt").is_file():
            return folder
    raise missing("the Tiny ImageNet list of classes", root / "wnids.txt", REMEDY)


def _train_files(root: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    """(file, label) for every training image, by class and then by name."""
    files: list[tuple[Path, int]] = []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid / "images"
        found = sorted(folder.glob("*.JPEG"))
        if not found:
            raise missing(f"Tiny ImageNet training images (*.JPEG) of class {wnid}", folder, REMEDY)
        files += [(file, label) for file in found]
    return files


def _test_files(root: Path, wnids: list[str]) -> list[tuple[Path, int]]:
    """(file, label) for every line `FILE<tab>WNID<tab>...` of the annotations."""
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise missing("the Tiny ImageNet validation labels", annotations, REMEDY)
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    files: list[tuple[Path, int]] = []
    for number, line in enumerate(_lines(annotations), start=1):
        name, wnid = [*line.split("\t"), "", ""][:2]
        if wnid not in label_of:
            raise DataError(
                f"expected FILE<tab>WNID with a class of wnids.txt in line {number} of {annotations}, "
                f"got {line!r}; {REMEDY}"
            )
        files.append((annotations.parent / "images" / name, label_of[wnid]))
    return files


def _lines(path: Path) -> list[str]:
    """The lines of a text file that hold anything, stripped."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _images(files: list[tuple[Path, int]], classes: int) -> Images:
    x = read_images([path for path, _ in files])
    return make_images(x, torch.tensor([label for _, label in files]), classes=classes, name="tiny-imagenet")


def _class_names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """`goldfish` for `n01443537<tab>goldfish, Carassius auratus`; the WNID itself if there are no words."""
    words = root / "words.txt"
    lines = _lines(words) if words.is_file() else []
    first = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    return tuple(first.get(wnid, wnid) for wnid in wnids)
