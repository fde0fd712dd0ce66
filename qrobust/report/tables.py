"""Accuracies and layers as rows and cells; what was not measured is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime import wilson
from .collect import Record, Width

CLEAN, SQUARE, WORST = "clean", "square", "worst case"
UNBOUNDED, FRESH = "*", "§"  # marks of attacks that eps does not bound; of attacks on the session, not replays


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


def rows(width: Width) -> tuple[Row, Row, Row]:
    """A network in torch, replayed on the runtime, and attacked there."""
    return _in_torch(width), _replayed(width), _attacked(width)


def columns(rows: Sequence[Row]) -> list[str]:
    """Clean, worst case, every attack of any row in its order."""
    names = dict.fromkeys(name for row in rows for name in row.cells)
    return [CLEAN, WORST, *(name for name in names if name not in (CLEAN, WORST))]


def _in_torch(width: Width) -> Row:
    if width.evaluation is None:
        return Row("in torch", {}, missing="not evaluated yet", command="qrobust run RECIPE")
    return Row("in torch", _cells(width.evaluation), width.evaluation["n"])


def _replayed(width: Width) -> Row:
    """As the check found it; where no check was made, as export did."""
    checked, place = width.checked, "replayed on the runtime"
    if checked is not None and not width.stale:
        cells = {}
        for name, share in checked["accuracy"].items():
            low, high = checked["ci95"][name]
            cells[name] = Cell(share, low, high, FRESH * (name == SQUARE), checked["counts"][name])
        worst = _counted(checked["worst_case"], checked["n"])
        return Row(place, {**cells, WORST: worst}, checked["n"])
    after = width.manifest["metrics"]["after"] if width.manifest else {}
    if not width.manifest or not after:
        why = width.problem or "no runtime here executes it"
        return Row(place, {}, missing=why, command="qrobust run RECIPE")
    n = width.manifest["suite_n"]
    return Row(place, {name: _counted(share, n) for name, share in after.items()}, n)


def _attacked(width: Width) -> Row:
    place = "attacked on the artifact"
    if width.attacked is None:
        command = f"qrobust attack {width.folder / 'artifact'} --json {width.folder / 'attack.json'}"
        return Row(place, {}, missing="not attacked yet", command=command)
    return Row(place, _cells(width.attacked), width.attacked.get("n"))


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
    return [
        Layer(
            name,
            cost,
            cost["weights"] * cost["weight_bits"] / 8,
            cost.get("steps"),
            best.get("masks", {}).get(name),
        )
        for name, cost in width.evaluation.get("cost", {}).get("layers", {}).items()
    ]


def parity(width: Width) -> Record:
    """What export found when it compared the file with torch, tensor by tensor; {} where it could not."""
    found: Record = (width.manifest or {}).get("parity") or {}
    return found
