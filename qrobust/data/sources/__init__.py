"""Where images come from: one function per source, found by name in `SOURCES`."""

from . import cifar, digits, folder, npz, spectral_shapes, tiny_imagenet
from .registry import SOURCES, Loaded, Source, source

__all__ = [
    "SOURCES",
    "Loaded",
    "Source",
    "cifar",
    "digits",
    "folder",
    "npz",
    "source",
    "spectral_shapes",
    "tiny_imagenet",
]
