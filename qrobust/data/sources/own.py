"""Images that a function of the user's own returns: arrays, tensors, torch's data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ... import devices
from ...errors import MOST_NAMES, DataError, QrobustError, shown
from ...progress import note
from ...resources import named_factory, place_in
from ..given import are_labels, as_images, picture
from ..images import Images, check_labels
from .registry import Loaded, Settings, Size, height_width

WANTED = (
    "return (train, test), each a pair (x, y) with labels y (n,), a Dataset, a DataLoader or Images; or train alone"
)
PARTS = {1: ("training",), 2: ("training", "test"), 3: ("training", "validation", "test")}


def own(settings: Settings) -> Loaded:
    """What the function that `settings.name` names returns when it is called with `settings.options`.

    One part (training), two (training, test) or three (training, validation, test), each as `as_images` takes it: a
    pair (x, y), torch's Dataset or DataLoader, or Images. Items of a Dataset may be pictures (PIL), which become
    colour, and of several sizes if `settings.size` is given. Names of classes are those in an attribute `classes` of
    the training part, or numbers. Raises DataError for anything else, and for labels that do not fit.
    """
    with devices.own_randomness():
        torch.manual_seed(settings.seed)  # what torch draws there, as a loader's order, is the same in every process
        parts = _parts(_called(settings.name, dict(settings.options)), settings.name)
        images = {
            what: _images(part, settings.size, f"{what} images of {settings.name}")
            for what, part in zip(PARTS[len(parts)], parts, strict=True)
        }
    classes = _classes(parts[0], images["training"])
    for what, some in images.items():
        check_labels(some.y, len(some), len(classes), f"{what} images of {settings.name}")
    return Loaded(images["training"], images.get("test"), classes, images.get("validation"))


def _called(name: str, options: dict[str, Any]) -> Any:
    factory = named_factory(name, Path.cwd())
    try:
        return factory(**options)
    except QrobustError:
        raise
    except (Exception, SystemExit) as error:  # whatever is raised by what is not ours
        given = f" with {', '.join(options)}" if options else ""
        place = place_in(Path(name.rpartition(":")[0]).absolute(), error)
        raise DataError(
            f"expected images of {name}{given}, it raised {type(error).__name__}{place}: {error}; mend it, or its "
            "options, which are the further keys of the table data"
        ) from error


def _parts(found: Any, name: str) -> Sequence[Any]:
    """Training images, then validation images if there are three, then test images."""
    if not isinstance(found, (tuple, list)) or (len(found) == 2 and are_labels(found[1])):
        return [found]
    if len(found) not in PARTS:
        raise DataError(f"expected one to three parts of {name}, got {len(found)}; {WANTED}")
    return found


def _images(part: Any, size: Size | None, name: str) -> Images:
    try:
        if isinstance(part, TorchDataset):
            part = _of_dataset(part, size, name)
        elif not isinstance(part, (Images, DataLoader, tuple, list)):
            raise DataError(f"expected {name}, got {shown(type(part))}; {WANTED}")
        images = as_images(part, name=name)
    except QrobustError:
        raise
    except (Exception, SystemExit) as error:  # as in the factory
        raise DataError(f"expected {name}, reading them raised {type(error).__name__}: {error}; mend it") from error
    return images if size is None else Images(_resized(images.x, size), images.y)


def _of_dataset(dataset: TorchDataset[Any], size: Size | None, name: str) -> tuple[Tensor, Tensor]:
    """All its items as one pair (x, y)."""
    count = len(dataset) if isinstance(dataset, Sized) else None
    items: Any = dataset if count is None else (dataset[position] for position in range(count))
    pixels, labels = [], []
    for item in items:
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"expected pairs (x, y) from {name}, got {shown(type(item))}; return both, an image first")
        x = _pixels(item[0], name)
        pixels.append(x if size is None else _resized(x[None], size)[0])
        labels.append(item[1])
    if not pixels:
        raise DataError(f"expected at least one image in {name}, got none; give some")
    return torch.stack(_alike(pixels, name)), torch.as_tensor(np.asarray(labels))


def _pixels(value: Any, name: str) -> Tensor:
    """One image, uint8 (c, h, w)."""
    if isinstance(value, Image.Image):
        return picture(value, name)
    one = torch.as_tensor(value)
    return as_images((one[None], torch.zeros(1, dtype=torch.int64)), name=name).x[0]


def _alike(pixels: list[Tensor], name: str) -> list[Tensor]:
    """Grey images beside images of three channels become such. Raises DataError for several sizes."""
    shapes = {tuple(x.shape) for x in pixels}
    if {channels for channels, *_ in shapes} == {1, 3}:
        grey = sum(len(x) == 1 for x in pixels)
        note(f"{name}: {grey} of {len(pixels)} are grey and become colour")
        pixels = [x.expand(3, -1, -1) for x in pixels]
        shapes = {tuple(x.shape) for x in pixels}
    if len(shapes) > 1:
        raise DataError(
            f"expected {name} of one shape (c, h, w), got {', '.join(map(str, sorted(shapes)[:MOST_NAMES]))}; give all "
            "one size, or set one with -o data.size=PIXELS"
        )
    return pixels


def _resized(x: Tensor, size: Size) -> Tensor:
    """Of every image the largest centred part of the proportions of `size`, resized to it: uint8 (n, c, *size)."""
    height, width = height_width(size)
    if x.shape[2:] == (height, width):
        return x
    scale = min(x.shape[2] / height, x.shape[3] / width)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (x.shape[2] - tall) // 2, (x.shape[3] - wide) // 2
    part = x[:, :, top : top + tall, left : left + wide].float()
    resized = F.interpolate(part, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _classes(part: Any, images: Images) -> tuple[str, ...]:
    """The names that a data set has for its classes, or one that it is a part of; else numbers up to the last."""
    holder = part
    while getattr(holder, "classes", None) is None and getattr(holder, "dataset", None) is not None:
        holder = holder.dataset  # of a Subset or a DataLoader
    named = getattr(holder, "classes", None)
    if named is None:
        return tuple(str(label) for label in range(int(images.y.max()) + 1))
    if isinstance(named, str) or not isinstance(named, Iterable):
        raise DataError(f"expected classes as a list of names, got {shown(named)}; give one name a class")
    return tuple(str(name) for name in named)
