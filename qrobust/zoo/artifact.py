"""An entry as an artifact like any other, its suite rebuilt on the user's own copy of the data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .. import runtime
from ..errors import RunError
from ..export.artifact import checks, suite_bytes
from ..storage import described, write_json
from .entries import CARD, FLOAT, MANIFEST, MODEL, PERTURBATIONS, RECIPE, TORCH, Entry, find
from .generated import images
from .packing import test_images, unpack

BESIDE = (CARD, FLOAT, MODEL, RECIPE, TORCH)  # files of an entry that stand in the artifact as they are


def get(source: str | Entry, out: Path, root: str | None = None) -> runtime.Artifact:
    """Write a network of the zoo as an artifact with its torch networks, recipe and card: whole, or not at all.

    source: its name, or what `find` gave. root: the folder of its data set. Raises RunError for an unknown name,
    damaged files, or an `out` that exists; DataError for a data set that is missing, or of other images.
    """
    if out.exists() or out.is_symlink():
        raise RunError(f"expected no file or folder at {out}, got one; move it away, or choose another --out")
    entry = find(source) if isinstance(source, str) else source
    theirs, sha256 = test_images(entry.index["data"], root), str(entry.index["suite_sha256"])
    suite = suite_bytes(unpack(entry.files[PERTURBATIONS], theirs, sha256))
    files = {name: entry.files[name] for name in BESIDE}
    files |= {"suite.npz": suite} | checks(entry.json(MANIFEST)["target"]["provider"])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".artifact.") as scratch:
            whole = Path(scratch) / "artifact"
            whole.mkdir()
            for file, data in files.items():
                (whole / file).write_bytes(data)
            listed = {file: described(data) for file, data in sorted(files.items())}
            write_json(whole / "manifest.json", entry.json(MANIFEST) | {"files": listed})
            runtime.Artifact.load(whole)
            whole.rename(out)
    except OSError as error:
        raise RunError(f"expected a writable place for {out}, got: {error}; choose another --out") from error
    return runtime.Artifact.load(out)


def generated_logits(model: bytes, manifest: dict[str, Any], count: int) -> Any:
    """Logits (count, classes) of a deployed network on generated images, on its runtime; no suite is needed."""
    bare = runtime.Artifact(Path(), manifest, {}, model)
    shape = manifest["input"]["shape"]
    return bare.logits(images(count, (shape[2], *shape[:2]) if bare.takes_bytes else shape))


def logits_of(entry: Entry) -> Any:
    """`generated_logits` of an entry, for the labels in its index."""
    return generated_logits(entry.files[MODEL], entry.json(MANIFEST), entry.index["generated"]["count"])
