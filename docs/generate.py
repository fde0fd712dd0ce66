"""Write the generated documents: docs/cli.md from the command line; keys of recipes, targets and scenarios from their
schema; docs/reference.md from docstrings; the tables of results in README.md, docs/audit.md, docs/checking.md,
docs/demo.svg, recipes/README.md and benches/README.md from committed results.

Run from the repository root: python docs/generate.py (or `make docs`). The tests compare the files with this.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrobust import recipe, resources
from qrobust.attacks import registry as attack_registry
from qrobust.bench.measure import Scenario
from qrobust.export.target import Target
from qrobust.headline import headlines
from qrobust.recipe import Recipe
from qrobust.runtime import wilson
from qrobust.tables import attacks_shown, heading, headline_table, places_table, run_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benches" / "results"
sys.path[:0] = [str(RESULTS.parent), str(ROOT / "docs")]
import functions  # noqa: E402  (scripts, no package)
import keys as key_tables  # noqa: E402  (scripts, no package)
import tables as bench_tables  # noqa: E402

loaded = functools.cache(recipe.load)
COLOURS = ("#4c78a8", "#72b7b2", "#eeca3b", "#e45756", "#9d755d", "#b279a2", "#54a24b", "#ff9da6")
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

None of this is measured here yet: it is what the literature named says of float networks on CIFAR-10, and where a
number stands, AutoAttack's accuracy there. Each is a switch; `sar` (SAR, SARWA) and `awp` go on top of any.

- **On any budget**, since it costs next to nothing: the average of weights from the first step, deployed,
  `average = {kind = "exponential", warmup = true, decay = 0.995, statistics = "copied", start = 0, deploy = true}`
  (Rebuffi et al., arXiv 2103.01946; in the FastAT benchmark ResNet-18 goes from 44.3 to 50.5 % by an average),
  `nesterov = true`, `decay = "matrices"` and `shape = "one-cycle"`. A decay of 0.9995 is for many more steps.
- **Hours of a few cores**: two passes a step instead of eleven, `attack = {kind = "n-fgsm"}` (de Jorge et al., arXiv
  2202.01181; PreActResNet-18 at 47.8 %). A small network learns more of a large robust one: `method = "rslad"` with a
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
FILES_TEXT = """\
## Files of recipes

A name (`digits`) or a path (`my/recipe.toml`) stands for a recipe; a path wins. Beside the keys below a file may have

- `description`: one line, for `qrobust recipes`.
- `extends = "NAME"`: whose keys hold where the file has none of its own. Tables are merged, a list is replaced; `name`,
  `description` and `claim` are not taken over, `departures` only within a file. It is looked for among the file's
  variants, then beside the file, then among those of `qrobust recipes`.
- `[variants.NAME]`: many recipes in one file, each over the keys outside of them, or over what it `extends`. Of
  `recipes/spectral.toml`, `spectral/NAME` is one; of your own, `my/file.toml#NAME`.

```toml
extends = "digits"

[variants.short]
train = {epochs = 10, milestones = [6, 9]}

[variants.shorter]
extends = "short"
train.attack.steps = 3
```

[Targets](../export/README.md) and scenarios are read the same way. Here, what is read becomes `recipe.toml` of the run
folder, every key spelt out.

## Keys

A table below stands for each TOML table. What is *required* has no default; a key without one may be left out, and its
meaning says what holds then. Lengths and positions of pixels are in [0, 1]; epochs are counted from 0.

"""
VERBS = (
    "init", "run", "train", "ptq", "allocate", "eval", "compare", "analyze", "export", "bench", "check", "attack",
    "report", "recipes", "targets", "zoo", "doctor",
)  # fmt: skip
ZOO = ("zoo list", "zoo get", "zoo push")


def cli_reference() -> str:
    """Every command's help, as a reader's terminal of 100 columns shows it."""
    parts = ["# Command line\n\nGenerated by `make docs`.\n"]
    for verb in ("", *VERBS, *ZOO):
        title = f"qrobust {verb}".strip()
        parts.append(f"## {title}\n\n```\n{_help(verb)}```\n")
    return "\n".join(parts)


def readme() -> str:
    """README.md with the demo's tables between its markers, as `qrobust run` prints them."""
    drawn = [one for one in (headline_table(_demo()), run_table(_demo()), places_table(_demo())) if one is not None]
    block = bench_tables.printed(*drawn)
    told = "One training of each network."
    said = bench_tables.source("digits", _demo(), folder="benches/results")
    return _between("README.md", "demo", f"```text\n{block}\n```\n\n{told} {said}")


