"""Several runs on one page: the headline of each, widths by places in one table and as small multiples.

Of a run's width the numbers shown are of the images that most places have seen; the lowest of any place stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError
from ..headline import FLOAT_BITS, LEGEND, Number, listed, summary
from ..resources import unplaced
from ..tables import threat_text
from .charts import SHADES, Chart, panel
from .collect import Collected, collect
from .page import key_of, line, rendered, tight, write_pages
from .words import PLACES, Card, Place, cards

COMPARISON = "comparison.html"


@dataclass(frozen=True)
class Compared:
    """A run among others. label: the shortest end of its path that no other has; shade: its place among them."""

    label: str
    shade: int
    run: Collected
    cards: tuple[Card, ...]

    @property
    def headline(self) -> str:
        """Of all its networks, as on its own page."""
        return summary([card.headline for card in self.cards])

    @property
    def setting(self) -> str:
        """What it was attacked in, and on which images."""
        recipe = self.run.recipe
        threat = threat_text(recipe.threat.model_dump())
        return f"{unplaced(recipe.model.name)} on {unplaced(recipe.data.name)}, {threat}"


@dataclass(frozen=True)
class CompareRow:
    """A width of a run. place: None where it was not attacked. size_bytes: of its file, None where none is there."""

    one: Compared
    card: Card
    place: Place | None
    size_bytes: int | None

    @property
    def numbers(self) -> tuple[Number | None, ...]:
        """As `PLACES` has them."""
        return self.place.numbers if self.place else (None,) * len(PLACES)


def write_comparison(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page on several runs; returns its path. out: None for comparison.html here.

    Raises RunError as `write` does, and for a run given twice or more runs than colours.
    """
    path = out or Path(COMPARISON)
    if len(folders) > len(SHADES):
        raise RunError(f"expected {len(SHADES)} runs at most on one page, got {len(folders)}; leave some out")
    return write_pages(path, folders, lambda: {path: _page(_compared(folders))})


def _compared(folders: Sequence[Path]) -> list[Compared]:
    labels = _labels([folder.resolve() for folder in folders])
    runs = [collect(folder) for folder in folders]
    return [
        Compared(label, at, run, tuple(cards(run))) for at, (label, run) in enumerate(zip(labels, runs, strict=True))
    ]


def _labels(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart. Raises RunError for one given twice."""
    if repeated := [folder for folder in folders if folders.count(folder) > 1]:
        raise RunError(f"expected each run once, got {repeated[0]} more often; leave one out")
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _page(runs: Sequence[Compared]) -> str:
    widths = [(f"QM-{bits}", _rows(runs, bits)) for bits in _widths(runs)]
    return rendered(
        "comparison.html.j2",
        escaped=True,
        runs=runs,
        widths=widths,
        panels=[drawn for name, rows in widths if (drawn := _panel(name, rows))],
        panel_keys=key_of([one.label for one in runs]),
        places=PLACES,
        best=_best(runs),
        differences=_differences(runs, [row for _, rows in widths for row in rows]),
        legend=LEGEND,
        tight=tight,
    )


def _best(runs: Sequence[Compared]) -> str:
    """The network whose lowest number is the highest, of those below 32 bits if there are some."""
    found = [
        (
            card.width.bits < FLOAT_BITS,
            card.headline.number.accuracy,
            -one.shade,
            f"{one.label} {card.width.label}",
            card,
        )
        for one in runs
        for card in one.cards
        if card.headline.number
    ]
    if not found:
        return "None of these networks was attacked yet"
    quantised, _, _, label, card = max(found, key=lambda row: row[:3])
    return f"Most robust{' below 32 bits' if quantised else ''}: {label}, {card.headline.words}"


def _widths(runs: Sequence[Compared]) -> list[int]:
    return sorted({card.width.bits for one in runs for card in one.cards}, reverse=True)


def _rows(runs: Sequence[Compared], bits: int) -> list[CompareRow]:
    return [
        CompareRow(one, card, max(card.places, key=_seen, default=None), _size(one.run, bits))
        for one in runs
        for card in one.cards
        if card.width.bits == bits
    ]


def _seen(place: Place) -> tuple[int, int]:
    """By how many places, and how many images."""
    return sum(number is not None for number in place.numbers), place.n


def _size(run: Collected, bits: int) -> int | None:
    rows = run.bench["results"] if run.bench else []
    return next((row["size_bytes"] for row in rows if row["bits"] == bits), None)


def _panel(name: str, rows: Sequence[CompareRow]) -> Chart | None:
    lines = {row.one.shade: line(row.one.label, row.place) for row in rows if row.place is not None}
    return panel(f"places-{name.lower()}", name, PLACES, lines) if lines else None


def _differences(runs: Sequence[Compared], rows: Sequence[CompareRow]) -> list[str]:
    """What keeps numbers of different runs from comparing, in sentences."""
    found = []
    for what, each in (
        ("data", [unplaced(one.run.recipe.data.name) for one in runs]),
        ("the threat", [threat_text(one.run.recipe.threat.model_dump()) for one in runs]),
    ):
        if len(set(each)) > 1:
            found.append(f"Not {what}: {listed(list(dict.fromkeys(each)))}.")
    seen: dict[str, dict[str, set[object]]] = {"images": {}, "attacks": {}}
    for row in rows:
        width, tested = row.card.width, row.card.width.evaluation or {}
        seen["images"].setdefault(width.label, set()).update(number.images for number in row.numbers if number)
        seen["attacks"].setdefault(width.label, set()).update([tuple(tested["attacks"])] if tested else [])
    for what, by_width in seen.items():
        if wrong := [width for width, values in by_width.items() if len(values) > 1]:
            found.append(f"Not the {what} of {listed(wrong)}.")
    return found
