"""Importing PyPI's torchvision beside a torch that has no CUDA build.

PyPI's Linux torchvision is built for CUDA. Its compiled library cannot be loaded where torch is CPU-only, so
the operators `torchvision::nms` and `torchvision::qnms` do not exist. Its Python code registers shapes for
them nevertheless, and the import dies with `operator torchvision::nms does not exist`. Declaring the two
schemas first lets it through: data sets, models and transforms work; calling the two operators still fails.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# A Library withdraws its operators when it is collected, so it must live as long as the process.
_kept: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, imported so that it also works with a CPU-only torch.

    May be called any number of times; changes nothing where torch has CUDA or the operators exist already.
    Raises ImportError if torchvision is not installed.

    >>> import_torchvision().datasets.CIFAR10.base_folder
    'cifar-10-batches-py'
    """
    declare_operators()
    return importlib.import_module("torchvision")


def declare_operators() -> None:
    """What torchvision's import asks for, where its library cannot give it; for code that imports it."""
    if torch.version.cuda is None and not _operators_exist() and not _library_loads():
        _declare()


def _operators_exist() -> bool:
    return hasattr(torch.ops.torchvision, "nms")


def _library_loads() -> bool:
    """Whether torchvision's own compiled library can be loaded, which is so for a matching CPU pair.

    Asked before declaring anything: a library that loads declares the operators itself, and a second
    declaration ends the process.
    """
    library = _library_path()
    if library is None:
        return False
    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _library_path() -> Path | None:
    spec = importlib.util.find_spec("torchvision")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or []]
    names = [f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    return next((folder / name for folder in folders for name in names if (folder / name).exists()), None)


def _declare() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)  # type: ignore[no-untyped-call]
    _kept.append(library)
