"""What a run folder holds, as plain data; what is missing is None, or empty.

A result that was cut, edited or forged is refused where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import RunError, shown
from ..headline import BROKEN, HELD, NOT_CHECKED
from ..recipe import Recipe, load
from ..runs.folder import NetworkFolder, RunFolder, judged
from ..runs.results import measured
from ..runs.stages import fingerprint
from ..runtime import Artifact, ArtifactError, served
from ..storage import read_lines, read_result
from .pictures import Example, examples

Record = dict[str, Any]
REMEDY = "remove it, and qrobust run makes it anew"
MOST = 2**53  # which a float counts exactly
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[float, Field(ge=-MOST, le=MOST)]
Amount = Annotated[float, Field(ge=0, le=MOST)]
Count = Annotated[int, Field(ge=1, le=MOST)]
Whole = Annotated[int, Field(ge=0, le=MOST)]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Range = Annotated[list[Amount], Field(min_length=2, max_length=2)]
Facts = dict[str, Any]  # shown as text


class Result(BaseModel):
    """What a result must hold to be shown; other keys are free: they are not shown, or as text.

    No value is taken for another: "1" is no number, 1 is no truth value.
    """

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Cell(Result):
    """An accuracy inside its interval."""

    accuracy: Share
    ci95: Interval

    @model_validator(mode="after")
    def _inside(self) -> Cell:
        if not self.ci95[0] <= self.accuracy <= self.ci95[1]:
            raise ValueError(f"expected an accuracy inside its interval {self.ci95}")
        return self


class Part(Result):
    """What a part of a cascade took and found."""

    part: str
    tried: Whole
    broken: Whole
    forward_passes: Whole
    gradient_passes: Whole
    seconds: Amount = 0


class Attack(Cell):
    """What an attack left."""

    bounded: bool = True
    settings: dict[str, Any] = Field(default_factory=dict)
    seconds: Amount = 0
    parts: list[Part] = Field(default_factory=list)


class Flag(Result):
    """What a sanity check raised."""

    name: str
    measured: Number
    limit: Number
    reason: str
    hint: str


class Layer(Result):
    """What a layer costs."""

    weights: Whole
    weight_bits: Amount
    activation_bits: Amount | None
    zero_share: Share | None = None
    steps: Range | None = None


class Cost(Result):
    """What a network costs."""

    size_bytes: Amount
    macs: Whole
    bops: Whole
    integer_share: Share | None = None
    zero_share: Share | None = None
    layers: dict[str, Layer] = Field(default_factory=dict)


class InTorch(Result):
    """The torch network under the attacks that its file was under."""

    attacks: dict[str, Attack]
    worst_case: Cell


class Places(Result):
    """Shares by attack; replayed: with their n, empty for images of no suite."""

    replayed: dict[str, Amount] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _shares(self) -> Places:
        shares = [share for name, share in self.replayed.items() if name != "n"]
        if self.replayed and ("worst_case" not in self.replayed or max(shares) > 1):
            raise ValueError(f"expected shares and their worst case, got {shown(self.replayed)}")
        return self


class Attacked(Result):
    """RUN/qm-N/attack.json."""

    n: Count | None = None
    clean: Cell | None = None
    attacks: dict[str, Attack]
    worst_case: Cell | None = None
    flags: list[Flag] = Field(default_factory=list)
    images: str = ""
    in_torch: InTorch | None = None
    gap: Places | None = None


class PerClass(Result):
    """By label: images, and shares of them; older results have none."""

    n: list[Whole]
    clean: list[Share | None]
    worst_case: list[Share | None]

    @model_validator(mode="after")
    def _matching(self) -> PerClass:
        for shares in (self.clean, self.worst_case):
            if [share is not None for share in shares] != [n > 0 for n in self.n]:
                raise ValueError("expected a share for every class with images, got others")
        return self


class Evaluation(Attacked):
    """RUN/qm-N/eval.json."""

    n: Count
    seed: Annotated[int, Field(ge=-MOST, le=MOST)]
    images: str
    clean: Cell
    worst_case: Cell
    per_class: PerClass | None = None
    cost: Cost | None = None
    sanity_checks: dict[str, Number] = Field(default_factory=dict)
    versions: Facts
    hardware: Facts


class Verdict(Flag):
    """One limit of a check."""

    passed: bool


class Checked(Result):
    """RUN/qm-N/check.json."""

    passed: bool
    verdicts: Annotated[list[Verdict], Field(min_length=1)]
    accuracy: dict[str, Share]
    ci95: dict[str, Interval]
    counts: dict[str, Count]
    worst_case: Share
    label_flips: Share
    n: Count
    model: str | None = None

    @model_validator(mode="after")
    def _agreeing(self) -> Checked:
        if self.passed != all(verdict.passed for verdict in self.verdicts):
            raise ValueError(f"expected a check that passed if all of its limits held, got passed = {self.passed}")
        if not self.accuracy.keys() <= self.ci95.keys() & self.counts.keys():
            raise ValueError("expected an interval and a count for each accuracy, got fewer")
        return self


class Epoch(Result):
    """The best epoch of a training, with FAT's masks by layer."""

    epoch: Whole
    masks: dict[str, dict[str, Number]] = Field(default_factory=dict)


