"""The shipped recipes: they load, repeat nothing, claim what the papers print, and train."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from qrobust import data, models, recipe, resources
from qrobust.attacks import named
from qrobust.recipe import Recipe, reading
from qrobust.runs.run import Run
from qrobust.threat import Threat

from .conftest import docs_generator

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = dict(resources.listing("recipes"))
FOLDERS = ("spectral", "fourier")
BASES = {
    "spectral/cifar10-resnet18", "spectral/cifar100-resnet18", "spectral/tiny-imagenet-resnet18",
    "fourier/cifar10", "fourier/cifar10-resnet20", "fourier/cifar10-resnet20-quantised",
    "fourier/cifar10-resnet20-table5",
}  # fmt: skip
ROWS = sorted(
    name for name in SHIPPED if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and name not in BASES
)
SPECTRAL = [name for name in ROWS if name.startswith("spectral/")]
# Rows of each table that can be trained, and networks behind figures: of the spectral perspective and of the study.
PRINTED = {
    "spectral": {
        "table I": 9, "table II": 9, "table III": 6, "table IV": 12, "table V": 6, "table VI": 12, "table VII": 12,
        "figure 9": 4, "figure 10": 9, "equation 3": 2,
    },
    "fourier": {
        "table 1": 1, "table 2": 5, "table 3": 7, "table 4": 4, "table 5": 6,
        "figure 3": 2, "figure 4": 2, "figure 5": 2, "figure 6": 2,
    },
}  # fmt: skip
LARGE = ("resnet152", "wrn34_10", "wrn34_15")
DIGESTS = json.loads((ROOT / "tests" / "fixtures" / "recipe_digests.json").read_text())
load = functools.cache(recipe.load)
generator = functools.cache(docs_generator)


def own(name: str) -> dict[str, Any]:
    """What the recipe itself says."""
    return SHIPPED[name].table


def tables(name: str) -> list[str]:
    """The tables, figures and equations of its paper that have a recipe's network."""
    paper = "Spectral perspective" if name in SPECTRAL else "Fourier-domain study"
    some = r"(?:table|figure|equation)s? [IV\d]+(?:, [IV\d]+)*"
    source = own(name)["claim"]["source"]
    assert re.fullmatch(rf"{paper}, {some}(?:; {some})?", source)
    found: list[str] = generator().recipe_page.places(source)
    return found


def printed(name: str) -> set[str]:
    """Columns that the paper has numbers of, for a recipe."""
    claimed = {path[-1] for path in leaves(own(name)["claim"]) if not path[-1].startswith(("lpf-", "ratio-"))}
    return claimed - {"source"}


