"""The tables of benches/README.md, each from committed results alone; `make docs` puts them between their markers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ptq_tables
import record
import study_tables
import target_tables
from markdown_tables import NOT_YET, probability, table
from rich.console import Console
from rich.table import Table

from qrobust.cli_output import TABLE_WIDTH
from qrobust.storage import read_result
from qrobust.tables import accuracy_text, percent, places_table

RESULTS = Path(__file__).resolve().parent / "results"
Result = dict[str, Any]
OLD = "before commit and outcomes were kept"
PACKAGES = ("torch", "brevitas", "onnxruntime-gpu", "onnxruntime")


def read(name: str) -> Result | None:
    """A committed result, None where there is none."""
    path = RESULTS / f"{name}.json"
    return read_result(path) if path.exists() else None


def source(name: str, result: Result, *, folder: str = "results") -> str:
    """Where a table's numbers come from; folder: of the results, as a link of the document."""
    about = _about(result)
    machine, versions = about["hardware"], {**result, **about}["versions"]
    processor = machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"
    count = None if machine.get("gpu") else machine.get("threads")
    threads = f", {count} thread{'s' * (count > 1)} in torch" if count else ""
    packages = ", ".join(f"{package} {versions[package]}" for package in PACKAGES if package in versions)
    return f"[{name}.json]({folder}/{name}.json), {_commits(result)}: {processor}{threads}; {packages}."


def _commits(result: Result) -> str:
    """Of the result, or of each seed's trainings where they were made at different ones."""
    found = dict.fromkeys(commit for commit in result.get("commits", {"": result.get("commit")}).values() if commit)
    named = [commit[:12] + (" with changes" if commit.endswith(record.DIRTY) else "") for commit in found]
    return f"commit{'s' * (len(named) > 1)} {', '.join(named)}" if named else OLD


def deployed(result: Result) -> Iterator[str]:
    """Speed against the float file, goals, what the option costs; of two networks."""
    rows = []
    for one in result["cases"]:
        for name, facts in one["artifacts"].items():
            speeds = [row for row in one["results"] if row["name"] == name]
            shares = [row.get("int8_gemm_share", row.get("int8_peak_share")) for row in speeds]
            cells = ["{speedup:.2f} ({speedup_ci95[0]:.2f}–{speedup_ci95[1]:.2f})".format(**row) for row in speeds]
            cells += ["" if share is None else f"{share:.2f}" for share in shares]
            rows.append([f"{one['network']}, {name}", *cells, f"{facts['size_bytes'] / 1e3:.0f}"])
    heads = ("batch 1", "batch 32", "of int8 GEMM, batch 1", "batch 32", "kB")
    yield table(("times as fast as the float file", *heads), rows)
    yield _goals(result)
    costs = [(one["network"], cost) for one in result["cases"] for cost in one.get("option", ())]
    if costs:
        lines = [
            (f"{name}, QM-8, batch {cost['batch']}", _slower(cost), f"{cost['logits_moved']:.2g}")
            for name, cost in costs
        ]
        yield table(("with `session.x64quantprecision`", "times as slow as without", "logits moved by"), lines)


def _goals(result: Result) -> str:
    goals = [(f"{one['network']}, {name}", goal) for one in result["cases"] for name, goal in one["goals"].items()]
    return table(
        ("goal", "at least", "measured", ""),
        [
            (name, f"{goal['at_least']:.2f}", f"{goal['measured']:.2f}", "held" if goal["held"] else "**missed**")
            for name, goal in goals
        ],
    )


def transformers(result: Result) -> Iterator[str]:
    """Speed against the faster float file, bytes and seconds of export, of every file; goals."""
    batches = sorted({row["batch"] for one in result["cases"] for row in one["results"]})
    rows = []
    for one in result["cases"]:
        for name, facts in one["files"].items():
            speeds = {row["batch"]: row for row in one["results"] if row["name"] == name}
            side = next(iter(speeds.values()))["side"]
            cells = ["{speedup:.2f} ({speedup_ci95[0]:.2f}–{speedup_ci95[1]:.2f})".format(**speeds[b]) for b in batches]
            cells += [f"{facts['size_bytes'] / 1e6:.1f}", f"{facts['export_seconds']:.1f}"]
            rows.append([f"{one['network']} at {side} pixels, {name}", *cells])
    heads = [f"batch {batch}" for batch in batches]
    yield table(("times as fast as the faster float file", *heads, "MB", "seconds of export"), rows)
    yield _goals(result)


def _slower(cost: Result) -> str:
    return "{slower:.2f} ({slower_ci95[0]:.2f}–{slower_ci95[1]:.2f})".format(**cost)


