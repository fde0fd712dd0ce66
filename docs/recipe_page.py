"""recipes/README.md: every recipe with what was measured, what to add to a training, and two papers' recipes."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import study_tables
import tables

from qrobust import recipe, resources
from qrobust.recipe import Recipe

loaded = functools.cache(recipe.load)
SPECTRAL = ("clean", "pgd-20", "pgd-50", "cw-inf-30", "autoattack")
FOURIER = ("clean", "gn", "fgsm", "pgd-20", "bim-20", "tpgd-20", "cw-20")
RATIOS = ("ratio-first", "ratio-last")
STRONG = "strong"
SHOWN = 6  # recipes of a departure
LAST_STEP = ("pgd-20", "pgd-50", "bim-20", "tpgd-20", "cw-inf-30")  # what is judged there, not at the best point
PAPERS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # file: table or figure: what it is, what it prints
    "spectral": {
        "table I": ("natural training, L-models and AT, ResNet-18", ("clean", "pgd-20")),
        "table II": ("AT, SAR and SARWA, ResNet-18", SPECTRAL),
        "table III": ("WRN-34-10 on CIFAR-10", SPECTRAL),
        "table IV": ("ResNet-18 on CIFAR-10", SPECTRAL),
        "table V": ("larger networks on CIFAR-10", SPECTRAL),
        "table VI": ("ResNet-18 on CIFAR-100", SPECTRAL),
        "table VII": ("ResNet-18 on Tiny ImageNet", SPECTRAL),
        "figure 9": ("distances of SAR, no numbers printed", ("clean", "pgd-20")),
        "figure 10": ("weights of SAR and SARWA, no numbers printed", ("clean", "pgd-20")),
        "equation 3": ("SAR per sample, beside the numbers of table II", SPECTRAL),
    },
    "fourier": {
        "table 1": ("without low-pass filter", FOURIER),
        "table 2": ("batch sizes", FOURIER),
        "table 3": ("mixed images", FOURIER),
        "table 4": ("networks", FOURIER),
        "table 5": ("bit widths", FOURIER),
        "figure 5": ("low to high frequencies of the first activation", RATIOS),
    },
}
LABELS = {
    "clean": "clean", "gn": "GN", "fgsm": "FGSM", "pgd-20": "PGD-20", "pgd-50": "PGD-50", "bim-20": "BIM-20",
    "tpgd-20": "TPGD-20", "cw-inf-30": "C&W (L-inf)", "cw-20": "CW-20 (L2)", "autoattack": "AutoAttack",
    "strong": "strong", "ratio-first": "R, first epoch", "ratio-last": "R, last epoch",
}  # fmt: skip
INGREDIENTS_TEXT = """\
## What to add to a training

Only what is said of N-FGSM beside PGD-7 is measured here, in one training of each: all else is what the literature
named says of float networks on CIFAR-10, and where a number stands, AutoAttack's accuracy there. Each is a switch;
`sar` (SAR, SARWA) and `awp` go on top of any.

- **On any budget**, since it costs next to nothing: the average of weights from the first step, deployed,
  `average = {kind = "exponential", warmup = true, decay = 0.995, statistics = "copied", start = 0, deploy = true}`
  (Rebuffi et al., arXiv 2103.01946; in the FastAT benchmark ResNet-18 goes from 44.3 to 50.5 % by an average),
  `nesterov = true`, `decay = "matrices"` and `shape = "one-cycle"`. A decay of 0.9995 is for many more steps.
