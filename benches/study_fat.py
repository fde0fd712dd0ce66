"""What do standardisation, learned clips and the mask of FAT add?

    python benches/study_fat.py OUT --root FOLDER [--size small] [--float RUN] [--seeds 0] [--rows NAME,...]
                                [-o KEY=VALUE] [--json F]

A shortened table 5 of the Fourier-domain study: "small" is for two CPU cores and some hours, "full" takes all images
and a GPU. Each seed has an adversarially trained float network, which is the start of its rows:
QM-32, QM-4 and QM-2, each with no FAT, standardised weights alone ("identity"), the published mask ("paper") and
the one that starts in its useful range ("normalised"), all for the same few epochs; then QM-4 and QM-2 whose
activations keep 8 bits ("wide"), and the best recipe known: that, width by width, distilled from the float network.
All rows are evaluated on the same test images and compared in pairs with the row of their width without FAT, and with
QM-32; what a form gains is tested over the trainings. It continues where it was stopped; processes beside each other
may take different rows, once the float network is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import record

from qrobust import recipe
from qrobust.attacks import named
from qrobust.runs.evaluation import Request
from qrobust.runs.folder import FLOAT
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json
from qrobust.train import MODEL


@dataclass(frozen=True)
class Size:
    """How much is trained: `every` for all networks, `start` for the first, `row` in [train] or [quant] of a row."""

    every: tuple[str, ...]
    start: tuple[str, ...]
    row: tuple[str, ...]
    precision: str  # of the quantised rows; the float ones are of `every`


COMMON = "model.activation=relu", "train.validation.steps=10", "train.precision=auto"
SIZES = {
    "small": Size(
        (*COMMON, "data.train_size=10000", "train.batch_size=128"),
        ("epochs=14", "milestones=[10, 13]", "factors=[0.1, 0.1]"),
        ("epochs=3", "lr=0.02", "milestones=[2]", "factors=[0.1]", "batch_size=128"),
        "float32",
    ),
    "full": Size(
        (*COMMON, "train.batch_size=256", "train.validation.every=3", "evaluate.batch_size=1000"),
        ("epochs=40", "milestones=[20, 30, 37]", "factors=[0.1, 0.1, 0.5]"),
        ("epochs=6", "lr=0.04", "milestones=[3, 5]", "factors=[0.1, 0.1]", "batch_size=256"),
        "tf32",
    ),
}
FORMS = ("none", "identity", "paper", "normalised")
WIDE = ("fat=none", "activation_bits=8")
BEST = (*WIDE, "method=rslad")
CHAINS = {4: "[32, 4]", 2: "[32, 4, 2]"}
ATTACKS = ("pgd-20", "strong")
ROWS = [f"qm-{bits}-{form}" for bits in (32, 4, 2) for form in (*FORMS, *(("wide", "best") if bits < FLOAT else ()))]
Results = dict[str, dict[str, Any]]


def float_network(options: argparse.Namespace, seed: str) -> Path:
    """The weights that every row of a seed starts from: those of a finished run, or trained here."""
    if options.float is not None:
        folder = Path(options.float.replace("{seed}", seed))
    else:
        schedule = (f"train.{setting}" for setting in SIZES[options.size].start)
        settings = (*SIZES[options.size].every, *schedule, f"data.root={options.root}", f"seed={seed}")
        run = Run(recipe.load("cifar10-resnet20", settings), options.out / f"float-{seed}")
        run.train()
        folder = run.folder
    return folder / "qm-32" / f"{MODEL}.safetensors"


def row(name: str, folder: Path, seed: int, start: Path, options: argparse.Namespace) -> Run:
    """The run of a row."""
    _, width, form = name.split("-")
    size = SIZES[options.size]
    bits, quant = int(width), [f"quant.{setting}" for setting in (*size.row, f"precision={size.precision}")]
    more = [f"data.root={options.root}", f"seed={seed}", f"model.weights={start}"]
    if bits != FLOAT:
        more += ["train.epochs=0", "train.milestones=[]", "train.factors=[]"]
        quant += options.o
    if bits == FLOAT:
        more += [*(f"train.{setting}" for setting in size.row), f"train.fat={form}"]
    elif form == "wide":
        more += [f"bits=[32, {bits}]", *quant, *(f"quant.{setting}" for setting in WIDE)]
    elif form == "best":
        more += [f"bits={CHAINS[bits]}", *quant, *(f"quant.{setting}" for setting in BEST)]
    else:
        more += [f"bits=[32, {bits}]", *quant, f"quant.fat={form}"]
    return Run(recipe.load("cifar10-resnet20", (*size.every, *more)), folder)


def shortcuts(options: argparse.Namespace) -> str:
    """What residual sums of the quantised rows read."""
    settings = recipe.load("cifar10-resnet20", ("quant.epochs=1", *options.o)).quant
    assert settings is not None
    return settings.shortcuts


def evaluate(run: Run, bits: int, n: int, thorough: bool) -> Path:
    """The result of a row, made if it is not there."""
    path = run.folder / f"{'-'.join(ATTACKS)}.json"
    if not path.exists():
        run.attack(bits, [named(name, run.threat) for name in ATTACKS], Request(n, path=path, thorough=thorough))
    return path


def one_seed(folder: Path, seed: int, start: Path, rows: list[str], options: argparse.Namespace) -> Results:
    """Results of all rows, and their paired differences to the row without FAT and to QM-32."""
    runs = {name: row(name, folder / name, seed, start, options) for name in rows}
    for run in runs.values():
        run.train()
    widths = {name: int(name.split("-")[1]) for name in runs}
    paths = {name: evaluate(run, widths[name], options.n, name.endswith("best")) for name, run in runs.items()}
    results: Results = {}
    for name, path in paths.items():
        bases = {f"qm-{widths[name]}-none", "qm-32-none"} & set(paths) - {name}
        against = {base: record.paired(paths[base], path) for base in sorted(bases)}
        lines = (runs[name].folder / f"qm-{widths[name]}" / "metrics.jsonl").read_text().splitlines()
        masks = json.loads(lines[-1]).get("masks", {})
        outcomes = record.outcomes(path)
        results[name] = {"result": read_json(path), "outcomes": outcomes, "against": against, "masks": masks}
    return results


def main() -> None:
    """Train, then evaluate, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--float", help="a finished run of ResNet-20 with relu to start from; {seed} in it is replaced")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", type=lambda text: text.split(","), default=ROWS)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument(
        "-o", metavar="KEY=VALUE", action="append", default=[], help="as of qrobust run, for quantised rows"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = options.rows if options.rows != [""] else []
    settings = {"size": asdict(SIZES[options.size]), "best": BEST, "shortcuts": shortcuts(options)}
    about = record.origin() | settings
    for seed in options.seeds.split(","):
        start = float_network(options, seed)
        found = {seed: one_seed(options.out / f"seed-{seed}", int(seed), start, rows, options)}
        described = {seed: hashlib.sha256(start.read_bytes()).hexdigest()}
        if options.json:
            write_json(options.json, record.with_seeds(about | {"seeds": found, "float": described}, options.json))


if __name__ == "__main__":
    main()
