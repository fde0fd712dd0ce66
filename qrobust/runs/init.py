"""A recipe for a folder of one's own images: what lies there is looked at, and what follows from it is said.

The recipe is a beginning: small enough to end within the hour, and any line of it may be changed.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w
import torch
from PIL import Image, ImageOps

from .. import devices, models, recipe
from ..data.sources.folder import _files
from ..errors import MOST_NAMES, DataError, RunError
from ..export.target import load_target
from ..progress import bar
from ..runtime import images_needed
from ..storage import write_text
from .preflight import check_recipe

REMEDY = "lay the files out as FOLDER/train/CLASS/* and FOLDER/test/CLASS/*, or as FOLDER/CLASS/*"
TARGET = "ort-cpu"
SIDES = (224, 192, 160, 128, 96, 64, 48, 32, 24, 16, 8)  # pixels
MINUTES = 30  # of training the float network
WIDTHS = (32, 8, 4)
MOST_TESTED = 1000  # images; an attack on more tells little more
SHARES = (0.2, 0.3, 0.4, 0.5)  # of training images, for testing
GREY = {"1", "L", "LA", "La", "I", "F"}


@dataclass
class Part:
    """What lies in one folder of classes: readable files by class, how many have which (height, width)."""

    counts: dict[str, int]
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    grey: int = 0
    broken: list[Path] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Readable images."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class Found:
    """What lies in a folder. test: None where nothing is set apart for testing."""

    root: Path
    train: Part
    test: Part | None

    @property
    def parts(self) -> list[Part]:
        """Those that are there."""
        return [part for part in (self.train, self.test) if part is not None]


def look(root: Path) -> Found:
    """Open every image of ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val), or of ROOT/CLASS/*.

    Raises DataError where there are no images in two folders or more.
    """
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    train = root / "train" if test is not None or (root / "train").is_dir() else root
    return Found(root, _part(train), None if test is None else _part(test))


def _part(folder: Path) -> Part:
    names = [entry.name for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]
    files = {name: found for name in sorted(names) if (found := _files(folder / name))}
    every = [(name, path) for name, found in files.items() for path in found]
    part = Part(dict.fromkeys(files, 0))
    with ThreadPoolExecutor() as pool, bar(f"look at {folder}", len(every), "images") as moving:
        for (name, path), seen in zip(every, pool.map(_look_at, [path for _, path in every]), strict=True):
            moving.advance()
            if seen is None:
                part.broken.append(path)
                continue
            part.counts[name] += 1
            part.sizes[seen[0]] += 1
            part.grey += seen[1]
    part.counts = {name: count for name, count in part.counts.items() if count}
    if len(part.counts) < 2:
        raise DataError(
            f"expected images in two folders or more, a class each, in {folder}, got {len(part.counts)}; {REMEDY}"
        )
    return part


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"expected a folder of images at {folder}, got: {error.strerror}; {REMEDY}") from error


def _look_at(path: Path) -> tuple[tuple[int, int], bool] | None:
    """(height, width) as it is seen upright, and whether it is grey; None for a file that is no whole image."""
    try:
        with Image.open(path) as file:
            grey = file.mode in GREY or file.mode.startswith("I;16")
            width, height = ImageOps.exif_transpose(file).size  # this decodes it
    except Exception:  # what a damaged file makes Pillow's decoders raise is of many kinds
        return None
    return (height, width), grey


class Plan:
    """The tables of a recipe, and why each is as it is."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self.reasons: list[str] = []
        self.gpu = devices.device().type != "cpu"
        self.data: dict[str, Any] = {"name": "folder", "root": str(found.root.resolve())}

    def table(self) -> dict[str, Any]:
        """The whole recipe."""
        self._say_images()
        shape = self._shape()
        tested = self._tested()
        name, options = self._network(min(shape))
        eps = "4/255" if min(shape) > 64 else "8/255"
        self._because(f"eps = {eps}", "usual for images of this size")
        self.data |= {"crop": max(1, min(shape) // 8), "flip": True}
        epochs, steps = self._epochs(name, options, shape)
        attack: dict[str, Any] = {"kind": "pgd", "steps": steps} if self.gpu else {"kind": "n-fgsm"}
        later = max(2, epochs // 4)
        return {
            "bits": list(WIDTHS),
            "data": self.data,
            "model": {"name": name, **options},
            "threat": {"eps": eps},
            "train": {"epochs": epochs, "batch_size": self._batch(), "lr": 0.05, "shape": "cosine", "attack": attack},
            "quant": {"epochs": later, "batch_size": self._batch(), "lr": 0.01, "shape": "cosine"},
            **({"evaluate": {"n": MOST_TESTED}} if tested > MOST_TESTED else {}),
            "export": {"target": TARGET},
            "attack": {"n": min(tested, 100)},
        }

    def _because(self, what: str, why: str) -> None:
        self.reasons.append(f"{what}: {why}")

    def _say_images(self) -> None:
        train, parts = self.found.train, self.found.parts
        fewest = min(train.counts, key=lambda name: train.counts[name])
        grey, total = (sum(values) for values in zip(*((part.grey, part.total) for part in parts), strict=True))
        colour = "colour" if not grey else "greyscale" if grey == total else f"{grey} of {total} greyscale"
        self._because(
            f"{train.total} images for training, {len(train.counts)} classes",
            f"{colour}{', taken as colour' if grey else ''}; fewest of {fewest!r}, {train.counts[fewest]}",
        )
        if broken := [path for part in parts for path in part.broken]:
            self.data["skip_unreadable"] = True
            names = ", ".join(str(path.relative_to(self.found.root)) for path in broken[:MOST_NAMES])
            self._because("skip_unreadable = true", f"cannot read {len(broken)}: {names}")

    def _shape(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        sizes = sum((part.sizes for part in self.found.parts), Counter[tuple[int, int]]())
        height, width = next(iter(sizes)) if len(sizes) == 1 else _typical(sizes)
        most = SIDES[0] if self.gpu else 64
        if len(sizes) == 1 and min(height, width) <= most:
            self._because(f"images of {height}x{width}", "all have this size, which is kept")
            return height, width
        side = next((side for side in SIDES if side <= min(height, width, most)), SIDES[-1])
        ratio = height / width
        shape = (side, _even(side / ratio)) if ratio < 1 else (_even(side * ratio), side)
        if 4 / 5 <= ratio <= 5 / 4:
            shape = (side, side)
        self.data["size"] = side if shape == (side, side) else list(shape)
        kind = f"{len(sizes)} sizes" if len(sizes) > 1 else f"all of {height}x{width}"
        limit = "" if min(height, width) < most else f", as large as a {'GPU' if self.gpu else 'CPU'} trains in time"
        self._because(f"size = {self.data['size']}", f"{kind}, typical {height}x{width}{limit}")
        return shape

    def _tested(self) -> int:
        """How many images are tested. Raises DataError if too few can be."""
        target, test = load_target(TARGET), self.found.test
        stated, attacks = target.statistics, len(recipe.Export().suite_attacks)
        needed = images_needed(
            stated.detected_drop, target.limits.robust_drop, 0.0, stated.alpha / attacks, stated.power
        )  # fmt: skip
        if test is not None:
            self._because(f"{test.total} images for testing", "those of their own folder")
            count = test.total
        else:
            shares = {share: _drawn(self.found.train, share) for share in SHARES}
            share = next((share for share, count in shares.items() if count >= needed), SHARES[-1])
            count, self.data["test_share"] = shares[share], share
            self._because(
                f"test_share = {share}", f"no folder for testing, so {count} of the training images are set aside"
            )
        if count < needed:
            raise DataError(
                f"expected {needed} images or more for testing, for a check to detect a drop of "
                f"{stated.detected_drop:.0%}, got {count} in {self.found.root}; add images, or write a recipe whose "
                "export.target is one of your own with a larger statistics.detected_drop"
            )
        return count

    def _network(self, side: int) -> tuple[str, dict[str, Any]]:
        classes, options = len(self.found.train.counts), {}
        if self.gpu:
            name = "resnet18"
            options = {"stem": "imagenet"} if side > 64 else {}
        else:
            name = "resnet8" if side <= 32 and classes <= 20 else "resnet20"
        where = "on a GPU" if self.gpu else "on a CPU"
        self._because(f"model = {name}", f"for {side} pixels and {classes} classes {where}")
        return name, options

    def _batch(self) -> int:
        return min(128 if self.gpu else 64, max(8, self.found.train.total // 16))

    def _epochs(self, name: str, options: dict[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
        """Epochs of the float network within `MINUTES`, and the steps of its attack."""
        steps = 7 if self.gpu else 1
        model = models.build(name, in_channels=3, classes=len(self.found.train.counts), **options)
        one = _seconds(model, shape) * (steps + 1) * self.found.train.total
        epochs = int(min(100 if self.gpu else 60, max(6, MINUTES * 60 / one)))
        few = ", more than planned, but fewer epochs teach little" if epochs * one > MINUTES * 60 + one else ""
        self._because(f"epochs = {epochs}", f"{epochs * one / 60:.1f} min for the float network, as tried here{few}")
        return epochs, steps


def _typical(sizes: Counter[tuple[int, int]]) -> tuple[int, int]:
    """The middle height and width."""
    heights, widths = zip(*sizes.elements(), strict=True)
    return round(median(heights)), round(median(widths))


def _even(side: float) -> int:
    """A multiple of 8 pixels, which strides divide."""
    return max(8, round(side / 8) * 8)


def _drawn(train: Part, share: float) -> int:
    """How many images a share of the training images gives: each class within one."""
    return int(sum(count * share for count in train.counts.values() if count > 1) + 0.5)


def _seconds(model: torch.nn.Module, shape: Sequence[int]) -> float:
    """Of one image through a network and back, tried on a batch here."""
    model, x = devices.on_device(model), torch.rand(16, 3, *shape, device=devices.device())
    spent = []
    for _ in range(3):
        started = time.perf_counter()
        model(x).square().sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return min(spent) / len(x)


def init(root: Path, out: Path | None = None) -> tuple[Path, list[str]]:
    """Write a recipe for the images of a folder; returns its path, and why it is as it is, a line each.

    out: None for NAME.toml where one stands, NAME that of the folder. Raises DataError for a folder that is not of
    images by class or has too few, RunError for a file that is there.
    """
    root = root.expanduser()
    place = out or Path(f"{_name(root)}.toml")
    if place.exists():
        raise RunError(f"expected no file at {place}, got one; give another --out, or remove it")
    if place.suffix != ".toml":
        raise RunError(f"expected --out to end in .toml, got {place}; rename it")
    plan = Plan(look(root))
    table = plan.table()
    parsed = recipe.parse({"name": place.stem, **table}, source=str(place))
    check_recipe(parsed, load_target(TARGET))
    comments = "".join(f"# {line}\n" for line in plan.reasons)
    write_text(place, f"{comments}\n{tomli_w.dumps(table)}")
    return place, plan.reasons


def _name(root: Path) -> str:
    return re.sub(r"[^\w-]+", "-", root.resolve().name).strip("-") or "images"
