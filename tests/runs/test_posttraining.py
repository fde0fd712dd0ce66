"""`qrobust ptq` and `qrobust allocate`: recipes that train nothing, and bits by layer under a budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qrobust.errors import ModelError, RecipeError, RunError
from qrobust.export.target import load_target
from qrobust.models import build
from qrobust.quant import quantizers
from qrobust.recipe import load
from qrobust.runs.allocation import Request as Asked
from qrobust.runs.allocation import allocate
from qrobust.runs.posttraining import Request, recipe_for
from qrobust.runs.preflight import check_images
from qrobust.runs.run import Run
from qrobust.train import save_weights

from ..conftest import CommandLine

QUICK = ("evaluate.attacks=['pgd-5']", "export.suite_attacks=['strong:quick:budget=21']", "bench.seconds=0.05",
         "attack.attacks=['strong:quick:budget=21']", "attack.n=20", "evaluate.n=120", "threads=1")  # fmt: skip


def recipe(source: Path, *overrides: str, **quant: object):
    return recipe_for(Request(str(source)), overrides, name="x", quant={"ptq": {"adaround": 5}, **quant})


def test_of_a_run_the_float_network_and_the_images_are_taken(small_run: Path) -> None:
    found, source = recipe(small_run), load(str(small_run / "recipe.toml"))
    assert found.model.weights == str(small_run / "qm-32" / "model.safetensors")
    assert (found.data, found.threat, found.seed) == (source.data, source.threat, source.seed)
    assert (found.bits, found.train.epochs, found.quant.epochs, found.quant.fat) == ((32, 8), 0, 0, "none")
    assert found.evaluate.attacks[-1] == "strong"


def test_of_a_run_as_many_images_are_taken(small_run: Path) -> None:
    """Else its numbers would not stand beside the run's; a full test set takes hours where the run took minutes."""
    source, found = load(str(small_run / "recipe.toml")), recipe(small_run)
    assert None not in (source.evaluate.n, source.export.suite_n, source.attack.n)
    assert (found.evaluate.n, found.export.suite_n) == (source.evaluate.n, source.export.suite_n)
    assert (found.attack.n, found.export.target) == (source.attack.n, "ort-cpu")
    other = recipe_for(Request(str(small_run), data="digits"), name="x", quant={"ptq": {}})
    assert (other.evaluate.n, other.export.suite_n, other.attack.n) == (None, None, 100)


def test_images_by_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set, a file, a folder; weights from where one stands."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "cifar10").mkdir()  # a data set's name is not taken for a folder that stands where one is
    monkeypatch.chdir(tmp_path)
    for data, root, expected in [
        ("cifar10", "there", {"name": "cifar10", "root": "there"}),
        (str(tmp_path / "mine.npz"), None, {"name": "npz", "root": str(tmp_path / "mine.npz")}),
        (str(tmp_path / "photos"), None, {"name": "folder", "root": str(tmp_path / "photos")}),
    ]:
        asked = Request("resnet8", "w.safetensors", data, root, bits=(4, 8, 4))
        found = recipe_for(asked, ["model.mean=0.5"], name="x", quant={})
        assert found.data.model_dump(include=expected.keys()) == expected
        assert (found.bits, found.model.weights, found.model.mean) == (
            (32, 8, 4),
            str(Path.cwd() / "w.safetensors"),
            (0.5,),
        )


def test_what_is_missing_or_too_much_is_said(small_run: Path) -> None:
    with pytest.raises(RecipeError, match="expected --data, images to calibrate and to test on, got none"):
        recipe_for(Request("resnet8", "w.safetensors"), name="x", quant={})
    with pytest.raises(RecipeError, match="expected no --weights with a run, got w"):
        recipe_for(Request(str(small_run), "w"), name="x", quant={})
    with pytest.raises(RecipeError, match="quant: expected epochs = 0 with a table ptq, got 3"):
        recipe(small_run, "quant.epochs=3")
    with pytest.raises(RecipeError, match=r"quant: expected fat = 'none' with"):
        recipe(small_run, "quant.fat=paper")
    with pytest.raises(RecipeError, match=r"expected 'mse'"):
        recipe(small_run, calibrator="max")
    with pytest.raises(RecipeError, match=r"expected widths from 2 to 7, got \[8\]"):
        Asked("0.5x", widths=(8,))
    with pytest.raises(ModelError, match=r"expected a budget as 0.6x"):
        Asked("5%")
    with pytest.raises(RecipeError, match=r"expected one image or more to measure margins on, got 0"):
        Asked("0.5x", n=0)
    with pytest.raises(RecipeError, match=r"expected a network in torch or a run, got the file f.onnx.*qrobust export"):
        recipe_for(Request("f.onnx", data="digits"), name="x", quant={})
    with pytest.raises(RunError, match=r"expected a run folder with recipe.toml, got"):
        recipe_for(Request(str(small_run.parent), data="digits"), name="x", quant={})


def test_one_image_does_not_calibrate(small_run: Path) -> None:
    settings = recipe_for(Request(str(small_run)), name="x", quant={"ptq": {}, "calibration": 1})
    with pytest.raises(ModelError, match="expected 10 calibration images or more without training, got 1"):
        check_images(settings, load_target("ort-cpu"), Run.open(small_run).dataset)


