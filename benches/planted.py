"""Faults planted in a deployed file: what `qrobust check` catches, at what size, and how often it cries wolf.

    python benches/planted.py FOLDER [--seeds 50] [--json benches/results/planted.json]

FOLDER keeps networks of the recipe `digits`: the robust ones, one trained without attack, one on digits in colour.
Each fault is an artifact of somebody who exported wrongly: its manifest agrees with it. "file": the suite is the good
network's, as torch judged it before the fault; "suite too": the fault was there before, so that labels, or adversarial
examples too, are the faulty network's own, and a baseline alone can tell. All checks have default settings.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import faults
import numpy as np
import record
from faults import BITS, Plant

from qrobust import data, recipe, runtime
from qrobust.attacks import Attack, named
from qrobust.export.artifact import Contents, make_suite, write_artifact
from qrobust.recipe import Recipe
from qrobust.runs.run import Run
from qrobust.storage import write_json

N = 300  # images of a suite
QUICK = ("pgd-20", "cw-inf-20x2")
REPEATS = 5  # of a fault that is drawn
SHARES, PERCENTS, EPSILONS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.5, 1.0, 2.0, 5.0, 10.0), (1e-4, 1e-3, 1e-2, 1e-1)


# Networks and artifacts


def train(folder: Path, settings: Recipe) -> Run:
    """The trained run in a folder; what is there is not trained again."""
    run = Run(settings, folder)
    run.train()
    return run


def robust(overrides: Sequence[str] = ()) -> Recipe:
    return recipe.load("digits", overrides)


def natural(overrides: Sequence[str] = ()) -> Recipe:
    """The same network, trained without attack to the same clean accuracy."""
    table = recipe.load("digits", overrides).model_dump(mode="json", exclude_none=True)
    del table["train"]["sar"]
    table["train"]["method"] = "natural"
    return recipe.parse(table | {"bits": [32, BITS]}, source="natural")


def colour(folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Digits in ink, even ones red and odd ones blue: three channels, whose order says something."""
    arrays = {}
    digits = data.load(data.DataSettings("digits", validation=0.0))
    for name, part in (("train", digits.train), ("test", digits.test)):
        ink = np.where((part.y.numpy() % 2 == 0)[:, None], [1.0, 0.5, 0.25], [0.25, 0.5, 1.0])
        arrays[f"x_{name}"] = np.rint(part.x.numpy() * ink[:, :, None, None]).astype(np.uint8)
        arrays[f"y_{name}"] = part.y.numpy()
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "colour.npz", **arrays)
    more = ("data.name=npz", f"data.root={folder / 'colour.npz'}", f"bits=[32,{BITS}]")
    return recipe.load("digits", (*overrides, *more))


def export(run: Run, place: Path, *, bits: int = BITS, seed: int = 0, attacks: Sequence[Attack] = ()) -> Path:
    """The artifact of a width; seed: of the suite's attacks, which are the recipe's unless some are given."""
    network, images = run.network(bits), run.dataset.test.take(slice(0, N))
    chosen = attacks or run.suite_attacks
    suite = make_suite(network, images, attacks=chosen, threat=run.threat, seed=seed, float_model=run.float_model(bits))
    contents = Contents(f"{run.recipe.name}-qm-{bits}", bits, seed, run.threat, {}, suite, {})
    write_artifact(place, network, run.dataset, run.target, contents)
    return place


def pin(good: Path) -> Path:
    """The baseline of an artifact, beside it."""
    path = good.with_suffix(".json")
    report = runtime.check(runtime.Artifact.load(good))
    if runtime.conclude(report, {"baseline": path}, "the good artifact") != 0:
        raise SystemExit("expected a good artifact whose check holds, got a broken one; train it anew")
    return path


# Judging


@dataclass(frozen=True)
class Fault:
    """size: in its own unit, or None. seed: of one that is drawn. suite_too: see the head of this file."""

    name: str
    plant: Plant
    size: float | str | None = None
    seed: int = 0
    suite_too: bool = False


@dataclass(frozen=True)
class Finding:
    """What one check said: its exit code; broken: measured values of broken verdicts; reason, if refused.

    outcomes: as `record.packed`, by set of the suite and of Square.
    """

    exit: int
    broken: dict[str, float]
    drop: float
    reason: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)


def judge(folder: Path, baseline: Path | None = None, seed: int = 0) -> Finding:
    """A check at default settings. drop: the largest of all tests."""
    try:
        report = runtime.check(runtime.Artifact.load(folder), baseline=baseline, seed=seed)
    except runtime.ArtifactError as error:
        return Finding(2, {}, 0.0, str(error).replace(str(folder), "ARTIFACT").replace(str(baseline), "BASELINE"))
    broken = {verdict.name: verdict.measured for verdict in report.verdicts if not verdict.passed}
    drop = max(verdict.measured for verdict in report.verdicts if verdict.ci95)
    return Finding(0 if report.passed else 1, broken, drop, outcomes=report.outcomes)


