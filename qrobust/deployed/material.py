"""What an attack on a file needs besides the file: images, and other files whose examples may transfer."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data import DataSettings, Images, load, make_images
from ..errors import DataError, RecipeError, RunError
from .serving import Deployed, open_deployed

REMEDY = "write it by np.savez(FILE, x=..., y=...), x uint8 (n, c, h, w) and y integers (n,)"
FLOAT = "qm-32"
SUITE = "the suite"  # name of an artifact's own images


def find_images(deployed: Deployed, data: str = "", root: str | None = None) -> Images:
    """The clean images of an artifact's suite; or, by `data`, those of an .npz file, or a data set's for testing.

    root: where that data set lies. Raises RecipeError where no images are named, DataError for damaged ones and
    for labels that the file has no class for.
    """
    if data and not data.endswith(".npz"):
        found = load(DataSettings(data, root=root)).test
        x, y = None, found.y
    elif data:
        x, y = _arrays(Path(data))
    elif deployed.artifact is not None:
        x, y = (torch.from_numpy(deployed.artifact.suite[name]) for name in ("x.clean", "y"))
    else:
        raise RecipeError(f"expected images for {deployed.path.name}, got none; add --data FILE.npz or a data set")
    classes, count = deployed.twin.plan.classes, int(y.max()) + 1 if len(y) else 1
    if classes is not None and count > classes:
        raise DataError(f"expected labels in [0, {classes - 1}], got {count - 1}; give images of the file's classes")
    return found if x is None else make_images(x, y, classes=max(count, 1), name=data or SUITE)


def _arrays(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            x, y = file["x"], file["y"]
        if not np.issubdtype(y.dtype, np.integer):
            raise ValueError(f"labels of {y.dtype}")
        return torch.from_numpy(x), torch.from_numpy(y.astype(np.int64))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"expected arrays x and y in {path}, got: {error}; {REMEDY}") from error


def find_sources(deployed: Deployed, named: Sequence[Path] = ()) -> tuple[Deployed, ...]:
    """Files to transfer from: those named (artifacts, ONNX files, runs), or the float network beside an artifact.

    The float network comes first. Raises RunError for a folder without artifacts, RecipeError for a file of other
    images or classes.
    """
    paths = [path for one in named for path in _artifacts(one)] if named else _beside(deployed)
    opened = {source.sha256: source for source in map(open_deployed, paths) if source.sha256 != deployed.sha256}
    for source in opened.values():
        ours, theirs = _task(deployed), _task(source)
        if ours != theirs:
            raise RecipeError(f"expected a source for images and classes {ours}, got {source.name} for {theirs}")
    return tuple(sorted(opened.values(), key=lambda source: bool(source.forms[1:])))


def _artifacts(path: Path) -> list[Path]:
    """The artifact that a path is or holds, or those of a run's widths."""
    if path.is_file() or (path / "manifest.json").is_file():
        return [path]
    found = [
        one.parent for one in sorted((*path.glob("artifact/manifest.json"), *path.glob("qm-*/artifact/manifest.json")))
    ]
    if not found:
        raise RunError(f"expected an artifact or a run with artifacts, got {path}; export one by qrobust export RUN")
    return found


def _beside(deployed: Deployed) -> list[Path]:
    """The float artifact of the same run, or of the same export."""
    if deployed.artifact is None:
        return []
    folder = deployed.artifact.path.resolve()
    candidates = (folder.parent.parent / FLOAT / folder.name, folder.parent / FLOAT)
    return [path for path in candidates if (path / "manifest.json").is_file()][:1]


def _task(deployed: Deployed) -> tuple[Any, ...]:
    """Shape (c, h, w) of an image, and the number of classes."""
    shape = deployed.twin.plan.images.shape[1:]
    return (*(shape[2:] + shape[:2] if deployed.camera else shape), deployed.twin.plan.classes)
