"""The table of one network on every target."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from markdown_tables import NOT_YET, table

from qrobust.tables import percent

Result = dict[str, Any]
CLEAN, SPEED, FLOAT = "clean", "speed", "ort-cpu-float"
HEADS = ("flips, clean", "adversarial", "of", "a step apart, ppm", "in torch", "replayed", "attacked", "in torch",
         "replayed", "of", "kB", "times as fast as ort-cpu")  # fmt: skip


def targets(result: Result) -> Iterator[str]:
    """Of every network on every target what is measured; which were refused, and why."""
    units, attack = result["units"], result["attack"]
    networks = dict.fromkeys(key.rpartition("/")[0] for key in units)
    rows = [row for name in networks for row in _rows(name, units, attack)]
    yield table((f"`{attack}`", *HEADS), rows) if rows else NOT_YET
    refused = [f"- {key.replace('/', ', ')}: refused. {unit['refused']}." for key, unit in units.items()
               if "refused" in unit]  # fmt: skip
    if refused:
        yield "\n".join(refused)


def _rows(network: str, units: Result, attack: str) -> Iterator[list[str]]:
    speeds = units.get(f"{network}/{SPEED}", {}).get("results", {})
    measured = [key.rpartition("/")[2] for key in units if key.startswith(f"{network}/") and "n" in units[key]]
    for target in measured:
        yield [f"{network}, {target}", *_cells(units[f"{network}/{target}"], attack), _speed(speeds.get(target))]
    if FLOAT in speeds and FLOAT not in measured:
        size = f"{speeds[FLOAT]['size_bytes'] / 1e3:.0f}"
        yield [f"{network}, its float file", *[""] * (len(HEADS) - 2), size, _speed(speeds[FLOAT])]


def _cells(unit: Result, attack: str) -> Iterator[str]:
    """All but the speed; nothing stands for what is not measured there."""
    flips, n = unit.get("flips", {}), unit["n"]
    of_both = unit.get("flips of torch's", {}).get("all")  # all that is known of it
    if of_both is None:
        yield from (str(flips.get(name, "")) for name in (CLEAN, attack))
    else:
        yield from ("", f"{of_both} of both")
    yield str(n)
    activations = unit.get("activations")
    yield "" if activations is None else f"{1e6 * activations['share']:.3g}"
    yield from (_accuracy(unit[place][attack], n) for place in ("right in torch", "right"))
    attacked = unit.get("attacked")
    yield from ("" if attacked is None else percent(attacked[place]) for place in ("attacked", "in_torch", "replayed"))
    yield "" if attacked is None else str(attacked["n"])
    yield f"{unit['size_bytes'] / 1e3:.0f}"


def _accuracy(mask: str, n: int) -> str:
    return percent(float(np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=n).mean()))


def _speed(found: Result | None) -> str:
    return "" if found is None else "{speedup:.2f} ({speedup_ci95[0]:.2f}–{speedup_ci95[1]:.2f})".format(**found)