def leaves(table: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(table, dict):
        return {path: table}
    return {k: v for key, value in table.items() for k, v in leaves(value, (*path, key)).items()}


def settings(loaded: Recipe) -> str:
    """A digest of every key that is no default and decides something."""
    table = loaded.model_dump(mode="json", exclude_none=True, exclude_defaults=True, exclude={"departures"})
    return hashlib.sha256(tomli_w.dumps(table).encode()).hexdigest()[:16]


def test_recipes_are_what_they_were_as_files_of_their_own() -> None:
    """Of each name when each had a file; a key or a value that is changed on purpose changes its digest here."""
    assert {name: settings(load(name)) for name in SHIPPED} == DIGESTS


@pytest.mark.parametrize("name", SHIPPED)
def test_it_loads_and_says_what_it_is(name: str) -> None:
    loaded = load(name)
    assert loaded.name == name
    assert own(name)["description"].endswith(".")
    said = [path for path in leaves(own(name)) if path[0] not in ("claim", "departures")]
    assert len(said) <= (12 if name in ROWS else 40)
    assert loaded.data.name in data.SOURCES
    threat = Threat(loaded.threat.norm, loaded.threat.eps)
    for attack in (*loaded.evaluate.attacks, *loaded.export.suite_attacks):
        assert named(attack, threat).name == attack


@pytest.mark.parametrize("name", ["digits", "spectral/cifar10-resnet18-at-sar", "fourier/cifar10-resnet20-qm"])
def test_a_path_in_the_checkout_is_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As documents print it: with a file of its own, or as a variant of one."""
    monkeypatch.chdir(ROOT)
    file, _, variant = f"recipes/{name}".rpartition("/")
    paths = [f"recipes/{name}.toml", str(SHIPPED[name])]
    assert [load(path) for path in paths] == [load(name)] * 2
    assert name == "digits" or load(f"{file}.toml#{variant}") == load(name)


def test_networks_can_be_built() -> None:
    found = {json.dumps(model.model_dump(), sort_keys=True): model for model in (load(name).model for name in SHIPPED)}
    for model in found.values():
        with torch.device("meta"):
            built = models.build(model.name, in_channels=3, classes=10, **model.options)
        assert sum(p.numel() for p in built.parameters()) > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_it_repeats_nothing_that_it_inherits(name: str) -> None:
    parent = reading._parent("recipes", SHIPPED[name], own(name).get("extends"))
    if parent is None:
        return
    table = reading._extended("recipes", parent, ()) | {"name": name, "claim": {}}
    table.pop("description", None)
    inherited = leaves(recipe.parse(table, source=name).model_dump(mode="json"))
    assert [path for path, value in leaves(own(name)).items() if inherited.get(path) == value] == []


# claims


@pytest.mark.parametrize("name", SHIPPED)
def test_a_claim_is_its_own_and_of_shares(name: str) -> None:
    claim = own(name).get("claim", {})
    assert load(name).claim == claim
    assert (claim == {}) == (name in BASES or name not in ROWS)
    numbers = {path: value for path, value in leaves(claim).items() if path != ("source",)}
    shares = {path: value for path, value in numbers.items() if not path[-1].startswith("ratio-")}
    assert all(isinstance(value, float) for value in numbers.values())
    assert all(0 <= value < 1 for value in shares.values())


@pytest.mark.parametrize("name", ROWS)
def test_what_is_claimed_is_measured_and_strong_stands_beside_it(name: str) -> None:
    attacks = ["clean", *load(name).evaluate.attacks]
    assert attacks[-1] == "strong"
    assert printed(name) in ({*attacks[:-1]}, set())
    assert bool(printed(name)) == any(place.startswith(("table", "equation")) for place in tables(name))


@pytest.mark.parametrize("folder", FOLDERS)
def test_departures_stand_in_the_table_and_of_what_they_say(folder: str) -> None:
    """Of each form that a paper's code has otherwise; every text is in the table of its paper."""
    told = (ROOT / "recipes" / "README.md").read_text()
    for name in (name for name in ROWS if name.startswith(f"{folder}/")):
        loaded = load(name)
        stated = loaded.departures
        assert stated.keys() >= ({"epoch", "attacks", "sar"} if folder == "spectral" else {"images", "attacks"})
        assert ("mart" in stated) == (loaded.train.method == "mart")
        assert ("mix" in stated) == (loaded.train.mix is not None)
        assert ({"start", "activations", "clips", "classifier"} <= stated.keys()) == (loaded.quant is not None)
        assert all(f"| {key} |" in told and text in told for key, text in stated.items())


def test_rows_of_the_tables_name_the_form_of_their_networks() -> None:
    told = (ROOT / "recipes" / "README.md").read_text().splitlines()
    assert "| `spectral/cifar10-resnet18-at-sar`, SAR in batch form | 80.04 |" in "\n".join(told)
    for line in (line for line in told if line.startswith(("| `spectral/", "| `fourier/"))):
        cell = line.split(" | ")[0]
        name = cell.split("`")[1]
        form = "sample" if name.endswith("-sample") else "batch"
        assert (f", SAR in {form} form" in cell) == ("-sar" in name)
        assert (", float shortcuts" in cell) == ("QM-4" in cell or "QM-2" in cell)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_row_of_the_papers_has_a_recipe(folder: str) -> None:
    found: Counter[str] = Counter()
    for name in ROWS:
        if name.startswith(f"{folder}/"):
            networks = sum(key.startswith("QM-") for key in own(name)["claim"])
            found.update(dict.fromkeys(tables(name), networks or 1))
    assert found == PRINTED[folder]
    assert set(generator().recipe_page.PAPERS[folder]) <= set(found)


@pytest.mark.parametrize(
    ("name", "key", "share"),
    [
        ("spectral/cifar10-resnet18-at-sar", "autoattack", 0.5002),
        ("spectral/cifar10-wrn34-10-at-sarwa", "pgd-20", 0.5879),
        ("spectral/tiny-imagenet-resnet18-trades-sarwa", "clean", 0.4894),
        ("fourier/cifar10-efficientnet-b0-at", "cw-20", 0.4639),
        ("fourier/cifar10-resnet20-a-cutout", "pgd-20", 0.2761),
    ],
)
def test_some_numbers_of_the_papers(name: str, key: str, share: float) -> None:
    assert load(name).claim[key] == share


# settings of the spectral perspective, as a recipe's name spells them


METHODS = {"natural": "natural", "model": "natural", "at": "at", "trades": "trades", "mart": "mart", "awp": "at"}


def parts(name: str) -> set[str]:
    return set(name.rpartition("/")[2].split("-"))


@pytest.mark.parametrize("name", SPECTRAL)
def test_its_schedule(name: str) -> None:
    loaded, spelt = load(name), parts(name)
    schedule = loaded.train
    assert (schedule.epochs, schedule.milestones) == ((200, (100, 150)) if "awp" in spelt else (100, (75, 90)))
    assert schedule.weight_decay == (2e-4 if spelt & {"trades", "mart"} else 5e-4)
    assert (schedule.batch_size, schedule.lr, loaded.data.validation) == (128, 0.1, 0.1)
    assert (schedule.attack.steps, schedule.attack.step_size, schedule.validation.steps) == (10, 2 / 255, 20)
    assert schedule.attack.start == ("near" if "mart" in spelt else "ball")
    assert (loaded.data.crop, loaded.data.flip) == (0 if "tiny" in spelt else 4, True)
    assert (loaded.bits, loaded.threat.eps) == ((32,), 8 / 255)


@pytest.mark.parametrize("name", SPECTRAL)
def test_its_method(name: str) -> None:
    loaded, spelt = load(name), parts(name)
    schedule = loaded.train
    (method,) = spelt & METHODS.keys()
    assert schedule.method == METHODS[method]
    assert (schedule.awp.gamma if schedule.awp else None) == (0.01 if "awp" in spelt else None)
    assert schedule.low_pass == ((32 if "tiny" in spelt else 16) if "model" in spelt else None)
    if not spelt & {"sar", "sarwa"}:
        assert schedule.sar is None
        assert schedule.average is None
        return
    assert schedule.sar is not None
    usual = 0.05 if "tiny" in spelt else 0.15 if "sarwa" in spelt else 0.1
    weight = next((int(part) / 100 for part in spelt if re.fullmatch(r"0\d\d", part)), usual)
    form = "sample" if "sample" in spelt else "batch"
    assert (schedule.sar.weight, schedule.sar.form, schedule.sar.start) == (weight, form, "first-drop")
    assert schedule.sar.distance == next(iter(spelt & {"l2", "cosine"}), "l1")
    assert schedule.sar.reference == ("average" if "sarwa" in spelt else "model")
    average = schedule.average.model_dump() if schedule.average else None
    equal = {"kind": "equal", "decay": 0.999, "start": "first-drop", "deploy": False}
    assert average == (equal if "sarwa" in spelt else None)


# settings of the Fourier-domain study


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("fourier/")])
def test_its_settings(name: str) -> None:
    loaded, last = load(name), name.rpartition("/")[2]
    train = loaded.train
    batch = int(last.partition("batch")[2]) if "batch" in last else 512
    for schedule in (train, loaded.quant):
        if schedule is not None:
            assert (schedule.epochs, schedule.batch_size, schedule.lr) == (120, batch, 0.1)
            assert (schedule.milestones, schedule.factors) == ((60, 90, 110), (0.1, 0.1, 0.5))
            assert (schedule.momentum, schedule.weight_decay) == (0.9, 5e-4)
    assert (train.attack.steps, train.attack.step_size, train.attack.start) == (7, 2 / 255, "ball")
    assert (train.method, train.log_frequency_ratio) == (
        "natural" if "natural" in last else "at", last.endswith(("resnet20-at", "natural")),
    )  # fmt: skip
    assert loaded.model.options == ({"activation": "hardtanh"} if "resnet20" in last else {})
    if train.mix is not None:
        kind = last.rpartition("-")[2]
        assert (train.mix.kind, train.mix.border) == (kind, "inside" if kind == "cutmix" else "clip")
    if loaded.quant is not None:
        quant = loaded.quant
        assert (quant.shortcuts, quant.edge_layers, quant.classifier) == ("float", "float", "int8")
        assert (quant.activation_range, quant.start_from, quant.per_channel) == ("full", "initial", False)
        assert (quant.fat, quant.activation_bits) == ("paper" if "fat" in last else "none", None)
        assert loaded.export.target == "compact"


