"""Does spectral alignment help beyond an average of weights, at a size that two CPU cores can train?

    python benches/study_sar.py OUT --root FOLDER [--seeds 0,1,2] [-o KEY=VALUE] [--json F]

For each seed one network is trained adversarially up to the first drop of the learning rate, with an exponential
average beside it; from that checkpoint AT, AT with this average, AT + SAR and AT + SARWA go on. All are
evaluated on the same test images and compared in pairs. What a method gains is tested over the trainings, one pair a
seed, not over images. It continues where it was stopped, and a seed's result is added to those in the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import record

from qrobust import recipe
from qrobust.attacks import named
from qrobust.runs.evaluation import Request
from qrobust.runs.run import Run
from qrobust.runs.training import training_settings
from qrobust.storage import read_json, write_json
from qrobust.train.checkpoint import load_state, save_state
from qrobust.train.step import Average
from qrobust.train.trainer import AVERAGE

TRUNK, EPOCHS = 10, 14
SETTINGS = (
    "data.train_size=10000", "model.activation=relu", "train.batch_size=128", "train.precision=auto",
    f"train.milestones=[{TRUNK}, {TRUNK + 3}]", "train.factors=[0.1, 0.1]", "train.validation.steps=10",
)  # fmt: skip
EMA = "{kind = 'exponential', warmup = true, decay = 0.995, statistics = 'copied', start = 0, deploy = true}"
VARIANTS = {
    "at": (),
    "ema": (f"train.average={EMA}",),
    "sar": ("train.sar.weight=0.1",),
    "sarwa": ("train.sar.weight=0.15", "train.sar.reference=average", "train.average.kind=equal"),
}
ATTACKS = ("pgd-20", "strong")
STATE = Path("qm-32", "checkpoint", "last.safetensors")


def opened(folder: Path, root: Path, seed: int, epochs: int, more: tuple[str, ...] = ()) -> Run:
    """A run of the study's setting."""
    settings = (*SETTINGS, f"data.root={root}", f"seed={seed}", f"train.epochs={epochs}", *more)
    return Run(recipe.load("cifar10-resnet20", settings), folder)


def branch(trunk: Path, run: Run) -> None:
    """Let a run begin where the trunk ended; epochs before the drop are the same for all variants."""
    state = load_state(trunk / STATE)
    state.settings = training_settings(run.recipe, 32)
    average = run.recipe.train.average
    if average is None or average.start != 0:  # the trunk's own average is another variant's
        state.best.pop(AVERAGE, None)
        state.tensors = {
            name: value for name, value in state.tensors.items() if not name.startswith(("average.", "best.average."))
        }
    if average is not None and average.start != 0:
        fresh = Average(run.untrained(32), average).state_dict()
        state.tensors |= {f"average.{name}": value for name, value in fresh.items()}
    save_state(run.folder / STATE, state)


def train(options: argparse.Namespace, seed: int) -> dict[str, Run]:
    """The trunk of a seed, and its variants."""
    folder = options.out / f"seed-{seed}"
    trunk = opened(folder / "trunk", options.root, seed, TRUNK, (*VARIANTS["ema"], *options.o))
    trunk.train()
    runs = {}
    for name, more in VARIANTS.items():
        runs[name] = opened(folder / name, options.root, seed, EPOCHS, (*more, *options.o))
        if not (runs[name].folder / STATE).exists():
            branch(trunk.folder, runs[name])
        runs[name].train()
    return runs


def evaluate(run: Run, n: int, path: Path) -> dict[str, Any]:
    """The result at `path`, made if it is not there."""
    if not path.exists():
        run.attack(32, [named(name, run.threat) for name in ATTACKS], Request(n, path=path))
    result: dict[str, Any] = read_json(path)
    return result


def main() -> None:
    """Train, then evaluate, then compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("-o", metavar="KEY=VALUE", action="append", default=[], help="as of qrobust run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    about = record.origin() | {"trunk": TRUNK, "epochs": EPOCHS}
    for seed in options.seeds.split(","):
        runs = train(options, int(seed))
        settings = recipe.dump(runs["at"].recipe).replace(f'root = "{options.root}"\n', "")
        found = {"recipe": settings.replace(f"seed = {seed}\n", ""), "seeds": {seed: one_seed(runs, options)}}
        result = record.with_seeds(about | found, options.json)
        if len(result["seeds"]) > 1:
            result["gains"] = gains(result["seeds"])
        if options.json:
            write_json(options.json, result)


def one_seed(runs: dict[str, Run], options: argparse.Namespace) -> dict[str, Any]:
    """Results of all variants, and the paired differences of the others to AT."""
    paths = {name: run.folder / f"{'-'.join(ATTACKS)}.json" for name, run in runs.items()}
    results = {name: evaluate(run, options.n, paths[name]) for name, run in runs.items()}
    against = {name: record.paired(paths["at"], path) for name, path in paths.items() if name != "at"}
    outcomes = {name: record.outcomes(path) for name, path in paths.items()}
    return {"results": results, "outcomes": outcomes, "against_at": against}


def gains(seeds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By variant and set of images, `record.over_trainings` of AT's accuracies and the variant's."""
    against = [found["against_at"] for found in seeds.values()]

    def gain(variant: str, name: str) -> dict[str, Any]:
        pairs = [one[variant][name] for one in against]
        return record.over_trainings([pair["first"] for pair in pairs], [pair["second"] for pair in pairs])

    return {variant: {name: gain(variant, name) for name in sets} for variant, sets in against[0].items()}


if __name__ == "__main__":
    main()
