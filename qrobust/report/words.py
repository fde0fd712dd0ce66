"""A run in words and rows: verdicts in sentences, accuracies and layers as cells; what was not measured is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime import wilson
from ..tables import UNBOUNDED, percent
from .collect import Collected, Record, Width

SIGNS = {"held": "✓", "broken": "✗", "not checked": "?"}
CLEAN, SQUARE, WORST = "clean", "square", "worst case"
FRESH = "§"  # mark of attacks on the session, which are no replays
MOST_CLASSES = 20  # rows of a table by class
TORCH, REPLAYED, ATTACKED = "in torch", "replayed on the runtime", "attacked on the artifact"


@dataclass(frozen=True)
class Card:
    """A network's verdict and why, in one sentence. kind: a class of style.css."""

    width: Width
    sentence: str

    @property
    def kind(self) -> str:
        """held, broken or unknown."""
        return self.width.verdict if self.width.verdict in ("held", "broken") else "unknown"

    @property
    def sign(self) -> str:
        """For those who tell no colours apart."""
        return SIGNS[self.width.verdict]


def headline(run: Collected) -> str:
    """Held, or which networks are not."""
    for verdict in ("broken", "not checked"):
        if names := [width.label for width in run.widths if width.verdict == verdict]:
            return f"{verdict.capitalize()}: {_listed(names)}"
    return "Held" if len(run.widths) == 1 else f"Held: all {len(run.widths)} networks"


def cards(run: Collected) -> list[Card]:
    """One a network."""
    return [Card(width, _sentence(width) + _warning(len(_flags(width)))) for width in run.widths]


def flags(run: Collected) -> list[tuple[str, Record]]:
    """What sanity checks raised, in torch and on the artifact, each with its network."""
    return [found for width in run.widths for found in _flags(width)]


def _flags(width: Width) -> list[tuple[str, Record]]:
    results = ((width.label, width.evaluation), (f"{width.label}'s artifact", width.attacked))
    return [(label, flag) for label, result in results for flag in (result or {}).get("flags", [])]


def _warning(flags: int) -> str:
    return f" {flags} flag{'s' * (flags > 1)}: look before you trust the numbers." if flags else ""


def _sentence(width: Width) -> str:
    checked = width.checked
    if width.stale:
        return "The check judged another model.onnx than the one that lies here; check it anew."
    if checked is None:
        return f"No check has judged it: {width.problem or 'continue the run'}."
    broken = [verdict for verdict in checked["verdicts"] if not verdict["passed"]]
    if broken:
        more = f" {len(broken)} limits are broken in all." if len(broken) > 1 else ""
        first = broken[0]
        return f"{first['name']} is {first['measured']:.3g}, at most {first['limit']:.3g} is allowed: " \
               f"{first['reason']}.{more}"  # fmt: skip
    survive, flips = percent(checked["worst_case"]), percent(checked["label_flips"], 2)
    return (
        f"All {len(checked['verdicts'])} limits held on {checked['n']} images: {survive}% survive the check's attacks, "
        f"and {flips}% of labels changed in export.{_attack(width)}"
    )


def _attack(width: Width) -> str:
    found = width.attacked or {}
    if not {"n", "worst_case"} <= found.keys():
        return ""
    left = percent(found["worst_case"]["accuracy"])
    return f" With gradients of its own, attacks leave {left}% of {found['n']} images."


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


@dataclass(frozen=True)
class Cell:
    """An accuracy, its 95 % interval, a mark, and of how many images where its row does not say."""

    share: float
    low: float
    high: float
    mark: str = ""
    n: int | None = None


@dataclass(frozen=True)
class Row:
    """Accuracies of one network at one place, by column. missing: why there are none, and command: what makes them."""

    place: str
    cells: Mapping[str, Cell]
    n: int | None = None
    missing: str = ""
    command: str = ""


@dataclass(frozen=True)
class Layer:
    """A layer with weights. steps: smallest and largest of their grids. mask: statistics of FAT's."""

    name: str
    cost: Record
    size_bytes: float
    steps: tuple[float, float] | None
    mask: Record | None


@dataclass(frozen=True)
class ClassRow:
    """Of n images of one class, the shares that are right clean and under every attack."""

    name: str
    n: int
    clean: float
    worst_case: float