# they train


def images(folder: Path, side: int) -> Path:
    """A file of 16 images of noise, half of them for validation, and as many to test as the suites ask."""
    x = np.random.default_rng(0).integers(0, 256, (160, 3, side, side), dtype=np.uint8)
    y = np.arange(160) % 4
    np.savez(folder / "images.npz", x_train=x[:16], y_train=y[:16], x_test=x, y_test=y)
    return folder / "images.npz"


SHORT = "epochs=1", "batch_size=4", "milestones=[]", "factors=[]", "warmup=0"


def small(name: str, file: Path, *more: str) -> Recipe:
    """The recipe on 8 images in batches of 4, every part of its schedule from the first epoch."""
    whole = load(name)
    overrides = [
        "data.name=npz", f"data.root={file}", "data.train_size=16", "data.test_size=160", "data.validation=0.5",
        "evaluate.n=160", "export.suite_n=160", "train.attack.steps=2", "train.validation.steps=1",
    ]  # fmt: skip
    overrides += ["attack.n=160"] if whole.attack else []
    for table in ("train", "quant"):
        schedule = getattr(whole, table)
        if schedule is not None:
            overrides += [f"{table}.{key}" for key in SHORT]
            overrides += [f"{table}.{part}.start=0" for part in ("sar", "awp", "average") if getattr(schedule, part)]
    return recipe.load(name, [*overrides, *more])


