"""The recipe of a network that is quantised without training: what `qrobust ptq` is asked for, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import SOURCES
from ..errors import RecipeError
from ..models import names
from ..recipe import Recipe, made
from .folder import FLOAT, RunFolder
from .networks import recipe_of, taken_from

COUNTS: dict[str, Any] = {"evaluate": {"n"}, "export": {"suite_n"}, "attack": {"n"}}  # images, of a run's recipe
KEPT = dict.fromkeys(("model", "threat", "seed", "threads"), True)  # of it, whatever the images are
CHECKED = 100  # images that the file is attacked on


@dataclass(frozen=True)
class Request:
    """model: as a recipe's `model.name`, or a run, whose float network and images are taken, as many as it evaluates
    and attacks. weights: a file of the network's; "" for a factory that loads its own, or a run. data: a data set, an
    .npz file, or a folder of images by class; "" for the run's. root: where a data set lies. bits: widths. target: a
    deployment target.
    """

    model: str
    weights: str = ""
    data: str = ""
    root: str | None = None
    bits: Sequence[int] = (8,)
    target: str = "ort-cpu"


def recipe_for(asked: Request, overrides: Iterable[str] = (), *, name: str, quant: Mapping[str, Any]) -> Recipe:
    """A recipe that trains nothing: the float network as it is, each width made from it.

    name: of the recipe. quant: keys of its [quant]. Raises RecipeError for what no recipe can hold, RunError for a
    folder that is no run.
    """
    source = Path(asked.model)
    is_run = RunFolder(source).recipe.is_file()
    if source.is_dir() and asked.model not in names():
        RunFolder.expect(source)
    if is_run and asked.weights:
        raise RecipeError(f"expected no --weights with a run, got {asked.weights}; leave them out")
    if source.suffix == ".onnx":
        raise RecipeError(
            f"expected a network in torch or a run, got the file {asked.model}; give what it was written from, or make "
            "an artifact of it by qrobust export"
        )
    if not is_run and not asked.data:
        raise RecipeError(
            "expected --data, images to calibrate and to test on, got none; name a data set, an .npz file or a folder"
        )
    table: dict[str, Any] = _of_run(source, bool(asked.data)) if is_run else _of_model(asked)
    if asked.data:
        table["data"] = _images(asked.data, asked.root)
    table |= {
        "name": name,
        "bits": [FLOAT, *sorted(set(asked.bits) - {FLOAT}, reverse=True)],
        "train": {"epochs": 0},
        "quant": {"epochs": 0, "fat": "none", **quant},
        "export": {**table.get("export", {}), "target": asked.target},
        "attack": {"n": CHECKED, **table.get("attack", {})},
    }
    return made(table, overrides, source="ptq")


def _of_model(asked: Request) -> dict[str, Any]:
    weights = {"weights": str(Path(asked.weights).expanduser().absolute())} if asked.weights else {}
    return {"model": {"name": asked.model, **weights}, "threat": {"eps": "8/255"}}


def _of_run(folder: Path, other_images: bool) -> dict[str, Any]:
    """What is taken of a run; with other images than its own, nothing that is said of those."""
    found = taken_from(recipe_of(RunFolder.expect(folder)), folder)
    include = KEPT if other_images else KEPT | COUNTS | {"data": True}
    return found.model_dump(mode="json", exclude_none=True, include=include)


def _images(data: str, root: str | None) -> dict[str, Any]:
    """The table [data] that somebody means by a word."""
    path = Path(data).expanduser()
    if data not in SOURCES and (path.suffix == ".npz" or path.is_dir()):
        return {"name": "npz" if path.suffix == ".npz" else "folder", "root": str(path.absolute())}
    return {"name": data, **({} if root is None else {"root": root})}
