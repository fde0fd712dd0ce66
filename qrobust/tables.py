"""Every table that people read on a screen, and the one text for a threat and for an accuracy.

Needs neither torch nor a network: a result as JSON holds it → a rich table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from .errors import one_line
from .headline import AMBER, CLEAN, GREEN, LEGEND, RED, headlines, is_last_step, summary
from .progress import plain, titled
from .storage import read_json

CPU = "CPUExecutionProvider"  # where `parity` compares, whatever the target
Result = Mapping[str, Any]
NONE = "-"  # what was not measured
UNBOUNDED = "*"  # mark of attacks that eps does not bound
WORST = "worst_case"
LAST_STEP = "last step"  # beside attacks that papers report so
COLOURS = {GREEN: "green", AMBER: "yellow", RED: "red"}
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


def ordered(attacks: Mapping[str, Result]) -> list[str]:
    """Names of attacks as columns: the cascade first, then others, last steps, and what eps does not bound.

    >>> ordered({"gn": {"bounded": False}, "pgd-20": {}, "apgd-t": {}, "strong": {}})
    ['strong', 'apgd-t', 'pgd-20', 'gn']
    """

    def place(name: str) -> tuple[bool, bool, bool]:
        return not attacks[name].get("bounded", True), is_last_step(name), not name.startswith("strong")

    return sorted(attacks, key=place)


def heading(name: str, between: str = "\n") -> Text:
    """An attack's name over its column, and what to think of it."""
    return Text(f"{one_line(name)}{between}{LAST_STEP}" if is_last_step(name) else one_line(name))


def headline_table(result: Result) -> Table:
    """A run's verdicts: of each network the one number, where it was measured and by which attack."""
    found = headlines(result["widths"])
    drawn = titled(f"{_recipe(result)}, {threat_text(result['threat'])}: {summary(found)}")
    for name in ("network", "verdict", "95 %", "lowest by"):
        drawn.add_column(name)
    for one in found:
        number = (one.number.interval, plain(one.number.where)) if one.number else (NONE, NONE)
        signed, words = (plain(text, COLOURS[one.tone]) for text in (f"{one.sign} {one.network}", one.words))
        drawn.add_row(signed, words, *number)
    drawn.caption = f"under attack: the lowest of any place, percent of n images with its interval; {LEGEND}"
    return drawn


def run_table(result: Result) -> Table:
    """A run's report: percent, before → after export, with the sizes and times that a deployment asks for."""
    first = result["widths"][0]
    shown = attacks_shown(first)
    n = " → ".join(dict.fromkeys(str(first[place]["n"]) for place in ("before", "after")))
    drawn = titled(f"{_recipe(result)}: {threat_text(result['threat'])}; accuracy in torch → on the runtime, n = {n}")
    drawn.add_column("network")
    for name in ("size", CLEAN, "worst"):
        drawn.add_column(name, justify="right")
    for name in shown:
        drawn.add_column(heading(name), justify="right")
    for name in ("Square", "flips", *(f"batch {batch}" for batch in first["latency"])):
        drawn.add_column(plain(name), justify="right")
    for width in result["widths"]:
        drawn.add_row(*_run_row(width, shown))
    drawn.caption = _caption("worst: right under every attack within eps", shown)
    return drawn


def attacks_shown(width: Result) -> list[str]:
    """Of a width of report.json: the attacks whose examples are stored, and beside them those of papers."""
    stored = [name for name in width["after"]["accuracy"] if name not in (CLEAN, "square")]
    papers = [name for name in width["before"]["attacks"] if is_last_step(name) and name not in stored]
    return ordered({name: {} for name in (*stored, *papers)})


def _caption(text: str, names: Iterable[str]) -> str:
    """What columns mean, with a word on those of papers."""
    last = f"{LAST_STEP}: as papers report it, blind to what the attack broke on its way"
    return f"{text}; {last}" if any(map(is_last_step, names)) else text


def _run_row(width: Result, shown: list[str]) -> list[str | Text]:
    before, after = width["before"], width["after"]
    in_torch = {CLEAN: before[CLEAN], **before["attacks"]}
    cells = [
        _pair(in_torch[name]["accuracy"] if name in in_torch else None, after["accuracy"].get(name))
        for name in (CLEAN, *shown)
    ]
    latency = [f"{row['p50_ms']:.2f} ms {row['speedup']:.1f}×" for row in width["latency"].values()]
    return [
        f"QM-{width['bits']}",
        f"{width['size_bytes'] / 1000:.0f} kB",
        cells[0],
        _pair(before["worst_case"]["accuracy"], after["worst_case"]),
        *cells[1:],
        percent(after["accuracy"]["square"]) if "square" in after["accuracy"] else "not measured",
        percent(width["label_flips"], 2),
        *latency,
    ]


