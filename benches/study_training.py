"""Which adversarial training gives a small network most for its time, where time is short?

    python benches/study_training.py OUT --root FOLDER [--seeds 0,1,2] [--json benches/results/study-training.json]

ResNet-20 on 10,000 images of CIFAR-10 by PGD-7, by two steps and by N-FGSM, each with as many epochs as make the same
number of passes through the network, 48 an image; otherwise as recipes/cifar10-resnet20-hour.toml. Evaluated on the
same test images; what one gains over PGD-7 is tested over the trainings, one pair a seed. It continues where it was
stopped, and a
seed's result is added to those in the file.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import record

from qrobust import recipe
from qrobust.attacks import named
from qrobust.runs.evaluation import Request
from qrobust.runs.run import Run
from qrobust.storage import read_json, write_json

RECIPE = "cifar10-resnet20-hour"
SETTINGS = ("bits=[32]", "data.train_size=10000", "train.validation.every=4")
PASSES = 48  # forward and backward together, an image
ROWS = {  # passes of a step, attack in training
    "pgd-7": (8, "{kind = 'pgd', steps = 7}"),
    "two-step": (3, "{kind = 'pgd', steps = 2, step_size = '5/255'}"),
    "n-fgsm": (2, "{kind = 'n-fgsm'}"),
}
ATTACKS = ("pgd-20", "strong")


def trained(name: str, folder: Path, root: Path, seed: int) -> tuple[Run, float | None]:
    """A row's run, and the seconds of CPU that its training took in all; None where a kill hid some."""
    passes, attack = ROWS[name]
    settings = (*SETTINGS, f"data.root={root}", f"seed={seed}", f"train.epochs={PASSES // passes}")
    run = Run(recipe.load(RECIPE, (*settings, f"train.attack={attack}")), folder)
    spent, done = folder / "seconds.json", folder / "qm-32" / "train.json"
    if not done.exists():
        before, started = read_json(spent)["cpu"] if spent.exists() else 0.0, time.process_time()
        write_json(spent, {"cpu": None})  # what a kill leaves
        try:
            run.train()
        finally:
            write_json(spent, {"cpu": None if before is None else before + time.process_time() - started})
    return run, read_json(spent)["cpu"]


def one_seed(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Results of all rows and their paired differences to PGD-7."""
    found: dict[str, Any] = {"results": {}, "outcomes": {}, "cpu_seconds": {}}
    paths = {name: options.out / f"seed-{seed}" / name / "result.json" for name in ROWS}
    for name, path in paths.items():
        run, found["cpu_seconds"][name] = trained(name, path.parent, options.root, seed)
        if not path.exists():
            run.attack(32, [named(attack, run.threat) for attack in ATTACKS], Request(options.n, path=path))
        found["results"][name], found["outcomes"][name] = read_json(path), record.outcomes(path)
    found["against"] = {name: record.paired(paths["pgd-7"], paths[name]) for name in list(ROWS)[1:]}
    return found


def main() -> None:
    """Train, evaluate, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = record.origin() | {"recipe": RECIPE, "settings": SETTINGS, "rows": ROWS, "passes": PASSES}
    for seed in options.seeds.split(","):
        result = record.with_seeds(about | {"seeds": {seed: one_seed(int(seed), options)}}, options.json)
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
