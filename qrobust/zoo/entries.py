"""Networks by name: each a folder with a zoo.json that holds the sha256 of every other file.

NAME/zoo.json              index: data set, licence, hashes, labels of generated images
NAME/README.md             card, with YAML in front as hubs read it
NAME/model.onnx            the network as it is deployed
NAME/model.safetensors     the torch network behind it, and NAME/float.safetensors, its float model: `qrobust.save`
NAME/artifact.json         the artifact's manifest
NAME/perturbations.npz     its suite without images, see `packing`
NAME/recipe.toml, result.json
NAME.json                  instead of the folder: where on a hub it lies, see `hub`
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import resources
from ..errors import QrobustError, RunError, did_you_mean, shown
from ..storage import described, parse_json, read_json
from . import hub

PREFIX = "zoo:"  # of a name, where a path could stand as well
INDEX, CARD, MODEL, MANIFEST = "zoo.json", "README.md", "model.onnx", "artifact.json"
TORCH, FLOAT, RECIPE, RESULT = "model.safetensors", "float.safetensors", "recipe.toml", "result.json"
PERTURBATIONS = "perturbations.npz"
FILES = (CARD, MODEL, MANIFEST, TORCH, FLOAT, RECIPE, RESULT, PERTURBATIONS)
SCHEMA_VERSION = 1
NAME = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,94}[a-z0-9])?")
KEYS = {"schema_version": int, "name": str, "description": str, "license": str, "data": dict, "files": dict,
        "suite_sha256": str, "generated": dict}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A network of the zoo whose files are whole: `find(name)`, or `read(folder)`.

    index: of zoo.json. files: the bytes of each other file by name, as they were hashed.
    """

    folder: Path
    index: dict[str, Any]
    files: dict[str, bytes]

    @property
    def name(self) -> str:
        """Under which it is found."""
        return str(self.index["name"])

    def json(self, name: str) -> dict[str, Any]:
        """The table in one of its files. Raises RunError where there is none."""
        try:
            return {**parse_json(self.files[name])}
        except (TypeError, ValueError, RecursionError) as error:
            raise _broken(self.folder, f"{name}, which is no table: {error}") from error


def find(name: str) -> Entry:
    """The network of a name, with or without PREFIX; one on a hub is fetched once.

    Raises RunError for an unknown name, and as `read`.
    """
    name = name.removeprefix(PREFIX)
    known = _places()
    if name not in known:
        raise RunError(f"expected a network of the zoo, got {name!r}{did_you_mean(name, known)}")
    place = known[name]
    if place.is_dir():
        return _named(read(place), name)
    return _on_hub(hub.read_pointer(place), name)


def _on_hub(where: hub.Pointer, name: str) -> Entry:
    """The network that a pointer names; what the cache holds damaged is fetched anew."""
    for anew in (False, True):
        folder = hub.fetch(where, (INDEX, *FILES), anew)
        try:
            found = described((folder / INDEX).read_bytes())["sha256"]
            if found != where.sha256:
                raise _broken(folder, f"{INDEX} of sha256 {found[:12]}, not {where.sha256[:12]}")
            return _named(read(folder), name)
        except RunError as error:
            broken = error
    raise RunError(f"expected {name} in {where.hub} at {where.revision[:12]}, got another network, or a damaged "
                   "one, twice; install another version of qrobust, or take another network") from broken  # fmt: skip


def listing() -> Iterator[tuple[str, str]]:
    """Every name in order, with one line of what it is; of broken ones what is broken."""
    for name, place in sorted(_places().items()):
        try:
            stated = read_json(place / INDEX)["description"] if place.is_dir() else hub.read_pointer(place).description
        except (QrobustError, LookupError, TypeError) as error:
            stated = f"broken: {error}"
        yield name, str(stated)


def read(folder: Path) -> Entry:
    """The network in a folder. Raises RunError where a file is missing, or is not what zoo.json says."""
    index = read_json(folder / INDEX, "fetch the network again")
    _expect_index(folder, index)
    files = {}
    for name in FILES:
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise _broken(folder, f"no {name} ({error.strerror})") from error
        found = described(data)
        if found != index["files"][name]:
            raise _broken(folder, f"{name} of sha256 {found['sha256'][:12]}, not as {INDEX} says")
        files[name] = data
    return Entry(folder, index, files)


def expect_name(name: str) -> str:
    """The name. Raises RunError for one that no folder and no hub takes."""
    if NAME.fullmatch(name) is None:
        raise RunError(f"expected a name of small letters, digits, dots and hyphens, got {shown(name)}; "
                       "choose one, as cifar10-resnet20-w4a8")  # fmt: skip
    return name


def _places() -> dict[str, Path]:
    """Folders, and files that point to a hub, by name: of the checkout, else of the installation."""
    shelf = next((folder for kind in resources.folders("export") if (folder := kind / "zoo").is_dir()), None)
    found = sorted(shelf.iterdir()) if shelf else []
    pointers = {path.stem: path for path in found if path.suffix == ".json" and path.is_file()}
    return pointers | {path.name: path for path in found if (path / INDEX).is_file()}


def _named(entry: Entry, name: str) -> Entry:
    if entry.name != name:
        raise _broken(entry.folder, f"the name {shown(entry.name)} in {INDEX}")
    return entry


def _expect_index(folder: Path, index: Any) -> None:
    if not isinstance(index, dict) or index.get("schema_version") != SCHEMA_VERSION:
        version = index.get("schema_version") if isinstance(index, dict) else None
        raise RunError(f"expected {INDEX} of version {SCHEMA_VERSION} in {folder}, got {shown(version)}; "
                       "install another version of qrobust")  # fmt: skip
    wrong = [key for key, kind in KEYS.items() if type(index.get(key)) is not kind]
    if wrong or set(index["files"]) != set(FILES):
        raise _broken(folder, f"{INDEX} with another {(wrong or ['files'])[0]}")


def _broken(folder: Path, got: str) -> RunError:
    return RunError(f"expected a whole network of the zoo in {folder}, got {got}; fetch or install it again")
