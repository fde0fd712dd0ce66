"""One table of a whole run: each width before and after export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from .recipe import Recipe
from .storage import read_json


def report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The run's figures by width, JSON-ready; accuracies are shares, latencies milliseconds.

    before: of the torch network on n test images. after: of the artifact on its runtime, suite replayed, and
    under the gradient-free attack there.
    """
    timings = read_json(folder / "bench.json")
    widths = [_width(folder / f"qm-{bits}", bits, timings) for bits in recipe.bits]
    return {
        "recipe": recipe.name,
        "threat": {"norm": recipe.threat.norm, "eps": recipe.threat.eps},
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
        "latency": {str(row["batch"]): {"p50_ms": row["p50_ms"], "speedup": row["speedup"]} for row in rows},
        "verdict": "held" if checked["passed"] else "broken",
        "broken": [verdict for verdict in checked["verdicts"] if not verdict["passed"]],
    }


def table(result: dict[str, Any]) -> Table:
    """The report for people: percent, with the sizes and times that a deployment asks for."""
    first = result["widths"][0]
    strongest = _strongest(first)
    drawn = Table(title=f"{result['recipe']}: {_threat(result['threat'])}", title_justify="left")
    drawn.add_column("network")
    for heading in ("size", "clean", strongest, "worst", "clean", strongest, "Square", "flips"):
        drawn.add_column(heading, justify="right")
    for batch in first["latency"]:
        drawn.add_column(f"batch {batch}", justify="right")
    drawn.add_column("verdict")
    blank = [""] * len(first["latency"])
    drawn.add_row("", "model.onnx", "[dim]in torch", "", "", "[dim]on the runtime", "", "", "", *blank, "", style="dim")
    for width in result["widths"]:
        drawn.add_row(*_cells(width, strongest))
    return drawn


def _cells(width: dict[str, Any], strongest: str) -> list[str]:
    before, after = width["before"], width["after"]["accuracy"]
    replayed = after.get(strongest)
    latency = [f"{row['p50_ms']:.2f} ms ({row['speedup']:.1f}×)" for row in width["latency"].values()]
    colour = "green" if width["verdict"] == "held" else "red"
    return [
        f"QM-{width['bits']}",
        f"{width['size_bytes'] / 1000:.0f} kB",
        _percent(before["clean"]["accuracy"]),
        _percent(before["attacks"][strongest]["accuracy"]),
        _percent(before["worst_case"]["accuracy"]),
        _percent(after["clean"]),
        "-" if replayed is None else _percent(replayed),
        _percent(after["square"]),
        _percent(width["label_flips"]),
        *latency,
        f"[{colour}]{width['verdict']}[/]",
    ]


def _strongest(width: dict[str, Any]) -> str:
    """The bounded attack that hurts the first network most."""
    attacks = {name: a["accuracy"] for name, a in width["before"]["attacks"].items() if a["bounded"]}
    return min(attacks, key=lambda name: attacks[name])


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _threat(threat: dict[str, Any]) -> str:
    return f"{threat['norm']}, eps {threat['eps'] * 255:g}/255"