def checking() -> str:
    """docs/checking.md with the table of planted faults between its markers."""
    result = json.loads((RESULTS / "planted.json").read_text())
    lines = ["| fault, size | planted in | no baseline | with a baseline | largest drop |", "|---|---|---|---|---|"]
    for row in result["planted"]:
        fault = row["fault"] + (f", {row['size']}" if row["size"] is not None else "")
        where = "file and suite" if row["how"] == "suite too" else "file"
        said = " | ".join(_finding(row[kind]) for kind in ("alone", "baseline"))
        lines.append(f"| {fault} | {where} | {said} | {100 * row['baseline']['drop']:.1f} |")
    seeds, wrong = result["false_alarms"]["seeds"], max(result["false_alarms"]["alarms"].values())
    told = f"{wrong} false alarms (95 % interval up to {wilson(wrong, seeds)[1]:.1%})"
    lines += ["", f"{seeds} exports of an unchanged network, each with a seed of its own: {told}."]
    lines += ["", bench_tables.source("planted", result, folder="../benches/results")]
    return _between("docs/checking.md", "planted", "\n".join(lines))


def audit() -> str:
    """docs/audit.md with the tables of what was measured between its markers."""
    result = bench_tables.read("audit")
    if result is None:
        return _between("docs/audit.md", "audit", bench_tables.NOT_YET)
    parts = [*bench_tables.audited(result), bench_tables.source("audit", result, folder="../benches/results")]
    return _between("docs/audit.md", "audit", "\n\n".join(parts))


def measuring() -> str:
    """benches/README.md with the tables of all results between their markers."""
    text = (RESULTS.parent / "README.md").read_text()
    for name in bench_tables.BLOCKS:
        text = _filled(text, name, bench_tables.block(name))
    return _filled(text, "scenario", "\n".join(key_tables.rows(Scenario)))


def _finding(found: dict[str, Any]) -> str:
    """Which limits a check found broken; refused: exit code 2."""
    return ", ".join(f"`{name}`" for name in found["broken"]) or ("refused" if found["exit"] == 2 else "passes")


def own() -> str:
    """docs/own.md with the table of networks between its markers."""
    result = json.loads((RESULTS / "networks.json").read_text())
    names = dict.fromkeys(key.rpartition("-")[0] for key in result["rows"])
    lines = ["| network | pixels | integers | W8A8, kB | W4A8, kB |", "|---|--:|--:|--:|--:|"]
    for name in names:
        rows = [result["rows"][f"{name}-w{bits}a8"] for bits in (8, 4)]
        kilobytes = (f"{row['bytes'] / 1000:,.0f}" if row["passed"] else row["failed"] for row in rows)
        lines.append(f"| {name} | {rows[0]['size']} | {rows[0]['integer_share']:.1%} | {' | '.join(kilobytes)} |")
    passed = sum(row["passed"] for row in result["rows"].values())
    lines += ["", f"{passed} of {len(result['rows'])} passed."]
    lines += ["", bench_tables.source("networks", result, folder="../benches/results")]
    return _between("docs/own.md", "networks", "\n".join(lines))


def _between(path: str, name: str, block: str) -> str:
    """A document with a block between the markers of a name."""
    return _filled((ROOT / path).read_text(), name, block)


def _filled(text: str, name: str, block: str) -> str:
    marked = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(marked, lambda found: f"{found[1]}{block}\n{found[2]}", text, flags=re.S)


