"""Where images come from: one function per source, found by name in `SOURCES`."""

from . import folder, npz, own, published, spectral_shapes
from .registry import SOURCES, Loaded, Source, source

__all__ = [
    "SOURCES",
    "Loaded",
    "Source",
    "folder",
    "npz",
    "own",
    "published",
    "source",
    "spectral_shapes",
]
