"""What a source is, and the table of all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from ..images import Images
from ..settings import DEFAULT_ROOT, Settings


class Loaded(NamedTuple):
    """What a source returns: all its images, and the names of its classes."""

    train: Images
    test: Images
    classes: tuple[str, ...]


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


def root_of(settings: Settings) -> Path:
    """The folder (or file) that the settings point to, `~` expanded."""
    return Path(settings.root or DEFAULT_ROOT).expanduser()


def missing(what: str, where: Path, remedy: str) -> DataError:
    """The error for data that is not there: what was looked for, where, and how to get it."""
    return DataError(f"expected {what} at {where}, got none; {remedy}")
