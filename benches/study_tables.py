"""The tables of what methods of training are worth, and of what two papers print beside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import record
from markdown_tables import probability, table

from qrobust.tables import accuracy_text, percent

Result = dict[str, Any]
FORMS = {
    "none": "", "identity": ", standardised weights alone", "paper": ", FAT as published",
    "normalised": ", normalised FAT", "wide": ", 8-bit activations", "best": ", 8-bit activations, distilled (RSLAD)",
}  # fmt: skip
GAIN = "each training", "mean", "95 % interval", "p (paired t-test)"
VARIANTS = {
    "at": "AT",
    "ema": "AT + average (exponential)",
    "sar": "AT + SAR (batch form)",
    "sarwa": "AT + SARWA (batch form)",
}


def of_seeds(seeds: Iterable[str]) -> str:
    return "seed " + ", ".join(seeds)


def sar(result: Result) -> Iterator[str]:
    """Accuracies by training, and what each method gains over trainings."""
    seeds = result["seeds"]
    first = next(iter(seeds.values()))
    sets, labels = first["results"]["at"]["attacks"], {n: t for n, t in VARIANTS.items() if n in first["results"]}
    rows = []
    for name, label in labels.items():
        found = [one["results"][name] for one in seeds.values()]
        rows.append((label, *_by_training(found, sets), _worst(found)))
    yield table((of_seeds(seeds), "clean", *sets, "worst case (95 % interval)"), rows)
    gains = []
    for variant in first["against_at"]:
        for key in ("clean", "worst_case"):
            pairs = [one["against_at"][variant][key] for one in seeds.values()]
            gains.append((f"{VARIANTS[variant]}, {key.replace('_', ' ')}", *_gain(pairs)))
    yield table(("against AT, points", *GAIN), gains)


def _by_training(results: Sequence[Result], attacks: Iterable[str]) -> Iterator[str]:
    """Clean accuracies, and those under each attack; one a training."""
    yield ", ".join(percent(one["clean"]["accuracy"]) for one in results)
    for attack in attacks:
        yield ", ".join(percent(one["attacks"][attack]["accuracy"]) for one in results)


def _worst(results: Sequence[Result]) -> str:
    return ", ".join(accuracy_text(one["worst_case"]) for one in results)


def _gain(pairs: Sequence[Result]) -> tuple[str, ...]:
    """Cells under `GAIN` of pairs of accuracies, one a training."""
    test = record.over_trainings([pair["first"] for pair in pairs], [pair["second"] for pair in pairs])
    each = ", ".join(f"{100 * pair['difference']:+.1f}" for pair in pairs)
    span = "{:+.1f} to {:+.1f}".format(*(100 * end for end in test["ci95"]))
    return each, f"{100 * test['difference']:+.1f}", span, f"{test['p_value']:.2f}"


def training(result: Result) -> Iterator[str]:
    """Accuracies of every way to train by training, CPU time, and what it gains over the first."""
    seeds = result["seeds"]
    lines, gains = [], []
    for name in result["rows"]:
        found = [one["results"][name] for one in seeds.values()]
        minutes = ", ".join(_minutes(one["cpu_seconds"][name]) for one in seeds.values())
        lines.append((name, *_by_training(found, ("pgd-20", "strong")), minutes))
        pairs = [one["against"][name]["worst_case"] for one in seeds.values() if name in one["against"]]
        if len(pairs) > 1:
            gains.append((f"{name}, worst case", *_gain(pairs)))
    yield table((of_seeds(seeds), "clean", "pgd-20", "strong", "minutes of CPU"), lines)
    if gains:
        yield table(("against pgd-7, points", *GAIN), gains)


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.0f}"


def fat(result: Result) -> Iterator[str]:
    """Accuracies of every row, one training a seed, and its pairs with the rows that it was compared with."""
    seeds = result["seeds"]
    names = list(dict.fromkeys(name for rows in seeds.values() for name in rows))
    sets = next(row["result"]["attacks"] for rows in seeds.values() for row in rows.values())
    lines, pairs, gains = [], [], []
    for name in names:
        found = {seed: rows[name] for seed, rows in seeds.items() if name in rows}
        results = [one["result"] for one in found.values()]
        lines.append((row_label(name), *_by_training(results, sets), _worst(results)))
        for seed, one in found.items():
            for base, against in one["against"].items():
                worst = against["worst_case"]
                counts = (f"{100 * worst['difference']:+.1f}", str(worst["gained"]), str(worst["lost"]))
                title = f"{row_label(name)}: against {row_label(base)}, seed {seed}"
                pairs.append((title, *counts, probability(worst["p_value"])))
        for base in {base: None for one in found.values() for base in one["against"]}:
            both = [one["against"][base]["worst_case"] for one in found.values() if base in one["against"]]
            if len(both) > 1:
                gains.append((f"{row_label(name)}: against {row_label(base)}", *_gain(both)))
    form = of_result(result)
    yield table((f"{of_seeds(seeds)}; {form} below 32 bits", "clean", *sets, "worst case (95 % interval)"), lines)
    yield table((f"worst case, image by image; {form}", "points", "gained", "lost", "p (McNemar)"), pairs)
    if gains:
        yield table(("worst case over trainings, points", *GAIN), gains)


def reduced_sar(result: Result, claims: Mapping[str, Result]) -> str:
    """Spectral alignment: what the paper prints, and what the study found over its trainings.

    claims: by name of `VARIANTS` what is printed, where it is.
    """
    first = next(iter(result["seeds"].values()))["results"]
    networks = {name: [one["results"][name] for one in result["seeds"].values()] for name in VARIANTS if name in first}
    pairs = {
        name: [one["against_at"][name]["worst_case"] for one in result["seeds"].values()]
        for name in first
        if name != "at"
    }
    rows = [
        (VARIANTS[name], *_beside(networks[name], claims.get(name, {}), PRINTED_SAR, pairs.get(name)))
        for name in networks
    ]
    return table(("", *(f"printed: {label}" for label in PRINTED_SAR.values()), *_found("AT")), rows)


def reduced_fat(result: Result, claims: Mapping[str, Result]) -> str:
    """Masks of FAT by width likewise; claims: by name of a row, as `study_fat.py` has them."""
    seeds = result["seeds"].values()
    rows = []
    for name in dict.fromkeys(name for one in seeds for name in one):
        found = [one[name] for one in seeds if name in one]
        base = f"{name.rpartition('-')[0]}-none"
        pairs = [one["against"][base]["worst_case"] for one in found if base in one["against"]]
        networks = [one["result"] for one in found]
        rows.append((row_label(name), *_beside(networks, claims.get(name, {}), PRINTED_FAT, pairs)))
    return table(("", *(f"printed: {label}" for label in PRINTED_FAT.values()), *_found("no FAT")), rows)


PRINTED_SAR = {"clean": "clean", "pgd-20": "PGD-20", "autoattack": "AutoAttack"}
PRINTED_FAT = {"clean": "clean", "pgd-20": "PGD-20"}


def _found(base: str) -> tuple[str, ...]:
    return "trainings", "clean", "PGD-20, last step", "worst case", f"against {base}, points", "95 % interval", "p"


def _beside(
    networks: Sequence[Result], claim: Result, printed: Mapping[str, str], pairs: Sequence[Result] | None
) -> Iterator[str]:
    """Printed numbers, then means over trainings, then what was gained over them."""
    yield from (f"{100 * claim[key]:.2f}" if key in claim else "" for key in printed)
    yield str(len(networks))
    yield percent(mean(one["clean"]["accuracy"] for one in networks))
    yield percent(mean(one["attacks"]["pgd-20"]["accuracy"] for one in networks))
    yield percent(mean(one["worst_case"]["accuracy"] for one in networks))
    yield from _gain(pairs)[1:] if pairs and len(pairs) > 1 else ("", "", "")


def shortcuts_form(shortcuts: str) -> str:
    """What residual sums of a quantised network read, as every table says it."""
    return f"{'n-bit' if shortcuts == 'n' else shortcuts} shortcuts"


def of_result(result: Result) -> str:
    """`shortcuts_form` of a result; one that does not say is from before there was another than n bits."""
    return shortcuts_form(result.get("shortcuts") or "n")


def row_label(name: str) -> str:
    """Such as "QM-4, 8-bit activations" of "qm-4-wide"."""
    _, bits, form = name.split("-")
    return f"QM-{bits}{FORMS[form]}"
