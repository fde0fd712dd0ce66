"""An artifact without its run, somebody's file too, as what a page shows: what its manifest and its suite say.

A check and an attack of this very file are read from JSONs beside it, A.check.json and A.attack.json, or where a run
keeps them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..recipe import Recipe, made
from ..runs.folder import NetworkFolder, judged
from ..runtime import Artifact, served
from .collect import Attacked, Checked, Collected, Evaluation, Record, Result, Width, expect, read
from .pictures import examples


def is_artifact(folder: Path) -> bool:
    """Whether a folder is an artifact, and no run. One of the zoo holds a recipe too."""
    return (folder / "manifest.json").is_file()


def place_of(folder: Path) -> Path:
    """Where the page of an artifact goes: beside it, which holds what its manifest lists."""
    return folder.absolute().with_name(f"{folder.absolute().name}.html")


def collect_artifact(folder: Path) -> Collected:
    """Read an artifact. Raises ArtifactError for one that is damaged, RunError for results that cannot be shown."""
    artifact, place = Artifact.load(folder), folder.absolute()
    manifest, own = artifact.manifest, NetworkFolder(place.parent.parent, artifact.manifest["bits"])
    sha256, measured = manifest["files"][served(manifest)]["sha256"], manifest["metrics"]["before"]
    given = "source" in manifest  # then the file itself was measured before it was stored
    if measured:
        expect(Attacked if given else Evaluation, measured, folder / "manifest.json")
    beside = [place.with_name(f"{place.name}.{name}.json") for name in ("check", "attack")]
    checked = _of(sha256, [beside[0], own.check], Checked)
    attacked = _of(sha256, [beside[1], own.attack], Attacked)
    if given and attacked is None:
        attacked = measured | {"gap": {"replayed": _replayed(artifact)}}
    width = Width(
        bits=manifest["bits"],
        folder=place.parent,
        evaluation=None if given else measured or None,
        checked=checked,
        attacked=attacked,
        trained=None,
        epochs=(),
        manifest=manifest | {"suite_n": len(artifact.suite["y"])},
        examples=examples(artifact),
        problem=f"qrobust check {folder} --json {beside[0]} makes one",
        stale=False,
    )
    return Collected(folder, _recipe(artifact), "", (width,), None, ())


def _of(sha256: str, paths: list[Path], schema: type[Result]) -> Record | None:
    """The first result that is of this file."""
    found = (read(path, schema) for path in paths if path.is_file())
    return next((one for one in found if judged(one) == sha256), None)


def _replayed(artifact: Artifact) -> Record:
    """Shares that were right when the session labelled the suite, which the manifest of somebody's file says."""
    right = {name: artifact.suite[f"label.{name}"] == artifact.suite["y"] for name in artifact.sets}
    worst = np.logical_and.reduce(list(right.values()))
    return {"worst_case": float(worst.mean()), **{name: float(mask.mean()) for name, mask in right.items()}}


def _recipe(artifact: Artifact) -> Recipe:
    """What the page asks of one: a name, the threat, and of what it is."""
    manifest = artifact.manifest
    source: dict[str, Any] = manifest.get("source") or {"name": "model.onnx"}
    table = {"name": "artifact", "model": {"name": str(source["name"])}, "data": {"name": "its suite"}, "bits": [32],
             "train": {"epochs": 1}, "threat": manifest["threat"], "seed": manifest["seed"]}  # fmt: skip
    return made(table, source="manifest.json").model_copy(update={"name": artifact.name})
