"""What a result must hold to be shown: one that was cut, edited or forged is refused where it is read.

Other keys are free: they are not shown, or as text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import RunError, shown

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
    """No value is taken for another: "1" is no number, 1 is no truth value."""

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


class Attack(Cell):
    """What an attack left."""

    bounded: bool = True
    settings: dict[str, Any] = Field(default_factory=dict)
    seconds: Amount = 0


class Flag(Result):
    """A doubt that was not put to rest."""

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
    zero_share: Share | None = None
    layers: dict[str, Layer] = Field(default_factory=dict)


class Attacked(Result):
    """RUN/qm-N/attack.json."""

    n: Count | None = None
    clean: Cell | None = None
    attacks: dict[str, Attack]
    worst_case: Cell | None = None
    flags: list[Flag] = Field(default_factory=list)


class Evaluation(Attacked):
    """RUN/qm-N/eval.json."""

    n: Count
    seed: Annotated[int, Field(ge=-MOST, le=MOST)]
    images: str
    clean: Cell
    worst_case: Cell
    cost: Cost | None = None
    doubts: dict[str, Number] = Field(default_factory=dict)
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

    twin: str
    hardware: Facts
    results: Annotated[list[Timing], Field(min_length=1)]


def expect(schema: type[Result], found: Any, path: Path) -> None:
    """Raises RunError, naming the first wrong key, unless what was read from `path` is such a result."""
    try:
        schema.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        said = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
        got = "" if first["type"] in ("value_error", "missing") else f", got {shown(first['input'])}"
        raise RunError(f"expected a whole result in {path}, got {where}: {said}{got}; {REMEDY}") from error