def train(chosen: Recipe, folder: Path) -> None:
    """Trains every width for its two steps; weights and loss stay finite."""
    run = Run(chosen, folder)
    run.train()
    for bits in chosen.bits:
        (line,) = (folder / f"qm-{bits}" / "metrics.jsonl").read_text().splitlines()
        assert math.isfinite(json.loads(line)["loss"])
        assert (folder / f"qm-{bits}" / "average.safetensors").exists() == (run.has_average(bits))


def distinct(names: Iterable[str]) -> list[str]:
    """The first recipe of each way to train: same methods and parts, whatever the numbers, images and networks."""
    found: dict[str, str] = {}
    for name in names:
        table = load(name).model_dump(mode="json", include={"train", "quant"})
        way = {path: value for path, value in leaves(table).items() if value is None or isinstance(value, (str, bool))}
        found.setdefault(repr((load(name).bits, load(name).model.options, way)), name)
    return list(found.values())


EACH_PART = [
    "spectral/cifar10-resnet18-l-model", "spectral/cifar10-resnet18-awp-sar", "spectral/cifar10-resnet18-mart-sarwa",
    "spectral/cifar10-resnet18-trades", "fourier/cifar10-resnet20-a-cutout", "fourier/cifar10-resnet20-c-mixup",
]  # fmt: skip


@pytest.mark.parametrize("name", EACH_PART)
def test_each_part_of_a_schedule_trains(name: str, tmp_path: Path) -> None:
    train(small(name, images(tmp_path, 32), "model.name=resnet8"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in distinct(SHIPPED) if name not in EACH_PART])
def test_it_trains_a_small_network(name: str, tmp_path: Path) -> None:
    own_options = load(name).model.options.keys() - {"activation", "shortcut"}  # of a network that is small itself
    smaller = [] if own_options else ["model.name=resnet8"]
    train(small(name, images(tmp_path, 32), *smaller), tmp_path / "run")


def _moderate(name: str) -> bool:
    """Neither a large network nor large images, and not the same network again with a hundred classes."""
    loaded = load(name)
    small_data = loaded.data.name == "cifar10" or name.endswith("imagenet-resnet18-at-sarwa")
    return small_data and loaded.model.name not in LARGE


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ROWS if _moderate(name)])
def test_it_trains_its_own_network(name: str, tmp_path: Path) -> None:
    side = 64 if "tiny" in name else 32
    train(small(name, images(tmp_path, side)), tmp_path / "run")


# the table of what is measured


def test_a_committed_result_fills_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = docs_generator().recipe_page
    cell = {"accuracy": 0.5, "ci95": [0.45, 0.55]}
    width = {"bits": 4, "before": {"n": 1000, "clean": cell, "attacks": {"pgd-20": cell, "strong": cell}}}
    (tmp_path / "fourier").mkdir()
    (tmp_path / "fourier" / "cifar10-resnet20-qm.json").write_text(json.dumps({"widths": [width]}))
    monkeypatch.setattr(docs.tables, "RESULTS", tmp_path)
    table = docs.recipe_table().splitlines()
    (filled,) = (line for line in table if "`fourier/cifar10-resnet20-qm`, QM-4, float shortcuts " in line)
    cells = [part.strip() for part in filled.strip("|").split("|")]
    shown = "50.0% (45.0%–55.0%)"
    printed_there = ["67.58", "65.13", "42.16", "38.75", "38.50", "56.81", "43.81"]
    assert cells[1:] == [*printed_there, "1000", shown, "", "", shown, "", "", "", shown]
    heads = next(line for line in table[: table.index(filled)][::-1] if line.startswith("| recipe"))
    assert "PGD-20, last step, measured | BIM-20, last step, measured" in heads
    assert heads.endswith("| CW-20 (L2), measured | strong, measured |")
    assert sum(shown in line for line in table) == 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_results_below_the_papers_are_of_recipes(folder: str) -> None:
    results = ROOT / "benches" / "results"
    names = {path.relative_to(results).with_suffix("").as_posix() for path in (results / folder).rglob("*.json")}
    assert names <= set(ROWS)