def try_out(fault: Fault, good: Path, **baselines: Path | None) -> dict[str, Any]:
    """Plant a fault in a copy of a good artifact, and check that against each baseline; None: without one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = shutil.copytree(good, Path(scratch) / "artifact")
        fault.plant(folder)
        if fault.suite_too:
            faults.relabel(folder)
        found = {name: judge(folder, baseline) for name, baseline in baselines.items()}
    how = "suite too" if fault.suite_too else "file"
    row = {"fault": fault.name, "size": fault.size, "seed": fault.seed, "how": how}
    caught = any(finding.exit for finding in found.values())
    return row | {"caught": caught, **{name: asdict(finding) for name, finding in found.items()}}


def edits(run: Run) -> Iterator[Fault]:
    """Faults of the size that has to be caught, which need no other network."""
    yield Fault("weights flipped", faults.flip_weights(1e-3, 0), 1e-3)
    yield Fault("scale off", faults.stretch(faults.first_scale(run), 5.0), 5.0)
    yield Fault("normalised twice", faults.normalise_twice(run))
    yield Fault("3-bit clip", faults.clip_activations(BITS - 1), BITS - 1)
    yield Fault("batch-norm's eps", faults.model_file(faults.lowered(run, faults.other_epsilon(run, 1e-3))), 1e-3)


def networks(run: Run, bare: Run, folder: Path) -> Iterator[Fault]:
    """Another network in place of the robust one: in the file, or exported with a suite of its own."""
    for name, other, bits in (("naturally trained", bare, BITS), ("2 bits", run, 2)):
        place = folder / f"{name.replace(' ', '-')}"
        if not place.exists():
            export(other, place, bits=bits)
        yield Fault(name, faults.model_file((place / "model.onnx").read_bytes()))
        yield Fault(name, faults.replaced_by(place), suite_too=True)
    for suite_too in (False, True):
        yield Fault("int8 after training", faults.model_file(faults.after_training(run)), suite_too=suite_too)


def sessions() -> Iterator[Fault]:
    """Another provider or level: nothing is worse while labels agree, but the baseline was pinned on another one."""
    for level in ("disable", "basic", "extended"):
        yield Fault("another fusion level", faults.set_target(graph_optimization_level=level), level)
    for provider in ("CUDAExecutionProvider", "OpenVINOExecutionProvider"):
        yield Fault("another provider", faults.set_target(provider=provider), provider)


def sweeps(run: Run) -> Iterator[Fault]:
    """The same faults from too small to see to too large to miss."""
    for share in SHARES:
        for seed in range(REPEATS):
            yield Fault("weights flipped", faults.flip_weights(share, seed), share, seed)
    for percent in PERCENTS:
        for name in faults.scales(faults.graph(run))[::2]:
            yield Fault(f"scale off: {name}", faults.stretch(name, percent), percent)
    for eps in EPSILONS:
        model = faults.other_epsilon(run, eps)
        for suite_too in (False, True):
            yield Fault("batch-norm's eps", faults.model_file(faults.lowered(run, model)), eps, suite_too=suite_too)
    for bits in (3, 2, 1):
        yield Fault("clip", faults.clip_activations(bits), bits)


def false_alarms(run: Run, folder: Path, seeds: int) -> dict[str, Any]:
    """Unchanged networks exported anew: the seed decides the suite's attacks and, without a baseline, Square.

    The suites' attacks have fewer starts than the recipe's, for time: their results vary more from seed to seed.
    """
    attacks = [named(name, run.threat) for name in QUICK]
    baseline = pin(export(run, folder / "good-quick", attacks=attacks))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(1, seeds + 1):
            place = export(run, Path(scratch) / "artifact", seed=seed, attacks=attacks)
            found = {"alone": judge(place, seed=seed), "baseline": judge(place, baseline)}
            rows.append({"seed": seed, **{name: asdict(finding) for name, finding in found.items()}})
    alarms = {kind: sum(bool(row[kind]["exit"]) for row in rows) for kind in ("alone", "baseline")}
    return {"seeds": seeds, "alarms": alarms, "rows": rows}


# The table


def measure(folder: Path, seeds: int) -> Iterator[tuple[str, Any]]:
    """Parts of the result, as they are done."""
    run, bare = train(folder / "robust", robust()), train(folder / "natural", natural())
    ink = train(folder / "colour", colour(folder))
    good, red = (export(one, folder / f"good-{one.folder.name}") for one in (run, ink))
    baseline, red_baseline = pin(good), pin(red)
    yield "good", {name: accuracies(path) for name, path in (("digits", baseline), ("colour", red_baseline))}
    planted = [*edits(run), *networks(run, bare, folder), *sessions()]
    rows = [try_out(fault, good, alone=None, baseline=baseline) for fault in planted]
    yield "planted", [*rows, try_out(Fault("BGR", faults.swap_channels()), red, alone=None, baseline=red_baseline)]
    yield "sweeps", [try_out(fault, good, baseline=baseline) for fault in sweeps(run)]
    yield "false_alarms", false_alarms(run, folder, seeds)


def accuracies(baseline: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(baseline.read_text())["accuracy"]
    return found


def line(row: dict[str, Any]) -> str:
    """A row for people: the fault, and what each check said of it."""
    size = "-" if row["size"] is None else str(row["size"])
    said = (found for name, found in row.items() if name in ("alone", "baseline"))
    cells = [f"{one['exit']} {one['drop']:6.1%}  {', '.join(one['broken']) or one['reason'][:60]:<62}" for one in said]
    return f"{row['fault']:<40}{size:<28}{row['how']:<11}{''.join(cells)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=50, help="unchanged exports to look for false alarms")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = record.origin()
    for name, part in measure(options.folder, options.seeds):
        result[name] = part
        print(name, *(map(line, part) if isinstance(part, list) else [json.dumps(part)[:300]]), sep="\n", flush=True)
        if options.json:
            write_json(options.json, result)


if __name__ == "__main__":
    main()
