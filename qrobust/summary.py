"""One table of a whole run: each width before and after export; and how a run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from .deployed.material import SUITE
from .evaluate.outcomes import CLEAN, accuracy, read_outcomes
from .recipe import Recipe
from .runtime import wilson
from .storage import read_json, write_json
from .threat import describe


def conclude(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """`report`, kept in RUN/report.json, and as a page with a model card beside it; see `qrobust.report`."""
    from .report import write

    result = report(recipe, folder)
    write_json(folder / "report.json", result)
    write(folder)
    return result


def report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The run's figures by width, JSON-ready; accuracies are shares, latencies milliseconds.

    before: of the torch network on n test images. after: of the artifact on its runtime, suite replayed, and
    under the gradient-free attack there. activation_bits: None where activations have the network's width.
    """
    timings = read_json(folder / "bench.json")
    widths = [_width(folder / f"qm-{bits}", bits, timings) for bits in recipe.bits]
    return {
        "recipe": recipe.name,
        "threat": {"norm": recipe.threat.norm, "eps": recipe.threat.eps},
        "activation_bits": recipe.quant and recipe.quant.activation_bits,
        "passed": all(width["verdict"] == "held" for width in widths),
        "widths": widths,
        "versions": timings["versions"],
        "hardware": timings["hardware"],
    }


def _width(folder: Path, bits: int, timings: dict[str, Any]) -> dict[str, Any]:
    before, checked, trained = (read_json(folder / f"{name}.json") for name in ("eval", "check", "train"))
    rows = [row for row in timings["results"] if row["bits"] == bits]
    return {
        "bits": bits,
        "size_bytes": rows[0]["size_bytes"],
        "train_seconds": trained["seconds"],
        "before": {key: before[key] for key in ("n", "clean", "attacks", "worst_case")},
        "after": {key: checked[key] for key in ("n", "accuracy", "ci95", "counts", "worst_case")},
        "label_flips": checked["label_flips"],
        "gap": _gap(folder),
        "latency": {str(row["batch"]): {"p50_ms": row["p50_ms"], "speedup": row["speedup"]} for row in rows},
        "verdict": "held" if checked["passed"] else "broken",
        "broken": [verdict for verdict in checked["verdicts"] if not verdict["passed"]],
    }


def _gap(folder: Path) -> dict[str, Any] | None:
    """Worst cases of the suite's first n images in torch, replayed on the runtime and attacked there, JSON-ready.

    by: the attack on the file that broke most. None where the file was not attacked on images of the suite, or on
    more than were evaluated.
    """
    if not (folder / "attack.json").exists():
        return None
    attacked = read_json(folder / "attack.json")
    before, masks = read_outcomes(folder / "eval.json")
    n, sha256 = attacked["n"], read_json(folder / "artifact" / "manifest.json")["files"]["model.onnx"]["sha256"]
    if attacked["artifact"]["sha256"] != sha256 or attacked.get("data") != SUITE or n > before["n"]:
        return None
    bounded = [name for name, found in before["attacks"].items() if found["bounded"]]
    in_torch = np.logical_and.reduce([masks[name][:n] for name in (CLEAN, *bounded)])
    replayed = attacked["gap"]["replayed"]["worst_case"]
    return {
        "n": n,
        "in_torch": accuracy(in_torch),
        "replayed": {"accuracy": replayed, "ci95": list(wilson(round(replayed * n), n))},
        "attacked": attacked["worst_case"],
        "by": min(attacked["attacks"], key=lambda name: float(attacked["attacks"][name]["accuracy"])),
    }


def headline_table(result: dict[str, Any]) -> Table | None:
    """What survives in torch, replayed and attacked on the file, a row a network; None where none was attacked."""
    rows = [(f"QM-{width['bits']}", width["gap"]) for width in result["widths"] if width.get("gap")]
    if not rows:
        return None
    drawn = Table(title=f"{_titled(result)}: the same images under every attack, by place; {_threat(result['threat'])}")
    for heading in ("network", "images", "attacked in torch", "replayed on the runtime", "the file attacked", "by"):
        drawn.add_column(heading, justify="left" if heading in ("network", "by") else "right")
    for name, gap in rows:
        places = (_interval(gap[place]) for place in ("in_torch", "replayed", "attacked"))
        drawn.add_row(name, str(gap["n"]), *places, gap["by"])
    return drawn


def table(result: dict[str, Any]) -> Table:
    """The report for people: percent, before → after export, with the sizes and times that a deployment asks for."""
    first = result["widths"][0]
    shown = [name for name in first["after"]["accuracy"] if name not in ("clean", "square")]
    drawn = Table(title=f"{_titled(result)}: {_threat(result['threat'])}; accuracy in torch → on the runtime")
    drawn.add_column("network")
    for heading in ("size", "clean", *shown, "worst", "Square", "flips"):
        drawn.add_column(heading, justify="right")
    for batch in first["latency"]:
        drawn.add_column(f"batch {batch}", justify="right")
    drawn.add_column("verdict")
    for width in result["widths"]:
        drawn.add_row(*_cells(width, shown))
    return drawn


def _titled(result: dict[str, Any]) -> str:
    """The recipe, and its activations' width where it is not the network's."""
    own = result.get("activation_bits")
    return result["recipe"] if own is None else f"{result['recipe']}, activations of {own} bits"


def _cells(width: dict[str, Any], shown: list[str]) -> list[str]:
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
        f"[{colour}]{width['verdict']}[/]",
    ]


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _threat(threat: dict[str, Any]) -> str:
    return describe(threat["norm"], threat["eps"])


def evaluation_table(results: dict[str, dict[str, Any]]) -> Table:
    """Accuracies in percent with Wilson intervals, one row a network, one column an attack."""
    first = next(iter(results.values()))
    drawn = Table(title=f"{first['n']} images, {_threat(first['threat'])}, seed {first['seed']}")
    drawn.add_column("network")
    for heading in ("clean", *first["attacks"], "worst case"):
        drawn.add_column(heading, justify="right")
    for name, result in results.items():
        cells = [result["clean"], *result["attacks"].values(), result["worst_case"]]
        drawn.add_row(name, *(_interval(cell) for cell in cells))
    if any(not attack["bounded"] for attack in first["attacks"].values()):
        drawn.caption = "* not bounded by eps; not part of the worst case"
    return drawn


def gap_table(result: dict[str, Any]) -> Table:
    """Accuracies in percent by attack: in torch, replayed, and attacked on the file, the last with intervals."""
    places, threat = result["gap"], f"{_threat(result['threat'])}, seed {result['seed']}"
    drawn = Table(title=f"{result['artifact']['name']}: {threat}")
    drawn.add_column("")
    for heading, place in (("in torch", "in_torch"), ("replayed", "replayed"), ("attacked", "attacked")):
        n = places[place].get("n")
        drawn.add_column(f"{heading}, n={n}" if n else heading, justify="right")
    cells = {"clean": result["clean"], **result["attacks"], "worst_case": result["worst_case"]}
    others = [name for place in places.values() for name in place if name not in (*cells, "n")]
    for name in (*dict.fromkeys(("clean", *others)), *(name for name in cells if name != "clean")):
        before = (_percent(places[place].get(name)) for place in ("in_torch", "replayed"))
        shown = _interval(cells[name]) if name in cells else "-"
        drawn.add_row(name.replace("_", " "), *before, shown, style="bold" if name == "worst_case" else None)
    drawn.caption = "replayed examples were made before export: they can only overestimate robustness"
    return drawn


def _interval(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"]
    mark = "" if cell.get("bounded", True) else " *"
    return f"{100 * cell['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f}){mark}"
