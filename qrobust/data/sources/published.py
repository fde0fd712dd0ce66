"""Published data sets: CIFAR-10 and CIFAR-100, Tiny ImageNet, and the digits that come with scikit-learn."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import DataError
from ...torchvision_cpu import import_torchvision
from ..images import Images, make_images
from .files import read_images
from .registry import Loaded, Settings, missing, root_of, source


@source("cifar10")
def cifar10(settings: Settings) -> Loaded:
    """60000 colour images of 32×32 pixels in ten classes, 10000 of them for testing.

    Looks for ROOT/cifar-10-batches-py and checks the md5 of every file. Raises DataError if it is not whole.
    Reference: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    return _load(settings, "CIFAR10")


@source("cifar100")
def cifar100(settings: Settings) -> Loaded:
    """As `cifar10`, with a hundred (fine) classes, in ROOT/cifar-100-python."""
    return _load(settings, "CIFAR100")


def _load(settings: Settings, kind: str) -> Loaded:
    reader = getattr(import_torchvision().datasets, kind)
    root = root_of(settings)
    train = _read(reader, root, train=True, download=settings.download)
    test = _read(reader, root, train=False, download=False)
    classes = tuple(train.classes)
    return Loaded(_cifar_images(train, kind, len(classes)), _cifar_images(test, kind, len(classes)), classes)


def _read(reader: Any, root: Path, *, train: bool, download: bool) -> Any:
    """torchvision's data set with `data` (n, 32, 32, 3), `targets` and `classes`."""
    try:
        with warnings.catch_warnings():
            # The official pickles, written in 2009, hold dtypes in a form that newer numpy warns of.
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            return reader(str(root), train=train, download=download)
    except RuntimeError as error:  # torchvision's word for a missing file and for a wrong md5
        raise _unusable(root / reader.base_folder, reader.__name__) from error
    except OSError as error:
        raise DataError(
            f"expected to read or fetch {reader.__name__} in {root}, got: {error}; "
            f"put the official files into {root / reader.base_folder} by hand"
        ) from error


def _unusable(folder: Path, kind: str) -> DataError:
    remedy = f"fetch them with -o data.download=true, or put the official {kind} files into {folder}"
    if not folder.is_dir():
        return missing(f"the {kind} files", folder, remedy)
    return DataError(f"expected the official {kind} files in {folder}, got some missing or altered; {remedy}")


def _cifar_images(read: Any, kind: str, classes: int) -> Images:
    # torchvision hands out a transposed view; undoing it costs no copy.
    x = torch.from_numpy(read.data.transpose(0, 3, 1, 2)).contiguous()
    return make_images(x, torch.tensor(read.targets), classes=classes, name=kind)


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
    return Loaded(_tiny_images(train, len(wnids)), _tiny_images(test, len(wnids)), _class_names(root, wnids))


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


def _tiny_images(files: list[tuple[Path, int]], classes: int) -> Images:
    x = read_images([path for path, _ in files])
    return make_images(x, torch.tensor([label for _, label in files]), classes=classes, name="tiny-imagenet")


def _class_names(root: Path, wnids: list[str]) -> tuple[str, ...]:
    """`goldfish` for `n01443537<tab>goldfish, Carassius auratus`; the WNID itself if there are no words."""
    words = root / "words.txt"
    lines = _lines(words) if words.is_file() else []
    first = {wnid: text.split(",")[0].strip() for wnid, _, text in (line.partition("\t") for line in lines)}
    return tuple(first.get(wnid, wnid) for wnid in wnids)