def _pair(before: float | None, after: float | None) -> str:
    """What was measured before export alone has no arrow."""
    return percent(before) if after is None else f"{percent(before)} → {percent(after)}"


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
    """Accuracies with intervals, one row a network, one column an attack, the strongest first."""
    first = next(iter(results.values()))
    names = ordered(first["attacks"])
    drawn = titled(f"{first['n']} images, {threat_text(first['threat'])}, seed {first['seed']}")
    drawn.add_column("network")
    for name in (CLEAN, "worst case"):
        drawn.add_column(name, justify="right", style="bold" if name != CLEAN else None)
    for name in names:
        drawn.add_column(heading(name), justify="right")
    for network, result in results.items():
        cells = [result[CLEAN], result["worst_case"], *(result["attacks"][name] for name in names)]
        drawn.add_row(plain(network), *map(accuracy_text, cells))
    unbounded = any(not attack["bounded"] for attack in first["attacks"].values())
    drawn.caption = _caption("worst case: right under every attack within eps", names)
    drawn.caption += f"; {UNBOUNDED} not bounded by eps" if unbounded else ""
    return drawn


def attack_table(result: Result) -> Table:
    """Accuracies by attack: in torch, replayed, and attacked on the file, the last with intervals."""
    places = result["gap"]
    drawn = titled(f"{result['artifact']['name']}: {threat_text(result['threat'])}, seed {result['seed']}")
    drawn.add_column("")
    for title, place in (("in torch", "in_torch"), ("replayed", "replayed"), ("attacked", "attacked")):
        n = places[place].get("n")
        drawn.add_column(f"{title}, n={n}" if n else title, justify="right")
    cells = {CLEAN: result[CLEAN], WORST: result["worst_case"], **result["attacks"]}
    others: dict[str, Result] = {name: {} for place in places.values() for name in place if name not in (*cells, "n")}
    for name in (CLEAN, WORST, *ordered({**result["attacks"], **others})):
        shares = (percent(places[place].get(name)) for place in ("in_torch", "replayed"))
        attacked = accuracy_text(cells[name]) if name in cells else NONE
        label = plain("worst case") if name == WORST else heading(name, ", ")
        drawn.add_row(label, *shares, attacked, style="bold" if name == WORST else None)
    drawn.caption = "replayed examples were made before export: they can only overestimate robustness"
    return drawn


def allocation_table(result: Result) -> Table:
    """Bits by layer, with what each layer loses of the margin at every width that was measured."""
    unit = result["budget"]["unit"]
    loss = {(one["layer"], one["bits"]): one["margin"] for one in result["sensitivities"]}
    widths = sorted({bits for _, bits in loss})
    drawn = titled(f"bits by layer: {result['cost']:,.0f} of {result['budget']['most']:,.0f} {unit}")
    for heading in ("layer", "bits", *(f"loss at {bits}" for bits in widths)):
        drawn.add_column(heading, justify="left" if heading == "layer" else "right")
    for layer, chosen in result["bits"].items():
        drawn.add_row(plain(layer), str(chosen), *(f"{loss[layer, bits]:.3f}" for bits in widths))
    uniform = ", ".join(f"{one['bits']} bits {one['cost']:,.0f} {unit}, {one['loss']:.2f}" for one in result["uniform"])
    drawn.caption = (
        f"sum of losses {result['loss']:.2f}; uniform widths: {uniform}; of the mean margin under attack, logits"
    )
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
    drawn.caption = (
        "accuracies before export on the suite, none of bare files; stored examples can only overestimate robustness"
    )
    return drawn


def _kinds(counts: Mapping[str, int], most: int = 3) -> str:
    shown = [f"{count} {kind}" for kind, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[most:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)


def source_lines(manifest: Result) -> list[str]:
    """What was made of somebody's file before it was stored, a line each."""
    source = manifest["source"]
    changes = source["changes"] or ["stored as it came"]
    return [f"{source['name']} (sha256 {source['sha256'][:12]}): {change}" for change in changes]


def artifact_text(folder: Path) -> str:
    """One line on an artifact that was written: its size, and how it compares with torch."""
    from .runtime import LITERT, served  # and numpy, which most tables do without

    manifest = read_json(folder / "manifest.json")
    line = f"{folder}: {manifest['files'][served(manifest)]['size_bytes']:,} bytes"
    found, provider = manifest.get("parity"), manifest["target"]["provider"]
    if found == "none":
        return f"{line}, parity none: no torch network is known that it could be compared with"
    if found is None:
        return f"{line}, executed by no runtime here"
    first = f", the first in {found['first']}" if found["first"] else ""
    compared = f"{found['flips']:.2%} of {found['n']} labels flip, {found['share']:.2g} of activations differ{first}"
    if provider in LITERT:
        return f"{line}, {compared}{_kernels_text(manifest)}"
    return f"{line}, {compared}" + ("" if provider == CPU else f"; measured on {CPU}, which stands in for {provider}")


def _kernels_text(manifest: Result) -> str:
    """What ran a .tflite file; a warning where XNNPACK was to run all of it and did not."""
    from .runtime import DELEGATE, XNNPACK

    kernels: dict[str, int] = manifest["metrics"]["after_kernels"]
    ran = ", ".join(f"{count} {kind}" for kind, count in kernels.items())
    whole = kernels.get(DELEGATE) == 1 and set(kernels) <= {DELEGATE, "QUANTIZE"}  # bytes are quantised before it
    if manifest["target"]["provider"] != XNNPACK or whole:
        return f"; runs as {ran}"
    return f"; warning: expected one {DELEGATE} to run the whole file, got {ran}, which is slower"