class Trained(Result):
    """RUN/qm-N/train.json."""

    epochs: Whole
    seconds: Amount
    best: dict[str, Epoch] = Field(default_factory=dict)
    data_fingerprint: str
    hardware: Facts


class Timing(Result):
    """One artifact under one load."""

    name: str
    bits: Whole
    batch: Count
    threads: Whole
    p50_ms: Amount
    p99_ms: Amount
    images_per_second: Amount
    size_bytes: Count
    speedup: Amount
    speedup_ci95: Range


class Timed(Result):
    """RUN/bench.json."""

    reference: str
    hardware: Facts
    results: Annotated[list[Timing], Field(min_length=1)]


def expect(schema: type[Result], found: Any, path: Path) -> None:
    """Raises RunError, naming the first wrong key, unless what was read from `path` is such a result."""
    try:
        schema.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        problem = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        got = "" if first["type"] in ("value_error", "missing") else f", got {shown(first['input'])}"
        raise RunError(f"expected a whole result in {path}, got {where}: {problem}{got}; {REMEDY}") from error


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
        """Of the export: "held", "broken" or, where no check has judged this file, "not checked"."""
        if self.checked is None or self.stale:
            return NOT_CHECKED
        return HELD if self.checked["passed"] else BROKEN

    @property
    def record(self) -> Record:
        """What a headline is made of, as in report.json."""
        checked = None if self.stale else self.checked
        broken = [verdict for verdict in (checked or {}).get("verdicts", ()) if not verdict["passed"]]
        found = measured(self.evaluation, checked, self.attacked)
        return {"bits": self.bits, "verdict": self.verdict, "broken": broken, **found}


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
    return Collected(folder, recipe, text, widths, read(files.bench, Timed), found)


def _width(files: NetworkFolder) -> Width:
    manifest, shown, problem = _artifact(files.artifact)
    file = manifest["files"][served(manifest)]["sha256"] if manifest else None
    checked, attacked = read(files.check, Checked), read(files.attack, Attacked)
    return Width(
        bits=files.bits,
        folder=files.path,
        evaluation=_evaluation(files),
        checked=checked,
        attacked=attacked if file is None or judged(attacked) in (None, file) else None,
        trained=read(files.training, Trained),
        epochs=read_lines(files.metrics),
        manifest=manifest,
        examples=shown,
        problem=problem,
        stale=bool(file and judged(checked) not in (None, file)),
    )


def _evaluation(files: NetworkFolder) -> Record | None:
    """That of the weights that lie here, or one that does not say of which it is."""
    found = read(files.evaluation, Evaluation)
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


def read(path: Path, schema: type[Result]) -> Record | None:
    """A result, None where there is none. Raises RunError for one that is not whole."""
    if not path.exists():
        return None
    found: Record = read_result(path, REMEDY)
    expect(schema, found, path)
    return found
