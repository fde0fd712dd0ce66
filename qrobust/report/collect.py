"""What a run folder holds, as plain data; what is missing is None, or empty."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..recipe import Recipe, load
from ..runs.folder import NetworkFolder, RunFolder, judged
from ..runs.stages import fingerprint
from ..runtime import Artifact, ArtifactError
from ..storage import read_json, read_lines
from .examples import Example, examples
from .results import REMEDY, Attacked, Checked, Evaluation, Result, Timed, Trained, expect

Record = dict[str, Any]


@dataclass(frozen=True)
class Width:
    """One network of a run: what its stages left in RUN/qm-N.

    epochs: of metrics.jsonl. attacked: of attack.json, unless it names another file. problem: why the artifact, and
    with it manifest and examples, cannot be shown; "" if it can. stale: whether check.json judged another file.
    """

    bits: int
    folder: Path
    evaluation: Record | None
    checked: Record | None
    attacked: Record | None
    trained: Record | None
    epochs: tuple[Record, ...]
    manifest: Record | None
    examples: tuple[Example, ...]
    problem: str
    stale: bool

    @property
    def label(self) -> str:
        """As people call it."""
        return f"QM-{self.bits}"

    @property
    def verdict(self) -> str:
        """ "held", "broken" or, where no check has judged this file, "not checked"."""
        if self.checked is None or self.stale:
            return "not checked"
        return "held" if self.checked["passed"] else "broken"


@dataclass(frozen=True)
class Collected:
    """A run. text: of recipe.toml. analysis: data files of `qrobust analyze`."""

    folder: Path
    recipe: Recipe
    text: str
    widths: tuple[Width, ...]
    bench: Record | None
    analysis: tuple[Path, ...]

    @property
    def evaluated(self) -> list[Width]:
        """The widths with an evaluation."""
        return [width for width in self.widths if width.evaluation is not None]


def collect(folder: Path) -> Collected:
    """Read a run. Raises RunError if the folder is none, was not evaluated, or holds JSON that cannot be read."""
    files = RunFolder.expect(folder)
    recipe = load(str(files.recipe))
    widths = tuple(_width(files.network(bits)) for bits in recipe.bits)
    if not any(width.evaluation for width in widths):
        raise RunError(f"expected an evaluated run, got {folder} without one; continue it by qrobust run RECIPE")
    found, text = tuple(sorted(files.analysis.glob("*.json"))), files.recipe.read_text(encoding="utf-8")
    return Collected(folder, recipe, text, widths, _read(files.bench, Timed), found)


def _width(files: NetworkFolder) -> Width:
    manifest, shown, problem = _artifact(files.artifact)
    file = manifest["files"]["model.onnx"]["sha256"] if manifest else None
    checked, attacked = _read(files.check, Checked), _read(files.attack, Attacked)
    return Width(
        bits=files.bits,
        folder=files.path,
        evaluation=_evaluation(files),
        checked=checked,
        attacked=attacked if file is None or judged(attacked) in (None, file) else None,
        trained=_read(files.training, Trained),
        epochs=read_lines(files.metrics),
        manifest=manifest,
        examples=shown,
        problem=problem,
        stale=bool(file and judged(checked) not in (None, file)),
    )


def _evaluation(files: NetworkFolder) -> Record | None:
    """That of the weights that lie here, or one that does not say of which it is."""
    found = _read(files.evaluation, Evaluation)
    reads = (found or {}).get("reads")
    of = reads.get(files.path.name) if isinstance(reads, dict) else None
    return found if of in (None, *map(fingerprint, files.path.glob("*.safetensors"))) else None


def _artifact(folder: Path) -> tuple[Record | None, tuple[Example, ...], str]:
    """Manifest and examples, or why there are none; the suite, which may be large, is let go."""
    if not folder.is_dir():
        return None, (), "not exported yet"
    try:
        artifact = Artifact.load(folder)
    except ArtifactError as error:
        return None, (), str(error)
    return artifact.manifest | {"suite_n": len(artifact.suite["y"])}, examples(artifact), ""


def _read(path: Path, schema: type[Result]) -> Record | None:
    if not path.exists():
        return None
    found: Record = read_json(path, REMEDY)
    expect(schema, found, path)
    return found
