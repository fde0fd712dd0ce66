"""What a source is, the settings it reads, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ...errors import DataError
from ..images import Images

DEFAULT_ROOT = "data"
Size = int | tuple[int, int]  # pixels of a side, or height and width


class Settings(Protocol):
    """Anything with these attributes can be loaded: `DataSettings`, or the data table of a recipe."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> str | None: ...
    @property
    def download(self) -> bool: ...
    @property
    def train_size(self) -> int | None: ...
    @property
    def test_size(self) -> int | None: ...
    @property
    def validation(self) -> float: ...
    @property
    def size(self) -> Size | None: ...
    @property
    def cache(self) -> str | None: ...
    @property
    def texture(self) -> float | None: ...
    @property
    def test_share(self) -> float | None: ...
    @property
    def skip_unreadable(self) -> bool: ...
    @property
    def options(self) -> Mapping[str, Any]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class DataSettings:
    """Which images to use, and how many.

    name: `digits`, `spectral-shapes`, `cifar10`, `cifar100`, `tiny-imagenet`, `folder` or `npz`; or your own factory,
        `FILE.py:NAME` or `package.module:NAME`, as `sources.own` calls it.
    root: the folder that holds the data set (`npz`: the file); None means `data`.
    download: whether missing files may be fetched (`cifar10`, `cifar100`).
    train_size: images to take for training **and** validation together, at random; None takes all.
    test_size: images to take for testing, at random; a smaller number gives a subset of a larger one.
    validation: share in [0, 0.5] of the training images that is set aside; each class within one image of it.
    size: (height, width) in pixels, or the side of a square, that images are resized and cropped to (`folder` and your
        own factory): of each its largest centred part of these proportions.
    cache: the folder that keeps the images decoded, in files that are mapped (`folder` only); None holds them in
        memory. It changes no pixel and no result.
    texture: share in [0, 1] of the images whose texture is of their class (`spectral-shapes` only); None means 0.8.
    test_share: share in (0, 0.5] of the training images that is set aside for testing where a source has no images for
        it, each class within one image of it, the same for every seed; None means 0.2.
    skip_unreadable: whether files that are no whole images are left out (`folder` only), or refused.
    options: what your own factory takes.
    seed: of the random subsets and of the split, and of images that are drawn (`spectral-shapes`).

    >>> DataSettings("digits", validation=0.1).seed
    0
    """

    name: str
    root: str | None = DEFAULT_ROOT
    download: bool = False
    train_size: int | None = None
    test_size: int | None = None
    validation: float = 0.0
    size: Size | None = None
    cache: str | None = None
    texture: float | None = None
    test_share: float | None = None
    skip_unreadable: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


def check_settings(settings: Settings) -> None:
    """Raises DataError for a share, a number or a seed out of range, or a key that the data set has no use for."""
    if not 0 <= settings.validation <= 0.5:
        raise DataError(
            f"expected validation in [0, 0.5], got {settings.validation:g}; give the share set aside, as 0.1"
        )
    if settings.test_share is not None and not 0 < settings.test_share <= 0.5:
        raise DataError(f"expected test_share in (0, 0.5], got {settings.test_share:g}; give a share, as 0.2")
    for key in ("train_size", "test_size", "size"):
        value = getattr(settings, key)
        if value is not None and min(value if isinstance(value, tuple) else (value,)) < 1:
            raise DataError(f"expected {key} of at least 1, got {value}; leave it out to take what is there")
    _check_use(settings)
    if not 0 <= settings.seed < 2**63:
        raise DataError(f"expected a seed in [0, 2^63), got {settings.seed}; choose another")


def _check_use(settings: Settings) -> None:
    """Raises DataError for a key that the data set has no use for."""
    if settings.size is not None and settings.name != "folder" and not is_own(settings.name):
        raise DataError(f"expected no size for {settings.name}, whose images have one, got {settings.size}; remove it")
    if settings.skip_unreadable and settings.name != "folder":
        raise DataError(f"expected no skip_unreadable for {settings.name}, which is no folder of files; remove it")
    if settings.options and not is_own(settings.name):
        raise DataError(
            f"expected no options for {settings.name}, which is no factory of yours, got "
            f"{next(iter(settings.options))!r}; remove it"
        )
    if settings.cache is not None and settings.name != "folder":
        raise DataError(
            f"expected no cache for {settings.name}, whose images are held in memory, got {settings.cache!r}; remove it"
        )
    if settings.texture is not None:
        _check_texture(settings.name, settings.texture)


def _check_texture(name: str, texture: float) -> None:
    if name != "spectral-shapes":
        raise DataError(f"expected no texture for {name}, whose images are not drawn, got {texture:g}; remove it")
    if not 0 <= texture <= 1:
        raise DataError(f"expected texture in [0, 1], got {texture:g}; give a share of the images, as 0.8")


class Loaded(NamedTuple):
    """What a source returns: all its images, and the names of its classes.

    test, validation: None where it has none, and they are drawn from `train`. skipped: files that were left out.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    validation: Images | None = None
    skipped: tuple[str, ...] = ()


Source = Callable[[Settings], Loaded]

SOURCES: dict[str, Source] = {}


def source(name: str) -> Callable[[Source], Source]:
    """Decorator that makes a function the source of this name.

    >>> @source("two-pixels")
    ... def two_pixels(settings: Settings) -> Loaded: ...
    """

    def register(function: Source) -> Source:
        SOURCES[name] = function
        return function

    return register


def is_own(name: str) -> bool:
    """Whether a name is of a user's own factory, FILE.py:NAME or package.module:NAME."""
    return ":" in name


def height_width(size: Size) -> tuple[int, int]:
    """Both sides in pixels."""
    return size if isinstance(size, tuple) else (size, size)


def root_of(settings: Settings) -> Path:
    """The folder (or file) that the settings point to, `~` expanded."""
    return Path(settings.root or DEFAULT_ROOT).expanduser()


def missing(what: str, where: Path, remedy: str) -> DataError:
    """The error for data that is not there: what was looked for, where, and how to get it."""
    return DataError(f"expected {what} at {where}, got none; {remedy}")
