"""Tables of a whole run: each width before and after export."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from .progress import plain, titled
from .threat import describe


def headline_table(result: dict[str, Any]) -> Table | None:
    """What survives in torch, replayed and attacked on the file, a row a network; None where none was attacked."""
    rows = [(f"QM-{width['bits']}", width["gap"]) for width in result["widths"] if width.get("gap")]
    if not rows:
        return None
    title = f"{_titled(result)}: the same images under every attack, by place; {_threat(result['threat'])}"
    drawn = titled(title)
    for heading in ("network", "images", "attacked in torch", "replayed on the runtime", "the file attacked", "by"):
        drawn.add_column(heading, justify="left" if heading in ("network", "by") else "right")
    for name, gap in rows:
        places = (_interval(gap[place]) if gap[place] else "-" for place in ("in_torch", "replayed", "attacked"))
        drawn.add_row(plain(name), str(gap["n"]), *places, plain(gap["by"]))
    return drawn


def table(result: dict[str, Any]) -> Table:
    """The report for people: percent, before → after export, with the sizes and times that a deployment asks for."""
    first = result["widths"][0]
    shown = [name for name in first["after"]["accuracy"] if name not in ("clean", "square")]
    title = f"{_titled(result)}: {_threat(result['threat'])}; accuracy in torch → on the runtime"
    drawn = titled(title)
    drawn.add_column("network")
    for heading in ("size", "clean", *shown, "worst", "Square", "flips"):
        drawn.add_column(plain(heading), justify="right")
    for batch in first["latency"]:
        drawn.add_column(plain(f"batch {batch}"), justify="right")
    drawn.add_column("verdict")
    for width in result["widths"]:
        drawn.add_row(*_cells(width, shown))
    return drawn


def _titled(result: dict[str, Any]) -> str:
    """The recipe, and its activations' width where it is not the network's."""
    own = result.get("activation_bits")
    return result["recipe"] if own is None else f"{result['recipe']}, activations of {own} bits"


def _cells(width: dict[str, Any], shown: list[str]) -> list[str | Text]:
    before, after = width["before"], width["after"]
    clean, attacks = before["clean"]["accuracy"], before["attacks"]
    in_torch = [clean, *(attacks[name]["accuracy"] if name in attacks else None for name in shown)]
    replayed = [after["accuracy"][name] for name in ("clean", *shown)]
    latency = [f"{row['p50_ms']:.2f} ms {row['speedup']:.1f}×" for row in width["latency"].values()]
    colour = "green" if width["verdict"] == "held" else "red"
    return [
        f"QM-{width['bits']}",
        f"{width['size_bytes'] / 1000:.0f} kB",
        *(f"{_percent(first)} → {_percent(then)}" for first, then in zip(in_torch, replayed, strict=True)),
        f"{_percent(before['worst_case']['accuracy'])} → {_percent(after['worst_case'])}",
        _percent(after["accuracy"]["square"]) if "square" in after["accuracy"] else "not measured",
        _percent(width["label_flips"], 2),
        *latency,
        plain(width["verdict"], colour),
    ]


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _threat(threat: dict[str, Any]) -> str:
    return describe(threat["norm"], threat["eps"])


def evaluation_table(results: dict[str, dict[str, Any]]) -> Table:
    """Accuracies in percent with Wilson intervals, one row a network, one column an attack."""
    first = next(iter(results.values()))
    drawn = titled(f"{first['n']} images, {_threat(first['threat'])}, seed {first['seed']}")
    drawn.add_column("network")
    for heading in ("clean", *first["attacks"], "worst case"):
        drawn.add_column(plain(heading), justify="right")
    for name, result in results.items():
        cells = [result["clean"], *result["attacks"].values(), result["worst_case"]]
        drawn.add_row(plain(name), *(_interval(cell) for cell in cells))
    if any(not attack["bounded"] for attack in first["attacks"].values()):
        drawn.caption = "* not bounded by eps; not part of the worst case"
    return drawn


def gap_table(result: dict[str, Any]) -> Table:
    """Accuracies in percent by attack: in torch, replayed, and attacked on the file, the last with intervals."""
    places, threat = result["gap"], f"{_threat(result['threat'])}, seed {result['seed']}"
    drawn = titled(f"{result['artifact']['name']}: {threat}")
    drawn.add_column("")
    for heading, place in (("in torch", "in_torch"), ("replayed", "replayed"), ("attacked", "attacked")):
        n = places[place].get("n")
        drawn.add_column(f"{heading}, n={n}" if n else heading, justify="right")
    cells = {"clean": result["clean"], **result["attacks"], "worst_case": result["worst_case"]}
    others = [name for place in places.values() for name in place if name not in (*cells, "n")]
    for name in (*dict.fromkeys(("clean", *others)), *(name for name in cells if name != "clean")):
        before = (_percent(places[place].get(name)) for place in ("in_torch", "replayed"))
        shown = _interval(cells[name]) if name in cells else "-"
        drawn.add_row(plain(name.replace("_", " ")), *before, shown, style="bold" if name == "worst_case" else None)
    drawn.caption = "replayed examples were made before export: they can only overestimate robustness"
    return drawn


def _interval(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"]
    mark = "" if cell.get("bounded", True) else " *"
    return f"{100 * cell['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f}){mark}"
