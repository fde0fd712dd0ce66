"""Images as users have them at hand: arrays, tensors, lists, torch's data sets and loaders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset

from ..errors import DataError
from .images import Images, Mapped, make_images, to_unit

ROUNDING = 1e-6  # what resizing in float32 leaves beyond [0, 1]
BATCH = 256
DEEP = ("PNG", "PPM")  # formats whose integers Pillow may hold in 32 bits, though they are of 16
AT_REST = (torch.uint8, torch.int64)  # types of pixels and labels
Given = Images | tuple[Any, Any] | list[Any] | DataLoader[Any] | TorchDataset[Any]
WANTED = "give Images, a pair (x, y), or a DataLoader of such pairs"


def as_images(given: object, *, name: str = "images") -> Images:
    """Images of `Images`, of a pair (x, y), or of torch's Dataset or DataLoader that gives such pairs.

    x: (n, c, h, w), uint8, or floats in [0,1], which are rounded to 8 bits, as a camera hands them over. y: (n,), of
    any integer type. Both may be tensors, arrays or lists, and images of a Dataset pictures (PIL), which become colour.
    name: what to call them in an error. Raises DataError for anything else.
    """
    if isinstance(given, Mapped) or (isinstance(given, Images) and (given.x.dtype, given.y.dtype) == AT_REST):
        return given
    x, y = (given.x, given.y) if isinstance(given, Images) else _pair(given, name)
    pixels, labels = _pixels(_tensor(x, name), name), _labels(_tensor(y, f"labels of {name}"), name)
    return make_images(pixels, labels, classes=int(labels.max()) + 1 if labels.numel() else 1, name=name)


def image_batches(given: object) -> Iterator[Tensor]:
    """Batches of images alone, float32 (n, c, h, w) in [0,1].

    given: as `as_images`, a tensor (n, c, h, w), or batches with or without labels. Of uint8, or floats, whose type
    and range are for who reads them to judge.
    """
    if isinstance(given, Images):
        yield from (to_unit(batch.x, batch.x.device) for batch in given.batches(BATCH))
        return
    if isinstance(given, (tuple, list)) and len(given) == 2 and are_labels(given[1]):
        given = given[0]
    if isinstance(given, (Tensor, np.ndarray)):
        given = [given]
    elif isinstance(given, TorchDataset):
        given = _batches(given)
    if not isinstance(given, Iterable):
        raise DataError(f"expected batches of images, got {type(given).__name__}; {WANTED}")
    for batch in given:
        x = _tensor(batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch, "images")
        yield to_unit(x, x.device) if x.dtype == torch.uint8 else x


def picture(image: Image.Image, place: object = "a picture") -> Tensor:
    """A picture as uint8 (3, h, w). place: its name in an error. Raises DataError for pixels of no known range."""
    return torch.from_numpy(np.asarray(colour(image, image.format, place), dtype=np.uint8).transpose(2, 0, 1).copy())


def colour(image: Image.Image, kind: str | None, path: object) -> Image.Image:
    """RGB of 8 bits a channel. kind: the file's format. path: its place in an error."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in DEEP):
        image = _from_unit(np.asarray(image) / 65535)
    elif image.mode == "F":
        image = _from_unit(_in_range(np.asarray(image), path))
    elif image.mode == "I":
        raise DataError(
            f"expected 8 or 16 bits a pixel, got 32-bit integers of no known range at {path}; convert it to 16 bits"
        )
    elif image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return image.convert("RGB")


def _from_unit(values: NDArray[np.floating[Any]]) -> Image.Image:
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _in_range(values: NDArray[np.float32], path: object) -> NDArray[np.float32]:
    if not ((values >= 0) & (values <= 1)).all():  # NaN is not
        raise DataError(
            f"expected float pixels in [0, 1], got [{values.min():g}, {values.max():g}] at {path}; scale them"
        )
    return values


def _batches(dataset: TorchDataset[Any]) -> DataLoader[Any]:
    """Its items in batches, pictures among them as tensors."""
    return DataLoader(dataset, BATCH, collate_fn=_collated)


def _collated(items: list[Any]) -> Any:
    return default_collate([_tensors(item) for item in items])


def _tensors(item: Any) -> Any:
    if isinstance(item, Image.Image):
        return picture(item)
    return type(item)(map(_tensors, item)) if type(item) in (tuple, list) else item


def _pair(given: object, name: str) -> tuple[Any, Any]:
    if isinstance(given, TorchDataset):
        given = _batches(given)
    if isinstance(given, DataLoader):
        return _collected(given, name)
    if isinstance(given, (tuple, list)) and len(given) == 2:
        return given[0], given[1]
    raise DataError(f"expected {name}, got {type(given).__name__}; {WANTED}")


def _collected(loader: DataLoader[Any], name: str) -> tuple[Tensor, Tensor]:
    parts: list[tuple[Tensor, Tensor]] = []
    try:
        for batch in loader:
            x, y = batch
            parts.append((_pixels(_tensor(x, name), name), _labels(_tensor(y, f"labels of {name}"), name)))
        if not parts:
            raise ValueError("no batch")
        x, y = (torch.cat(some) for some in zip(*parts, strict=True))
    except (TypeError, ValueError, RuntimeError) as error:  # a collation's, of images that are no tensors or not alike
        stated = str(error).partition("\n")[0]
        raise DataError(f"expected a DataLoader of pairs (x, y) of tensors, got: {stated}; {WANTED}") from error
    return x, y


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        array = np.asarray(value)
        # Labels of types that torch has no use for; pixels have none of these.
        return torch.tensor(array.astype(np.int64) if array.dtype.kind in "iu" and array.itemsize > 1 else array)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected {name} as numbers of one shape, got: {error}; {WANTED}") from error


def _pixels(x: Tensor, name: str) -> Tensor:
    """uint8; what is no image is left for `make_images` to refuse."""
    if not x.is_floating_point() or not x.numel():
        return x
    low, high = float(x.min()), float(x.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also true for NaN
        raise DataError(
            f"expected {name} in [0, 1] or as uint8, got [{low:.7g}, {high:.7g}]; "
            "pass unnormalised images, normalisation belongs inside the model"
        )
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def are_labels(value: object) -> bool:
    """Whether it has one dimension, as no images have."""
    if isinstance(value, (tuple, list)):
        return all(isinstance(one, int) for one in value)
    return getattr(value, "ndim", 0) == 1


def _labels(y: Tensor, name: str) -> Tensor:
    if y.is_floating_point() or y.is_complex():
        raise DataError(f"expected labels of {name} as whole numbers, got {y.dtype}; convert them by y.long()")
    return y.long()
