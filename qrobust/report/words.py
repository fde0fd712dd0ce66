"""A run in words and rows: verdicts in sentences, accuracies and layers as cells; what was not measured is None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..headline import AMBER, CLEAN, GREEN, IN_TORCH, ON_FILE, RED, REPLAYED, Headline, Number, headlines, numbers
from ..runtime import wilson
from ..tables import UNBOUNDED, ordered, percent
from .collect import Collected, Record, Width

SQUARE, WORST = "square", "worst case"
FRESH = "§"  # mark of attacks on the session, which are no replays
MOST_CLASSES = 20  # rows of a table by class
RUNTIME, ARTIFACT = "replayed on the runtime", "attacked on the artifact"


@dataclass(frozen=True)
class Place:
    """Worst cases on the same n images by place; None where they were not measured there."""

    n: int
    in_torch: Number | None
    replayed: Number | None
    on_file: Number | None

    @property
    def numbers(self) -> tuple[Number | None, Number | None, Number | None]:
        """As `PLACES` has them."""
        return self.in_torch, self.replayed, self.on_file


PLACES = (IN_TORCH, REPLAYED, ON_FILE)


@dataclass(frozen=True)
class Card:
    """A network's verdict, what it is chosen from, and in sentences what its check found and what to beware of. kind:
    a class of style.css.
    """

    width: Width
    headline: Headline
    places: tuple[Place, ...]
    sentences: tuple[str, ...]

    @property
    def kind(self) -> str:
        """held, broken or unknown, which stands for whatever is neither."""
        return {GREEN: "held", AMBER: "unknown", RED: "broken"}[self.headline.tone]


def cards(run: Collected) -> list[Card]:
    """One a network."""
    found = zip(run.widths, headlines([width.record for width in run.widths]), strict=True)
    return [
        Card(width, one, _places(width), tuple(filter(None, (_sentence(width), _warning(one, width)))))
        for width, one in found
    ]


def flags(run: Collected) -> list[tuple[str, Record]]:
    """What sanity checks raised, in torch and on the artifact, each with its network."""
    return [found for width in run.widths for found in _flags(width)]


def _flags(width: Width) -> list[tuple[str, Record]]:
    results = ((width.label, width.evaluation), (f"{width.label}'s artifact", width.attacked))
    return [(label, flag) for label, result in results for flag in (result or {}).get("flags", [])]


def _warning(found: Headline, width: Width) -> str:
    if not found.flags:
        return ""
    count = len(_flags(width))
    return f"{count} flag{'s' * (count > 1)} ({', '.join(found.flags)}): look before you trust the number."


def _sentence(width: Width) -> str:
    """What the check found."""
    checked = width.checked
    if width.stale:
        return "The check judged another model than the one that lies here; check it anew."
    if checked is None:
        return f"No check has judged it: {width.problem or 'continue the run'}."
    broken = [verdict for verdict in checked["verdicts"] if not verdict["passed"]]
    if broken:
        more = f" {len(broken)} limits are broken in all." if len(broken) > 1 else ""
        first = broken[0]
        return f"{first['name']} is {first['measured']:.3g}, at most {first['limit']:.3g} is allowed: " \
               f"{first['reason']}.{more}"  # fmt: skip
    flips, count = percent(checked["label_flips"], 2), len(checked["verdicts"])
    limits = f"all {count} limits of its check held" if count > 1 else "the limit of its check held"
    return f"Export: {limits} on {checked['n']} images, and {flips} % of labels changed."


def _places(width: Width) -> tuple[Place, ...]:
    """What a headline is chosen from: a row for all images that some place has seen, most images first."""
    by_images: dict[str, dict[str, Number]] = {}
    for one in numbers(width.record):
        by_place = by_images.setdefault(one.images, {})
        by_place[one.place] = min(by_place.get(one.place, one), one, key=lambda one: one.accuracy)
    rows = [
        Place(next(iter(found.values())).n, *map(found.get, (IN_TORCH, REPLAYED, ON_FILE)))
        for found in by_images.values()
    ]
    return tuple(sorted(rows, key=lambda row: -row.n))


@dataclass(frozen=True)
class Parts:
    """What the parts of a cascade took and found at a place, as rows of a table."""

    place: str
    attack: str
    found: tuple[Record, ...]


def parts(width: Width) -> list[Parts]:
    """Of every cascade in torch and on the file; none of older results."""
    results = ((IN_TORCH, width.evaluation), (ON_FILE, width.attacked))
    return [
        Parts(place, name, _found(attack["parts"]))
        for place, result in results
        for name, attack in (result or {"attacks": {}})["attacks"].items()
        if attack.get("parts")
    ]


def _found(rows: Sequence[Record]) -> tuple[Record, ...]:
    """Parts of one name together, those that broke nothing last."""
    by_name: dict[str, list[Record]] = {}
    for row in rows:
        by_name.setdefault(row["part"] if row["broken"] else "", []).append(row)
    rest = by_name.pop("", [])
    named = [(f"{name} × {len(some)}" if len(some) > 1 else name, some) for name, some in by_name.items()]
    if rest:
        named.append((rest[0]["part"] if len(rest) == 1 else f"{len(rest)} others", rest))
    return tuple(_together(name, some) for name, some in named)


def _together(name: str, rows: Sequence[Record]) -> Record:
    keys = ("broken", "forward_passes", "gradient_passes", "seconds")
    return {
        "part": name,
        "tried": max(row["tried"] for row in rows),
        **{key: sum(row[key] for row in rows) for key in keys},
    }


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
    """Clean, worst case, every attack of any row, the strongest first."""
    attacks = {
        name: {"bounded": cell.mark != UNBOUNDED}
        for row in rows
        for name, cell in row.cells.items()
        if name not in (CLEAN, WORST)
    }
    return [CLEAN, WORST, *ordered(attacks)]


def _in_torch(width: Width) -> Row:
    if width.evaluation is None:
        return Row(IN_TORCH, {}, missing="not evaluated yet", command="qrobust run RECIPE")
    return Row(IN_TORCH, _cells(width.evaluation), width.evaluation["n"])


def _replayed(width: Width) -> Row:
    """As the check found it; where no check was made, as export did."""
    checked = width.checked
    if checked is not None and not width.stale:
        cells = {}
        for name, share in checked["accuracy"].items():
            low, high = checked["ci95"][name]
            cells[name] = Cell(share, low, high, FRESH * (name == SQUARE), checked["counts"][name])
        worst = _counted(checked["worst_case"], checked["n"])
        return Row(RUNTIME, {**cells, WORST: worst}, checked["n"])
    after = width.manifest["metrics"]["after"] if width.manifest else {}
    if not width.manifest or not after:
        why = width.problem or "no runtime here executes it"
        return Row(RUNTIME, {}, missing=why, command="qrobust run RECIPE")
    n = width.manifest["suite_n"]
    return Row(RUNTIME, {name: _counted(share, n) for name, share in after.items()}, n)


def _attacked(width: Width) -> Row:
    if width.attacked is None:
        command = f"qrobust attack {width.folder / 'artifact'} --json {width.folder / 'attack.json'}"
        return Row(ARTIFACT, {}, missing="not attacked yet", command=command)
    return Row(ARTIFACT, _cells(width.attacked), width.attacked.get("n"))


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
    """What export found when it compared the file with torch, tensor by tensor; {} where it could not ("none")."""
    found = (width.manifest or {}).get("parity")
    return found if isinstance(found, dict) else {}


def settings(found: Mapping[str, Any]) -> str:
    """Settings of an attack or a machine in one line; what is not set is left out."""
    texts = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in found.items()}
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in texts.items() if text is not None) or "–"