def attacks(result: Result) -> Iterator[str]:
    """Our time as a share of other packages', and both accuracies."""
    rows = []
    for name in ("pgd-20", "autoattack, robust", "autoattack, weak"):
        found = result[name]
        for other, ratio in found["ratio_of_first_to"].items():
            pair = f"{percent(found['accuracy']['qrobust'])}, {percent(found['accuracy'][other])}"
            rounds = len(found["seconds"]["qrobust"])
            rows.append((f"{name}, beside {other}", f"{ratio:.2f}", pair, str(found["n"]), str(rounds)))
    yield table(("attack", "of its time", "accuracy: ours, theirs", "n", "rounds"), rows)


PASSES = (50, 100, 200, 500, 1000, 2000)  # forward and backward, an image that is right when clean


def strong(result: Result) -> Iterator[str]:
    """The cascade beside AutoAttack; how its number falls with the passes; which parts break what."""
    rows = [
        (f"{_network(one)} ({one['model']})", f"`{one['attack']}`, seed {one['seed']}", f"{255 * one['eps']:g}/255",
         str(one["n"]), str(one["right_clean"]), *(str(one[key]) for key in ("autoattack", "right", "both")),
         *(f"{one[f'{kind} ratio']:.3f}" for kind in ("time", "passes")))
        for one in result["compared"]
    ]  # fmt: skip
    yield table(("network", "attack", "eps", "n", "right clean", "AutoAttack leaves", "it leaves", "both leave",
                 "of its time", "of its passes"), rows)  # fmt: skip
    whole = [one for one in result["compared"] if (one["attack"], one["seed"]) == ("strong", 0)]
    yield "Right after so many passes an image, of those right when clean:"
    curves = [(_network(one), str(one["right_clean"]), *(_right_after(one, k) for k in PASSES)) for one in whole]
    yield table(("network", "0", *map(str, PASSES)), curves)
    yield "Which parts break how many that those before left:"
    found = [(_network(one), ", ".join(f"{name} {n}" for name, n in one["found"].items() if n)) for one in whole]
    yield table(("network", "parts"), found)


def _network(one: Result) -> str:
    return str(one["network"].rpartition(", n ")[0])


def _right_after(one: Result, passes: int) -> str:
    """The images right once an image took so many passes on average, "" if all take fewer."""
    left, last = one["right_clean"], 0.0
    for _part, taken, right in one["curve"]:
        last = taken / one["right_clean"]
        if last > passes:
            return str(left)
        left = right
    return str(left) if last > passes / 2 else ""


def train_steps(result: Result) -> Iterator[str]:
    rows = []
    for one in result["cases"]:
        ratios = [one["ratio"][way][other] for way in _OURS for other in ("torchattacks", "plain")]
        speed = ", ".join(f"{one['images_per_second'][way]:.0f}" for way in _OURS)
        peak = ", ".join(f"{one['peak_megabytes'][way]:.0f}" for way in (*_OURS, "torchattacks"))
        name = f"{one['network']}, batch {one['batch']}, PGD-{one['steps']}"
        rows.append((name, *(f"{ratio:.2f}" for ratio in ratios), speed, peak))
    heads = ("float32: of torchattacks' time", "of the plain loop's", "bf16: of torchattacks'", "of the plain loop's")
    yield table(("step", *heads, "images/s: float32, bf16", "peak MB: float32, bf16, torchattacks"), rows)


_OURS = ("qrobust", "qrobust, bf16")


def qat_steps(result: Result) -> Iterator[str]:
    rows = [
        (f"{one['network']}, batch {one['batch']}, {name}", f"{ratio:.2f}", f"{one['ratio_of_peak'][name]:.2f}")
        for one in result["cases"]
        for name, ratio in one["ratio_to_float"].items()
        if name != "float"
    ]
    yield table(("step", "of the float step's time", "of its peak memory"), rows)


def gpu_steps(result: Result) -> Iterator[str]:
    rows = []
    for key, when in (("cases", ""), ("before_kernels", ", before quantisers were one kernel")):
        for one in result.get(key, ()):
            bits, _, form = one["kind"].partition(" ")
            name = bits if bits == "float" else f"QM-{bits}{study_tables.FORMS[form]}"
            ratio = f"{one['speedup']:.2f}" if "speedup" in one else ""
            title = f"{name}, {one['precision']}, batch {one['batch']}{when}"
            rows.append((title, ratio, f"{one['recorded']['images_per_second']:,}"))
    yield table(("step of ResNet-20, PGD-7", "times as fast as launched one by one", "images/s"), rows)


def heat_map(result: Result) -> Iterator[str]:
    rows = [
        (name, f"{result[name]['ratio_to_bare']:.2f}", f"{median(result[name]['seconds']['ours']):.1f}")
        for name in ("heat map", "low-pass sweep")
    ]
    title = f"{result['network']}, {result['side']} × {result['side']}, n = {result['n']}"
    yield table((title, "of the bare passes' time", "seconds"), rows)


