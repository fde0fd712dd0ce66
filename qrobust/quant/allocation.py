"""Which layer gets how many bits, so that under a budget as little as possible is lost.

A layer's losses are taken to add up, so the best of all allocations is found exactly: layer by layer, only those are
kept that no other beats in both cost and loss.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ModelError

FINEST = 20_000  # allocations kept on the way: more of them differ by less than a ten-thousandth of the budget
SPELLING = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<unit>x|B|kB|MB|bitops|kbitops|Mbitops|Gbitops)?")
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "bitops": 1, "kbitops": 10**3, "Mbitops": 10**6, "Gbitops": 10**9}


@dataclass(frozen=True)
class Choice:
    """A width of a layer: what it costs, in bytes or bit operations, and what the network loses by it alone."""

    bits: int
    cost: float
    loss: float


@dataclass(frozen=True)
class Allocation:
    """Widths by layer, with their cost and the sum of their losses."""

    bits: Mapping[str, int]
    cost: float
    loss: float


@dataclass(frozen=True)
class Budget:
    """most: of bytes or bit operations. unit: "bytes" or "bitops"."""

    most: float
    unit: str


def budget(text: str, *, size_bytes: int) -> Budget:
    """`0.6x` of a size in bytes, bytes (`120000`, `120kB`), or bit operations (`3.2Gbitops`) of an image.

    size_bytes: of the network at 8 bits. Raises ModelError for another spelling.

    >>> budget("0.5x", size_bytes=1000), budget("2kB", size_bytes=1000).most
    (Budget(most=500.0, unit='bytes'), 2000.0)
    """
    match = SPELLING.fullmatch(text.strip())
    if match is None or not float(match["number"]):
        raise ModelError(f"expected a budget as 0.6x, 120kB or 3.2Gbitops, got {text!r}; write one")
    number, unit = float(match["number"]), match["unit"] or "B"
    if unit == "x":
        return Budget(number * size_bytes, "bytes")
    return Budget(number * UNITS[unit], "bitops" if unit.endswith("bitops") else "bytes")


def pareto(choices: Mapping[str, Sequence[Choice]]) -> list[Allocation]:
    """All allocations that none beats, the cheapest first.

    choices: by layer, one or more each.

    >>> found = pareto({"a": [Choice(8, 8, 0.0), Choice(4, 4, 0.1)], "b": [Choice(8, 80, 0.0), Choice(4, 40, 0.3)]})
    >>> [(one.cost, one.loss) for one in found]
    [(44, 0.4), (48, 0.3), (84, 0.1), (88, 0.0)]
    """
    front: list[tuple[float, float, tuple[int, ...]]] = [(0, 0.0, ())]
    for options in choices.values():
        joined = sorted(
            (cost + one.cost, loss + one.loss, (*bits, one.bits)) for cost, loss, bits in front for one in options
        )
        front = _thinned(list(_unbeaten(joined)))
    return [Allocation(dict(zip(choices, bits, strict=True)), cost, loss) for cost, loss, bits in front]


def allocate(choices: Mapping[str, Sequence[Choice]], most: float) -> Allocation:
    """The allocation of least loss that costs `most` at most. Raises ModelError where none does."""
    front = pareto(choices)
    within = bisect_right([one.cost for one in front], most)
    if not within:
        raise ModelError(
            f"expected a budget of {front[0].cost:,.0f} or more, which all layers take at their least, "
            f"got {most:,.0f}; raise it, or allow fewer bits"
        )
    return front[within - 1]


def _unbeaten(rows: Sequence[tuple[float, float, tuple[int, ...]]]) -> Iterator[tuple[float, float, tuple[int, ...]]]:
    """Of rows by rising cost those with less loss than all before."""
    least = float("inf")
    for row in rows:
        if row[1] < least:
            least = row[1]
            yield row


def _thinned(
    rows: Sequence[tuple[float, float, tuple[int, ...]]],
) -> list[tuple[float, float, tuple[int, ...]]]:
    """At most `FINEST` rows, evenly, with both ends."""
    if len(rows) <= FINEST:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (FINEST - 1))] for index in range(FINEST)]