@pytest.mark.slow
def test_a_budget_below_the_least_is_refused_before_anything_is_measured(small_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which all layers take at their least, got 9; raise it, or allow fewer bits"):
        allocate(recipe(small_run, *QUICK), tmp_path / "out", Asked("9B", widths=(4,), n=8))
    assert not (tmp_path / "out" / "sensitivities.jsonl").exists()


@pytest.mark.slow
def test_every_width_is_made_from_the_float_network_and_says_what_it_costs(small_run: Path, tmp_path: Path) -> None:
    asked = Request(str(small_run), bits=(8, 3))
    run = Run(
        recipe_for(asked, QUICK, name="x", quant={"ptq": {"adaround": 5}, "activation_bits": 8}), tmp_path / "run"
    )
    run.train()
    stated = {
        bits: json.loads((tmp_path / "run" / f"qm-{bits}" / "train.json").read_text())["layers"] for bits in (8, 3)
    }
    assert [one["name"] for one in stated[8]] == [one["name"] for one in stated[3]]
    inner = [(a, b) for a, b in zip(stated[8], stated[3], strict=True) if b["bits"] == 3]
    assert inner
    assert all(a["left"] < b["left"] <= b["nearest"] for a, b in inner)
    again = Run.open(tmp_path / "run").network(3)
    assert {one.bits for one in quantizers(again) if one.inner and not one.masked} == {3}


@pytest.mark.slow
def test_bits_keep_a_budget_and_a_second_call_measures_nothing(small_run: Path, tmp_path: Path) -> None:
    settings, asked = recipe(small_run, *QUICK), Asked("0.5x", widths=(2, 4), n=8)
    found = allocate(settings, tmp_path / "out", asked)
    assert found["cost"] <= found["budget"]["most"] == 0.5 * next(u for u in found["uniform"] if u["bits"] == 8)["cost"]
    uniform = {one["bits"]: one for one in found["uniform"]}
    lost = {(one["layer"], one["bits"]): one["margin"] for one in found["sensitivities"]}
    names = [name for name, bits in lost if bits == 4]
    # as `ptq --bits 4` has it: the first and the last layer keep 8 bits
    assert found["edges"] == [names[0], names[-1]]
    assert uniform[4]["loss"] == pytest.approx(sum(lost[name, 4] for name in names[1:-1]))
    assert uniform[8]["cost"] / 2 < uniform[4]["cost"] < 0.55 * uniform[8]["cost"]
    lines = (tmp_path / "out" / "sensitivities.jsonl").read_text()
    kept = lines.splitlines()[:-2]
    (tmp_path / "out" / "sensitivities.jsonl").write_text("\n".join(kept) + "\n")  # as of a stopped one
    assert allocate(settings, tmp_path / "out", asked)["bits"] == found["bits"]
    assert (tmp_path / "out" / "sensitivities.jsonl").read_text() == lines
    with (tmp_path / "out" / "sensitivities.jsonl").open("a") as file:
        file.write('{"of": "cut o')  # as of a killed one
    assert allocate(settings, tmp_path / "out", asked)["bits"] == found["bits"]
    assert (tmp_path / "out" / "sensitivities.jsonl").read_text() == lines
    layers = recipe(small_run, str(tmp_path / "out" / "layers.toml")).quant.layers
    assert layers == found["bits"]


@pytest.mark.slow
def test_what_other_images_gave_is_measured_again(small_run: Path, tmp_path: Path) -> None:
    settings, path = recipe(small_run, *QUICK), tmp_path / "out" / "sensitivities.jsonl"
    allocate(settings, tmp_path / "out", Asked("0.9x", widths=(4,), n=4))
    before = path.read_text()
    allocate(settings, tmp_path / "out", Asked("0.9x", widths=(4,), n=6))
    assert len(path.read_text().splitlines()) == len(before.splitlines())
    assert not set(path.read_text().splitlines()) & set(before.splitlines())


@pytest.mark.slow
def test_the_verbs_end_in_a_checked_artifact(small_run: Path, tmp_path: Path, command_line: CommandLine) -> None:
    short = [part for setting in QUICK for part in ("-o", setting)]
    code, _, errors = command_line("allocate", str(small_run), "--budget", "0.6x", "--widths", "3,4", "-n", "16",
                                   "--out", "bits", "--plot", "front.png", *short)  # fmt: skip
    assert code == 0, errors
    assert (tmp_path / "front.png").stat().st_size > 1000
    code, _, errors = command_line("ptq", str(small_run), "--adaround", "5", "--out", "made", *short, "-o",
                                     "bits/layers.toml", "--json", "made.json")  # fmt: skip
    assert code in (0, 1), errors
    assert (tmp_path / "made" / "qm-8" / "artifact" / "model.onnx").is_file()
    assert (tmp_path / "made" / "report.html").is_file()
    code, _, errors = command_line("ptq", str(small_run), "--bits", "9", "--out", "other")
    assert code == 2
    assert "expected 2, 3, 4, 5, 6, 7, 8 or 32, got 9" in errors


@pytest.mark.slow
def test_a_network_and_an_npz_file(tmp_path: Path, command_line: CommandLine) -> None:
    torch.manual_seed(0)
    save_weights(tmp_path / "w.safetensors", build("resnet8", in_channels=1, classes=2), {})
    draw = np.random.default_rng(0)
    arrays = {name: draw.integers(0, 256, (150, 1, 8, 8), dtype=np.uint8) for name in ("x_train", "x_test")}
    labels = {name: np.arange(150) % 2 for name in ("y_train", "y_test")}
    np.savez(tmp_path / "mine.npz", **arrays, **labels)
    short = [part for setting in QUICK for part in ("-o", setting)]
    code, _, errors = command_line("ptq", "resnet8", "--weights", "w.safetensors", "--data", "mine.npz", *short)
    assert code in (0, 1), errors
    assert (tmp_path / "runs" / "resnet8-ptq" / "qm-8" / "artifact").is_dir()
