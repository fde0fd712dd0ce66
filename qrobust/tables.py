"""Every table that people read on a screen, and the one text for a threat and for an accuracy.

Needs neither torch nor a network: a result as JSON holds it → a rich table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .progress import plain, titled
from .storage import read_json

CPU = "CPUExecutionProvider"  # where `parity` compares, whatever the target
Result = Mapping[str, Any]
NONE = "-"  # what was not measured
UNBOUNDED = "*"  # mark of attacks that eps does not bound
TIMES = ("p50 ms", "p90 ms", "p99 ms", "images/s", "times as fast", "95 % interval", "of int8 GEMM")
FACTS = ("kB", "memory MB", "load ms", "clean %", "worst case %", "computes in")


def threat_text(threat: Result) -> str:
    """A threat as people read it: steps of a byte say something of a pixel, not of a length.

    >>> threat_text({"norm": "linf", "eps": 8 / 255}), threat_text({"norm": "l2", "eps": 0.5})
    ('linf, eps 8/255', 'l2, eps 0.5')
    """
    norm, eps = threat["norm"], threat["eps"]
    return f"{norm}, eps {eps * 255:.4g}/255" if norm == "linf" else f"{norm}, eps {eps:.4g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign.

    >>> percent(0.5), percent(0.0123, 2), percent(None)
    ('50.0', '1.23', '-')
    """
    return NONE if share is None else f"{100 * share:.{digits}f}"


def accuracy_text(cell: Result) -> str:
    """An accuracy in percent with its 95 % interval, marked if it is of an attack that eps does not bound.

    >>> accuracy_text({"accuracy": 0.5, "ci95": [0.4, 0.6], "bounded": False})
    '50.0 (40.0–60.0) *'
    """
    low, high = cell["ci95"]
    mark = "" if cell.get("bounded", True) else f" {UNBOUNDED}"
    return f"{percent(cell['accuracy'])} ({percent(low)}–{percent(high)}){mark}"


def run_table(result: Result) -> Table:
    """A run's report: percent, before → after export, with the sizes and times that a deployment asks for."""
    first = result["widths"][0]
    shown = [name for name in first["after"]["accuracy"] if name not in ("clean", "square")]
    title = f"{_recipe(result)}: {threat_text(result['threat'])}; accuracy in torch → on the runtime"
    drawn = titled(title)
    drawn.add_column("network")
    for heading in ("size", "clean", *shown, "worst", "Square", "flips"):
        drawn.add_column(plain(heading), justify="right")
    for batch in first["latency"]:
        drawn.add_column(plain(f"batch {batch}"), justify="right")
    drawn.add_column("verdict")
    for width in result["widths"]:
        drawn.add_row(*_run_row(width, shown))
    return drawn


def _run_row(width: Result, shown: list[str]) -> list[str | Text]:
    before, after = width["before"], width["after"]
    clean, attacks = before["clean"]["accuracy"], before["attacks"]
    in_torch = [clean, *(attacks[name]["accuracy"] if name in attacks else None for name in shown)]
    replayed = [after["accuracy"][name] for name in ("clean", *shown)]
    latency = [f"{row['p50_ms']:.2f} ms {row['speedup']:.1f}×" for row in width["latency"].values()]
    colour = "green" if width["verdict"] == "held" else "red"
    return [
        f"QM-{width['bits']}",
        f"{width['size_bytes'] / 1000:.0f} kB",
        *(f"{percent(first)} → {percent(then)}" for first, then in zip(in_torch, replayed, strict=True)),
        f"{percent(before['worst_case']['accuracy'])} → {percent(after['worst_case'])}",
        percent(after["accuracy"]["square"]) if "square" in after["accuracy"] else "not measured",
        percent(width["label_flips"], 2),
        *latency,
        plain(width["verdict"], colour),
    ]


def _recipe(result: Result) -> str:
    """The recipe, and its activations' width where it is not the network's."""
    own = result.get("activation_bits")
    return str(result["recipe"]) if own is None else f"{result['recipe']}, activations of {own} bits"


def places_table(result: Result) -> Table | None:
    """A run's worst cases in torch, replayed and on the attacked file, a row a network; None if none was attacked."""
    rows = [(f"QM-{width['bits']}", width["gap"]) for width in result["widths"] if width.get("gap")]
    if not rows:
        return None
    drawn = titled(f"{_recipe(result)}: the same images under every attack, by place; {threat_text(result['threat'])}")
    for heading in ("network", "images", "attacked in torch", "replayed on the runtime", "the file attacked", "by"):
        drawn.add_column(heading, justify="left" if heading in ("network", "by") else "right")
    for name, gap in rows:
        cells = (accuracy_text(gap[place]) if gap[place] else NONE for place in ("in_torch", "replayed", "attacked"))
        drawn.add_row(plain(name), str(gap["n"]), *cells, plain(gap["by"]))
    return drawn