- **Hours of a few cores**: two passes a step instead of eleven, `attack = {kind = "n-fgsm"}`: in as many passes a
  ResNet-20 on 10,000 images keeps 30.8 % under `strong`, by PGD-7 17.8 %
  ([benches](../benches/README.md#ways-of-adversarial-training); de Jorge et al., arXiv 2202.01181: PreActResNet-18 at
  47.8 %). A small network learns more of a large robust one: `method = "rslad"` with a
  table `teacher` (Zi et al., arXiv 2108.07969).
- **A day of a GPU**: `attack = {steps = 10}`, `method = "trades"`, `awp = {gamma = 0.005}` (Wu et al., arXiv
  2004.05884; ResNet-18 at 51.6 %).
- **Days, and generated images at hand**: a table `extra` with a share of 0.7 to 0.8, large batches and several times as
  many steps (Gowal et al., arXiv 2110.09468; Wang et al., arXiv 2302.04638: 7 to 10 points). That is another setting:
  such numbers stand in a column of their own.
- **ImageNet-size images**: `data.resized_crop`, `optimizer = "adamw"`, and weights of a natural training to start from
  (Singh et al., arXiv 2303.01870).

These are keys of `[train]`; `average`, `nesterov`, `decay`, `shape`, `awp` and `teacher` stand in `[quant]` too.
Quantised networks learn from extra images likewise, and from the run's float network where `method` has a teacher and
none is named."""
PAPERS_TEXT = """\
As `spectral/NAME` and `fourier/NAME` there is a recipe for every row that can be trained of the tables of two papers:
*A Spectral Perspective towards Understanding and Improving Adversarial Robustness* and *What Do Adversarially trained
Neural Networks Focus: A Fourier Domain-based Study*, and for the networks behind their figures. They need a GPU, and
the data set in `data/` or `-o data.root=FOLDER` (CIFAR can be fetched: `-o data.download=true`). Columns with
*measured* are filled from `benches/results/NAME.json`; the others are what the paper prints, in percent.

- The papers judge most attacks at their last step, so these columns overestimate robustness; they are there to be
  compared with the papers. The number of a network is `strong`, which stands beside them.
- SAR has two forms: per sample, as equation 3 has it (*sample form*), and over the whole batch, as the authors'
  earlier code has it (*batch form*). A row names the form that its recipe takes. That the paper's numbers were made
  with the batch form is an inference.
- Of a quantised network a row names what its residual sums read: *float shortcuts*, as the papers have them, *int8*, or
  *n* bits.
- A network that a paper has in several tables has one recipe and stands in each, with the numbers printed there. For
  ResNet-20 of the Fourier-domain study these are three sets, 1.8 points apart in clean accuracy.
- Accuracies on filtered images belong to evaluation; they are in the recipes' `claim`.
- CW-20 (L2) is not bounded by eps.
- Figures 3 to 8 of the Fourier-domain study and 2 to 7 of the other are drawn by `qrobust analyze`, of
  `fourier/cifar10-resnet20-natural` and `-at`, and of table I's networks.
- The spectral perspective's caption of figure 7 counts four data sets; its text and tables name three. SVHN, or another
  fourth, is named nowhere, its appendix included, and has no recipe."""
PAPERS_HEAD = "## Recipes of two papers"
REDUCED_TEXT = """\
## Reduced: what the papers ask, at a size that two cores train

Not the papers' numbers, and in no table with them as measured: ResNet-20 on 10,000 images of CIFAR-10, fourteen epochs
of PGD-7, so all accuracies are lower, and only what a method gains can be laid beside what is *printed*, in points.
Accuracies are means over trainings from different seeds; what is gained is tested over these trainings, by a paired
t-test of the worst case of all attacks of a row. `benches/study_sar.py` and `benches/study_fat.py` train and go on
where they stopped; [benches/README.md](../benches/README.md#spectral-alignment) has every training."""
REDUCED_SAR = {
    "at": "spectral/cifar10-resnet18-at", "sar": "spectral/cifar10-resnet18-at-sar",
    "sarwa": "spectral/cifar10-resnet18-at-sarwa",
}  # fmt: skip
REDUCED_FAT = {  # row: recipe, and what its claim calls it
    "qm-4-none": ("fourier/cifar10-resnet20-qm", "QM-4"),
    "qm-4-paper": ("fourier/cifar10-resnet20-qm-fat", "QM-4 + FAT"),
    "qm-2-none": ("fourier/cifar10-resnet20-qm", "QM-2"),
    "qm-2-paper": ("fourier/cifar10-resnet20-qm-fat", "QM-2 + FAT"),
}


def recipe_table() -> str:
    """Each recipe with what was measured; empty where nothing was."""
    lines = [
        "# Recipes",
        "",
        "`qrobust run NAME` runs one, `-o key=value` changes a value, `extends` builds on another. `NAME.toml` is one,",
        "`spectral.toml` and `fourier.toml` are each a paper's, as [variants](../docs/recipe.md#files-of-recipes).",
        "",
        "Measured numbers come from the result files in `benches/results/`; this table is generated by `make docs`.",
        "Accuracies on n test images, with Wilson intervals, of one training each; the worst case is over the bounded",
        "attacks named, PGD-20 at its last step. Shortcuts: what residual sums read, n bits where layers read it too.",
        "`*`: measured before commit and outcomes were kept. Without numbers: not run as a whole here.",
        "",
        "| recipe | network | n | clean | PGD-20, last step | worst case | of | file | what it is |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in resources.listing("recipes"):
        if "/" not in name:  # the papers' have tables of their own
            lines += _recipe_rows(name, found.table["description"])
    return (
        "\n".join([*lines, "", INGREDIENTS_TEXT, "", *_reduced(), "", PAPERS_HEAD, "", PAPERS_TEXT, *_paper_tables()])
        + "\n"
    )


def _reduced() -> Iterator[str]:
    """What two cores measured of the papers' methods, beside what is printed."""
    claims = dict(_claims())
    yield from (REDUCED_TEXT, "", "Spectral alignment; printed: ResNet-18, 50,000 images.", "")
    aligned = {name: claims[one] for name, one in REDUCED_SAR.items()}
    yield _studied("study-sar", study_tables.reduced_sar, aligned)
    yield from ("", "Masks of FAT at 4 and 2 bits of weights and activations, float shortcuts; printed: ResNet-20.", "")
    masked = {row: claims[one][label] for row, (one, label) in REDUCED_FAT.items()}
    yield _studied("study-fat-reduced", study_tables.reduced_fat, masked)


def _studied(name: str, table: Callable[[Any, dict[str, Any]], str], claims: dict[str, Any]) -> str:
    result = tables.read(name)
    if result is None:
        return tables.NOT_YET
    said = tables.source(name, result, folder="../benches/results")
    return f"{table(result, claims)}\n\n{said}"


def _paper_tables() -> list[str]:
    """What each paper has otherwise; one table for each of its own: what it prints beside what was measured."""
    lines = []
    for file, printed_there in PAPERS.items():
        rows = [(name, claim) for name, claim in _claims() if name.startswith(f"{file}/")]
        paper = rows[0][1]["source"].partition(", table")[0]
        lines += ["", f"## {paper}: where its recipes depart", "", *_departures([name for name, _ in rows])]
        for printed, (about, keys) in printed_there.items():
            measured = () if keys == RATIOS else (*keys, STRONG)
            heads = [*(LABELS[key] for key in keys), *(["n"] if measured else []), *map(_measured_head, measured)]
            lines += ["", f"## {paper}, {printed}: {about}", "", f"| recipe | {' | '.join(heads)} |"]
            lines.append("|" + "---|" * (len(heads) + 1))
            for name, claim in rows:
                if printed in places(claim["source"]):
                    lines += _claim_rows(name, claim, printed, keys, measured)
    return lines


def _measured_head(key: str) -> str:
    return f"{LABELS[key]}, {'last step, ' if key in LAST_STEP else ''}measured"


def places(source: str) -> list[str]:
    """Tables, figures and equations that a claim names.

    >>> places("A paper, tables I, II; figure 9")
    ['table I', 'table II', 'figure 9']
    """
    found = re.findall(r"(table|figure|equation)s? (\w+(?:, \w+)*)", source)
    return [f"{kind} {number}" for kind, numbers in found for number in numbers.split(", ")]


def _departures(names: list[str]) -> Iterator[str]:
    """A row for each departure: its recipes, and what it is."""
    stated: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for key, text in loaded(name).departures.items():
            stated.setdefault((key, text), []).append(name.partition("/")[2])
    yield from ("| departure | recipes | what |", "|---|---|---|")
    for (key, text), of in stated.items():
        shown = [*(f"`{name}`" for name in of[:SHOWN]), *([f"{len(of) - SHOWN} more"] if len(of) > SHOWN else [])]
        yield f"| {key} | {'all' if len(of) == len(names) else ', '.join(shown)} | {text} |"


def _claims() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and claim of every recipe that has one of its own."""
    for name, found in resources.listing("recipes"):
        claim = found.table.get("claim")
        if claim is not None:
            yield name, claim


def _claim_rows(
    name: str, claim: dict[str, Any], printed: str, keys: tuple[str, ...], measured: tuple[str, ...]
) -> Iterator[str]:
    """A row for each network that the recipe makes and the paper has: `QM-n …` in the claim, or the one.

    printed: the table or figure. keys, measured: columns of the paper's numbers and of ours.
    """
    networks = {label: numbers for label, numbers in claim.items() if label.startswith("QM-")}
    own = {key: value for key, value in claim.items() if key in keys} | claim.get(printed, {})
    for label, numbers in (networks or {"": own}).items():
        bits = int(label[3:].partition(" ")[0]) if label else 32
        before = _before(name, bits)
        cells = [_printed(key, numbers[key]) if key in numbers else "" for key in keys]
        if measured:
            cells += [str(before.get("n", "")), *_measured(before, measured)]
        title = ", ".join(filter(None, (f"`{name}`", label, _form(loaded(name), bits))))
        yield f"| {title} | {' | '.join(cells)} |"


def _form(found: Recipe, bits: int) -> str:
    """Which of the forms that numbers depend on a network of a recipe has."""
    if bits < 32 and found.quant is not None:
        return study_tables.shortcuts_form(found.quant.shortcuts)
    return f"SAR in {found.train.sar.form} form" if found.train.sar is not None else ""


def _printed(key: str, value: float) -> str:
    return f"{value:.2f}" if key in RATIOS else f"{100 * value:.2f}"


def _before(name: str, bits: int) -> dict[str, Any]:
    """What was measured on the torch network of a width; nothing where no result is committed."""
    widths = (tables.read(name) or {"widths": []})["widths"]
    return next((width["before"] for width in widths if width["bits"] == bits), {})


def _measured(before: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    cells = {"clean": before.get("clean"), **before.get("attacks", {})}
    return [_accuracy(cells[key]) if cells.get(key) else "" for key in keys]


def _recipe_rows(name: str, about: str) -> list[str]:
    found = tables.read(name)
    if found is None:
        return [f"| `{name}` | | | | | | | | {about} |"]
    label = f"`{name}`{'' if 'outcomes' in found else ' *'}"
    form = study_tables.of_result(found)
    return [
        _row(label if i == 0 else "", width, about if i == 0 else "", form if width["bits"] < 32 else "")
        for i, width in enumerate(found["widths"])
    ]


def _row(label: str, width: dict[str, Any], about: str, form: str) -> str:
    before = width["before"]
    cells = (before["clean"], before["attacks"].get("pgd-20"), before["worst_case"])
    numbers = " | ".join(_accuracy(cell) if cell else "" for cell in cells)
    attacks = ", ".join(name for name, found in before["attacks"].items() if found["bounded"])
    size = f"{width['size_bytes'] / 1000:.0f} kB"
    network = f"QM-{width['bits']}{form and f', {form}'}"
    return f"| {label} | {network} | {before['n']} | {numbers} | {attacks} | {size} | {about} |"


def _accuracy(cell: dict[str, Any]) -> str:
    low, high = cell["ci95"]
    return f"{cell['accuracy']:.1%} ({low:.1%}–{high:.1%})"
