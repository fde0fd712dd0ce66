"""The result of a race for people: two tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..progress import plain, titled

HEADINGS = ("p50 ms", "p90 ms", "p99 ms", "images/s", "faster than twin", "95 % interval", "of int8 GEMM")
FACTS = ("kB", "memory MB", "load ms", "clean %", "worst case %", "computes in")


def timings(result: dict[str, Any]) -> Table:
    """One row for each artifact, batch size and thread count; the scenario's metric is starred."""
    metric = {"p50_ms": 0, "p90_ms": 1, "p99_ms": 2, "images_per_second": 3}[result["scenario"]["metric"]]
    drawn = titled(f"{result['hardware']['cpu']}; twin: {result['twin']}")
    for heading in ("artifact", "batch", "threads"):
        drawn.add_column(heading, justify="left" if heading == "artifact" else "right", no_wrap=True)
    for index, heading in enumerate(HEADINGS):
        drawn.add_column(f"{heading} *" if index == metric else heading, justify="right")
    for row in result["results"]:
        drawn.add_row(plain(row["name"]), str(row["batch"]), str(row["threads"] or "all"), *_times(row))
    harness = f"timing itself takes {result['harness_us']:.1f} µs a call"
    drawn.caption = f"* the scenario's metric; {harness}; int8 GEMM: onnxruntime's own"
    return drawn


def facts(result: dict[str, Any]) -> Table:
    """One row for each artifact: what does not depend on the load."""
    drawn = Table()
    for heading in ("artifact", *FACTS, "nodes that ran"):
        drawn.add_column(heading, justify="right" if heading in FACTS[:-1] else "left")
    for name, one in result["artifacts"].items():
        memory = one["memory_bytes"]
        drawn.add_row(
            plain(name),
            f"{one['size_bytes'] / 1e3:.1f}",
            "-" if memory is None else f"{memory / 1e6:.1f}",
            f"{one['load_ms']:.1f}",
            f"{100 * one['clean_accuracy']:.1f}",
            f"{100 * one['worst_case']:.1f}",
            plain(one["compute_type"] or "-"),
            plain("; ".join(f"{provider}: {_kinds(kinds)}" for provider, kinds in one["executed"].items())),
        )
    drawn.caption = "accuracies before export on the suite; stored examples can only overestimate robustness"
    return drawn


def _times(row: dict[str, Any]) -> list[str]:
    low, high = row["speedup_ci95"]
    share = row.get("int8_gemm_share")  # version 0.1.0 had another name for it
    return [
        *(f"{row[key]:.3f}" for key in ("p50_ms", "p90_ms", "p99_ms")),
        f"{row['images_per_second']:,.0f}",
        f"{row['speedup']:.2f} ×",
        f"{low:.2f}–{high:.2f}",
        "-" if share is None else f"{100 * share:.0f} %",
    ]


def _kinds(counts: dict[str, int], most: int = 3) -> str:
    shown = [f"{count} {kind}" for kind, count in list(counts.items())[:most]]
    rest = sum(list(counts.values())[most:])
    return ", ".join([*shown, f"{rest} others"] if rest else shown)