def evaluation_table(results: Mapping[str, Result]) -> Table:
    """Accuracies with intervals, one row a network, one column an attack."""
    first = next(iter(results.values()))
    drawn = titled(f"{first['n']} images, {threat_text(first['threat'])}, seed {first['seed']}")
    drawn.add_column("network")
    for heading in ("clean", *first["attacks"], "worst case"):
        drawn.add_column(plain(heading), justify="right")
    for name, result in results.items():
        cells = [result["clean"], *result["attacks"].values(), result["worst_case"]]
        drawn.add_row(plain(name), *map(accuracy_text, cells))
    if any(not attack["bounded"] for attack in first["attacks"].values()):
        drawn.caption = f"{UNBOUNDED} not bounded by eps; not part of the worst case"
    return drawn


def attack_table(result: Result) -> Table:
    """Accuracies by attack: in torch, replayed, and attacked on the file, the last with intervals."""
    places = result["gap"]
    drawn = titled(f"{result['artifact']['name']}: {threat_text(result['threat'])}, seed {result['seed']}")
    drawn.add_column("")
    for heading, place in (("in torch", "in_torch"), ("replayed", "replayed"), ("attacked", "attacked")):
        n = places[place].get("n")
        drawn.add_column(f"{heading}, n={n}" if n else heading, justify="right")
    cells = {"clean": result["clean"], **result["attacks"], "worst_case": result["worst_case"]}
    others = [name for place in places.values() for name in place if name not in (*cells, "n")]
    for name in (*dict.fromkeys(("clean", *others)), *(name for name in cells if name != "clean")):
        before = (percent(places[place].get(name)) for place in ("in_torch", "replayed"))
        shown = accuracy_text(cells[name]) if name in cells else NONE
        drawn.add_row(plain(name.replace("_", " ")), *before, shown, style="bold" if name == "worst_case" else None)
    drawn.caption = "replayed examples were made before export: they can only overestimate robustness"
    return drawn


def timing_table(result: Result) -> Table:
    """Of a bench, one row for each artifact, batch size and thread count; the scenario's metric is starred."""
    metric = {"p50_ms": 0, "p90_ms": 1, "p99_ms": 2, "images_per_second": 3}[result["scenario"]["metric"]]
    drawn = titled(f"{result['hardware']['cpu']}; times as fast as {result['reference']}")
    for heading in ("artifact", "batch", "threads"):
        drawn.add_column(heading, justify="left" if heading == "artifact" else "right", no_wrap=True)
    for index, heading in enumerate(TIMES):
        drawn.add_column(f"{heading} *" if index == metric else heading, justify="right")
    for row in result["results"]:
        drawn.add_row(plain(row["name"]), str(row["batch"]), str(row["threads"] or "all"), *_times(row))
    harness = f"timing itself takes {result['harness_us']:.1f} µs a call"
    drawn.caption = f"* the scenario's metric; {harness}; int8 GEMM: onnxruntime's own"
    return drawn


def _times(row: Result) -> list[str]:
    low, high = row["speedup_ci95"]
    share = row.get("int8_gemm_share", row.get("int8_peak_share"))  # as 0.1.0 called it
    return [
        *(f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        f"{row['images_per_second']:,.0f}",
        f"{row['speedup']:.2f} ×",
        f"{low:.2f}–{high:.2f}",
        NONE if share is None else f"{percent(share, 0)} %",
    ]


def artifact_table(result: Result) -> Table:
    """Of a bench, one row for each artifact: what does not depend on the load."""
    drawn = Table()
    for heading in ("artifact", *FACTS, "nodes that ran"):
        drawn.add_column(heading, justify="right" if heading in FACTS[:-1] else "left")
    for name, one in result["artifacts"].items():
        memory = one["memory_bytes"]
        drawn.add_row(
            plain(name),
            f"{one['size_bytes'] / 1e3:.1f}",
            NONE if memory is None else f"{memory / 1e6:.1f}",
            f"{one['load_ms']:.1f}",
            percent(one["clean_accuracy"]),
            percent(one["worst_case"]),
            plain(one["compute_type"] or NONE),
            plain("; ".join(f"{provider}: {_kinds(kinds)}" for provider, kinds in one["executed"].items())),
        )
    drawn.caption = "accuracies before export on the suite; stored examples can only overestimate robustness"
    return drawn


def _kinds(counts: Mapping[str, int], most: int = 3) -> str:
    shown = [f"{count} {kind}" for kind, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[most:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)


def artifact_text(folder: Path) -> str:
    """One line on an artifact that was written: its size, and how it compares with torch."""
    manifest = read_json(folder / "manifest.json")
    line = f"{folder}: {manifest['files']['model.onnx']['size_bytes']:,} bytes"
    found, provider = manifest.get("parity"), manifest["target"]["provider"]
    if found is None:
        return f"{line}, executed by no runtime here"
    first = f", the first in {found['first']}" if found["first"] else ""
    compared = f"{found['flips']:.2%} of {found['n']} labels flip, {found['share']:.2g} of activations differ{first}"
    return f"{line}, {compared}" + ("" if provider == CPU else f"; measured on {CPU}, which stands in for {provider}")