def picture() -> str:
    """The demo's accuracies as bars: clean, in torch under each attack of its tables, under Square on the runtime, and
    the verdict's.
    """
    result = _demo()
    widths, eps = result["widths"], result["threat"]["eps"] * 255
    names = attacks_shown(widths[0])
    series = ["clean", *(str(heading(name, ", ")) for name in names), "Square, on the runtime", "lowest of any place"]
    parts = [_text(20, 28, f"Accuracy on digits, eps {eps:g}/255: what each attack leaves", size=15)]
    for index, label in enumerate(series):
        left, top = 20 + 190 * (index % 4), 42 + 18 * (index // 4)
        parts.append(f'<rect x="{left}" y="{top}" width="12" height="12" fill="{COLOURS[index]}"/>')
        parts.append(_text(left + 17, top + 11, label))
    for group, (width, verdict) in enumerate(zip(widths, headlines(widths), strict=True)):
        lowest = verdict.number.accuracy if verdict.number else None
        parts += _bars(30 + 255 * group, width, names, lowest)
    body = "\n".join(parts)
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 320" role="img" aria-label="demo accuracies">'
    return f'{head}\n<rect width="800" height="320" fill="#ffffff"/>\n{body}\n</svg>\n'


def _bars(left: int, width: dict[str, Any], names: list[str], lowest: float | None) -> list[str]:
    before, after = width["before"], width["after"]["accuracy"]
    in_torch = (before["attacks"].get(name, {}).get("accuracy") for name in names)  # a suite may hold others
    shares = [before["clean"]["accuracy"], *in_torch, after.get("square"), lowest]
    step, drawn = 220 // len(shares), []
    for index, share in enumerate(shares):
        if share is None:
            continue
        x, height, wide = left + step * index, round(170 * share, 1), step - 6
        drawn.append(f'<rect x="{x}" y="{270 - height:.1f}" width="{wide}" height="{height}" fill="{COLOURS[index]}"/>')
        drawn.append(_text(x + step / 2 - 3, 265 - height, f"{100 * share:.0f}", anchor="middle"))
    label = f"QM-{width['bits']}, {width['size_bytes'] / 1000:.0f} kB"
    return [*drawn, _text(left + 107, 292, label, size=14, anchor="middle")]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    style = f'font-family="sans-serif" font-size="{size}" text-anchor="{anchor}" fill="#1c1c1c"'
    return f'<text x="{x}" y="{y:.1f}" {style}>{text}</text>'


def _demo() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((RESULTS / "digits.json").read_text())
    return result


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
    return "\n".join([*lines, "", INGREDIENTS_TEXT, "", PAPERS_HEAD, "", PAPERS_TEXT, *_paper_tables()]) + "\n"


def _paper_tables() -> list[str]:
    """What each paper has otherwise; one table for each of its own: what it prints beside what was measured."""
    lines = []
    for file, tables in PAPERS.items():
        rows = [(name, claim) for name, claim in _claims() if name.startswith(f"{file}/")]
        paper = rows[0][1]["source"].partition(", table")[0]
        lines += ["", f"## {paper}: where its recipes depart", "", *_departures([name for name, _ in rows])]
        for printed, (about, keys) in tables.items():
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
        return bench_tables.shortcuts_form(found.quant.shortcuts)
    return f"SAR in {found.train.sar.form} form" if found.train.sar is not None else ""


def _printed(key: str, value: float) -> str:
    return f"{value:.2f}" if key in RATIOS else f"{100 * value:.2f}"


def _before(name: str, bits: int) -> dict[str, Any]:
    """What was measured on the torch network of a width; nothing where no result is committed."""
    result = RESULTS / f"{name}.json"
    widths = json.loads(result.read_text())["widths"] if result.exists() else []
    return next((width["before"] for width in widths if width["bits"] == bits), {})


def _measured(before: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    cells = {"clean": before.get("clean"), **before.get("attacks", {})}
    return [_accuracy(cells[key]) if cells.get(key) else "" for key in keys]


def recipe_reference() -> str:
    """How files of recipes are read, and every key of one, from the schema that checks it."""
    names = inspect.cleandoc(attack_registry.__doc__ or "").partition("\n\n")[2]
    head = 'Generated by `make docs`. Fractions may be written as `"8/255"`.'
    parts = ["# Recipe keys", head, FILES_TEXT + key_tables.sections(Recipe, "###"), "## Networks"]
    parts += [key_tables.network_table(), "## Names of attacks", names]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def target_reference() -> str:
    """export/README.md with a target's keys between their markers."""
    return _between("export/README.md", "keys", key_tables.sections(Target, "####", resources.defaults("export")))


def _recipe_rows(name: str, about: str) -> list[str]:
    result = RESULTS / f"{name}.json"
    if not result.exists():
        return [f"| `{name}` | | | | | | | | {about} |"]
    found = json.loads(result.read_text())
    label = f"`{name}`{'' if 'outcomes' in found else ' *'}"
    form = bench_tables.of_result(found)
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


def _help(verb: str) -> str:
    command = [sys.executable, "-m", "qrobust", *verb.split(), "--help"]
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain, cwd=ROOT)
    lines = (line.rstrip() for line in done.stdout.splitlines())
    return "\n".join(lines).strip("\n").replace("python -m qrobust", "qrobust") + "\n"


DOCUMENTS = {
    ROOT / "README.md": readme,
    ROOT / "docs" / "audit.md": audit,
    ROOT / "docs" / "checking.md": checking,
    ROOT / "docs" / "own.md": own,
    ROOT / "docs" / "cli.md": cli_reference,
    ROOT / "docs" / "reference.md": functions.reference,
    ROOT / "docs" / "demo.svg": picture,
    ROOT / "docs" / "recipe.md": recipe_reference,
    ROOT / "export" / "README.md": target_reference,
    ROOT / "recipes" / "README.md": recipe_table,
    ROOT / "benches" / "README.md": measuring,
}

if __name__ == "__main__":
    for path, write in DOCUMENTS.items():
        path.write_text(write())
        print(path.relative_to(ROOT))