def classes(width: Width) -> list[ClassRow]:
    """The classes with images, the least robust first, as many as a table shows; none of an older evaluation."""
    found = (width.evaluation or {}).get("per_class")
    if not found:
        return []
    named = (width.manifest or {}).get("classes", ())
    columns = zip(found["n"], found["clean"], found["worst_case"], strict=True)
    every = [
        ClassRow(str(named[label]) if label < len(named) else str(label), *cells)
        for label, cells in enumerate(columns)
        if cells[0]
    ]
    return sorted(every, key=lambda row: (row.worst_case, row.clean))[:MOST_CLASSES]


def rows(width: Width) -> tuple[Row, Row, Row]:
    """A network in torch, replayed on the runtime, and attacked there."""
    return _in_torch(width), _replayed(width), _attacked(width)


def columns(rows: Sequence[Row]) -> list[str]:
    """Clean, worst case, every attack of any row in its order."""
    names = dict.fromkeys(name for row in rows for name in row.cells)
    return [CLEAN, WORST, *(name for name in names if name not in (CLEAN, WORST))]


def _in_torch(width: Width) -> Row:
    if width.evaluation is None:
        return Row(TORCH, {}, missing="not evaluated yet", command="qrobust run RECIPE")
    return Row(TORCH, _cells(width.evaluation), width.evaluation["n"])


def _replayed(width: Width) -> Row:
    """As the check found it; where no check was made, as export did."""
    checked = width.checked
    if checked is not None and not width.stale:
        cells = {}
        for name, share in checked["accuracy"].items():
            low, high = checked["ci95"][name]
            cells[name] = Cell(share, low, high, FRESH * (name == SQUARE), checked["counts"][name])
        worst = _counted(checked["worst_case"], checked["n"])
        return Row(REPLAYED, {**cells, WORST: worst}, checked["n"])
    after = width.manifest["metrics"]["after"] if width.manifest else {}
    if not width.manifest or not after:
        why = width.problem or "no runtime here executes it"
        return Row(REPLAYED, {}, missing=why, command="qrobust run RECIPE")
    n = width.manifest["suite_n"]
    return Row(REPLAYED, {name: _counted(share, n) for name, share in after.items()}, n)


def _attacked(width: Width) -> Row:
    if width.attacked is None:
        command = f"qrobust attack {width.folder / 'artifact'} --json {width.folder / 'attack.json'}"
        return Row(ATTACKED, {}, missing="not attacked yet", command=command)
    return Row(ATTACKED, _cells(width.attacked), width.attacked.get("n"))


def _cells(result: Mapping[str, Any]) -> dict[str, Cell]:
    """Of an evaluation's "clean", "attacks" and "worst_case", those it has."""
    clean = {CLEAN: _cell(result["clean"])} if "clean" in result else {}
    return {
        **clean,
        **{name: _cell(found) for name, found in result["attacks"].items()},
        **({WORST: _cell(result["worst_case"])} if "worst_case" in result else {}),
    }


def _cell(found: Mapping[str, Any]) -> Cell:
    low, high = found["ci95"]
    return Cell(found["accuracy"], low, high, "" if found.get("bounded", True) else UNBOUNDED)


def _counted(share: float, n: int) -> Cell:
    return Cell(share, *wilson(round(share * n), n))


def layers(width: Width) -> list[Layer]:
    """Every layer with weights, in the order of the network; none without an evaluation."""
    if width.evaluation is None:
        return []
    best = ((width.trained or {}).get("best") or {}).get("model", {})
    masks = best.get("masks", {})
    costs = width.evaluation.get("cost", {}).get("layers", {})
    return [
        Layer(name, cost, cost["weights"] * cost["weight_bits"] / 8, cost.get("steps"), masks.get(name))
        for name, cost in costs.items()
    ]


def parity(width: Width) -> Record:
    """What export found when it compared the file with torch, tensor by tensor; {} where it could not."""
    found: Record = (width.manifest or {}).get("parity") or {}
    return found


def settings(found: Mapping[str, Any]) -> str:
    """Settings of an attack or a machine in one line; what is not set is left out."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in texts.items() if text is not None) or "–"