def cuda(result: Result) -> Iterator[str]:
    rows = [
        (
            f"QM-{width['bits']}",
            *(accuracy_text(width["before"]["attacks"][name]) for name in ("pgd-20", "apgd-ce")),
            percent(width["after"]["accuracy"]["pgd-20"]),
            width["verdict"],
        )
        for width in result["widths"]
    ]
    yield table(
        (
            f"n = 1000; {study_tables.of_result(result)}", "PGD-20 in torch", "APGD-CE in torch",
            "PGD-20 replayed by CUDA's provider", "check",
        ),
        rows,
    )  # fmt: skip


def places(result: Result) -> Iterator[str]:
    """Worst cases of the same images in torch, replayed, and attacked on the file, as the run printed them."""
    by_place = places_table(result)
    yield NOT_YET if by_place is None else f"```text\n{printed(by_place)}\n```"


def audited(result: Result) -> Iterator[str]:
    """Networks that are claimed to be robust: what attacks leave, and which flags they raise."""
    yield table(
        ("", "eps", *AUDITED, "overestimate", "p"),
        [
            (
                f"{one['network']} ({one['claim']})",
                f"{one['eps']:g}/255",
                *(_cell(one, name) for name in AUDITED),
                "" if one["overestimate"] is None else f"{100 * one['overestimate']:+.1f}",
                "" if one["p_value"] is None else probability(one["p_value"]),
            )
            for one in result["rows"]
        ],
    )
    rows = [(one["network"], *(_flagged(one[kind]) for kind in CHECKED)) for one in result["rows"]]
    yield table(("flags", "of the printed number alone", "by default", "of all checks"), rows)
    claims = dict.fromkeys(one["claim"] for one in result["rows"])
    yield table(
        ("claim", "networks measured", "overestimates, points", *(f"flagged, {kind}" for kind in CHECKED)),
        [(claim, *_summed([one for one in result["rows"] if one["claim"] == claim])) for claim in claims],
    )


CHECKED = ("checks as printed", "default checks", "all checks")


def _summed(rows: Sequence[Result]) -> Iterator[str]:
    """Of a claim's networks: how many are measured, their overestimates, how many were flagged of those checked."""
    found = sorted(one["overestimate"] for one in rows if one["overestimate"] is not None)
    yield f"{len(found)} of {len(rows)}"
    yield ", ".join(f"{100 * one:+.1f}" for one in found) or NOT_YET
    for kind in CHECKED:
        flags = [one[kind] for one in rows if one[kind] is not None]
        yield f"{sum(bool(one) for one in flags)} of {len(flags)}" if flags else NOT_YET


AUDITED = ("clean", "pgd-20", "transfer-20", "strong", "strong, precision known", "autoattack", "worst case")


def _cell(row: Result, attack: str) -> str:
    """Nothing for an attack that the network is not under."""
    found = row.get(attack, {})
    return NOT_YET if found is None else accuracy_text(found) if found else ""


def _flagged(flags: Sequence[str] | None) -> str:
    return NOT_YET if flags is None else ", ".join(f"`{name}`" for name in flags) or "none"


def printed(*drawn: Table) -> str:
    """Tables as `qrobust run` prints them."""
    console = Console(file=io.StringIO(), width=TABLE_WIDTH)
    console.print(*drawn)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def busy(result: Result) -> Iterator[str]:
    quiet, beside = result["seconds"]["quiet"], result["seconds"]["busy"]
    verdict = "held" if result["held"] else "**missed**"
    yield table(
        ("seconds alone", "beside a busy process", "ratio", "at most", ""),
        [(f"{quiet:.0f}", f"{beside:.0f}", f"{result['ratio']:.2f}", f"{result['at_most']:.1f}", verdict)],
    )


BLOCKS: dict[str, Callable[[Result], Iterator[str]]] = {
    "deploy": deployed, "deploy_transformers": transformers, "targets": target_tables.targets, "attacks": attacks,
    "strong": strong, "train_step": train_steps, "qat_step": qat_steps, "cifar10-resnet20-cuda": cuda,
    "gpu-steps": gpu_steps, "study-training": study_tables.training,
    "study-sar": study_tables.sar, "study-sar-reduced": study_tables.sar,
    "study-fat": study_tables.fat, "study-fat-small": study_tables.fat, "study-fat-reduced": study_tables.fat,
    "ptq": ptq_tables.without_training, "heatmap": heat_map, "digits-8-bit-activations": places, "demo-busy": busy,
}  # fmt: skip


def block(name: str) -> str:
    """What stands between the markers of a result's name."""
    result = read(name)
    if result is None:
        return f"\n{NOT_YET}\n"
    return "\n" + "\n\n".join([*BLOCKS[name](result), source(name, result)]) + "\n"


def _about(result: Result) -> Result:
    """What says versions and hardware: the result, or its first part that does."""
    if "hardware" in result:
        return result
    if "cases" in result:
        return result["cases"][0]
    return next(iter(next(iter(result["seeds"].values())).values()))["result"]
