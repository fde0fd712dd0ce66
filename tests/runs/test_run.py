"""The walkthrough of the README at reduced size: run, run again, kill and continue."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from qrobust import data, devices, models, recipe
from qrobust.errors import ModelError, RunError
from qrobust.quant import QuantConfig, mask_statistics, quantize, quantizers
from qrobust.quant.training import latent
from qrobust.recipe import difference
from qrobust.runs.folder import RunFolder
from qrobust.runs.networks import Networks
from qrobust.runs.run import Run, _with_strong
from qrobust.runs.training import training_settings
from qrobust.runtime import Artifact
from qrobust.tables import places_table, run_table
from qrobust.train import load_weights, plain_images, trainer
from qrobust.train.checkpoint import load_state

from ..conftest import ended, overrides

WIDTHS = (32, 4, 2)
INNER = "layer1.0.conv1"
RESULTS = (
    "train.json", "eval.json", "export.json", "check.json", "attack.json", "model.safetensors", "metrics.jsonl",
)  # fmt: skip


def test_a_run_leaves_every_result(small_run: Path) -> None:
    for bits in WIDTHS:
        assert not [name for name in RESULTS if not (small_run / f"qm-{bits}" / name).is_file()]
    report = json.loads((small_run / "report.json").read_text())
    assert [width["bits"] for width in report["widths"]] == list(WIDTHS)
    for width in report["widths"]:
        assert 0 <= width["after"]["accuracy"]["square"] <= width["after"]["accuracy"]["clean"] <= 1
        assert width["label_flips"] <= 0.02
        assert width["headline"]["words"].startswith(f"export {width['verdict']}")
        assert width["headline"]["number"]["accuracy"] <= width["before"]["worst_case"]["accuracy"]
    sizes = [width["size_bytes"] for width in report["widths"]]
    assert sizes[0] > 4 * sizes[1] > 4 * sizes[2]


def test_a_function_hears_of_every_stage(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The listener of docs/everyday.md, named by the command."""
    text = (Path(__file__).parents[2] / "docs" / "everyday.md").read_text()
    (tmp_path / "own.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    folder = shutil.copytree(small_run, tmp_path / "run")
    (folder / "qm-2" / "check.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert ended("run", "run/recipe.toml", "--out", "run", "--on-event", "own.py:listen", "-v") in (0, 1)
    heard = [json.loads(line) for line in Path("events.jsonl").read_text().splitlines()]
    assert [one["status"] for one in heard if one["kind"] == "run"] == ["started", "finished"]
    assert heard[0]["recipe"]["name"] == "digits"
    stages = {one["stage"]: one for one in heard[1:-1]}
    names = ("train", "eval", "export", "check", "attack")
    assert stages.keys() == {"bench.json", *(f"qm-{bits}/{name}.json" for bits in WIDTHS for name in names)}
    assert [name for name, one in stages.items() if one["status"] == "written"] == ["qm-2/check.json"]
    assert {"clean", "worst_case", "attacks"} <= set(stages["qm-4/eval.json"]["result"])
    printed, error = capfd.readouterr()
    report = json.loads((folder / "report.json").read_text())
    flags = [(width["bits"], flag) for width in report["widths"] for flag in width["flags"]]
    assert all(f"QM-{bits} {flag['place']} flag {flag['name']}: " in printed for bits, flag in flags)
    assert "lowest by" in printed.splitlines()[2]
    assert "threads: " in error
    assert "qm-2/check.json: not done yet" in error


def test_a_run_that_is_refused_tells_that_it_stopped(small_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_run, tmp_path / "run", ignore=shutil.ignore_patterns("artifact"))
    heard: list[dict] = []
    run = Run(recipe.load(str(folder / "recipe.toml"), ("train.lr=0.5",)), folder, on_event=heard.append)
    with pytest.raises(RunError, match=r"train.lr: trained with 0.1"):
        run.train()
    assert [one["status"] for one in heard] == ["started", "stopped"]


def test_training_learns_something(small_run: Path) -> None:
    report = json.loads((small_run / "report.json").read_text())
    for width in report["widths"]:
        assert width["before"]["clean"]["accuracy"] > 0.6  # chance is 0.1
        assert width["before"]["n"] == 120


def test_the_evaluation_has_intervals_and_seconds(small_run: Path) -> None:
    result = json.loads((small_run / "qm-4" / "eval.json").read_text())
    attack = result["attacks"]["pgd-5"]
    low, high = attack["ci95"]
    assert low <= attack["accuracy"] <= high
    assert attack["settings"]["steps"] == 5
    assert attack["seconds"] > 0
    assert result["worst_case"]["accuracy"] <= min(result["clean"]["accuracy"], attack["accuracy"])


def test_a_form_of_strong_in_a_recipe_is_enough() -> None:
    for names in (("pgd-5", "strong:quick"), ("strong", "fgsm"), ("strong:budget=99",)):
        assert _with_strong(names) == names


def test_the_report_compares_three_places_on_the_same_images(small_run: Path) -> None:
    for width in json.loads((small_run / "report.json").read_text())["widths"]:
        gap = width["gap"]
        attacked = json.loads((small_run / f"qm-{width['bits']}" / "attack.json").read_text())
        assert gap["n"] == attacked["n"] == 40
        assert gap["images"] == attacked["images"]
        assert attacked["worst_case"].items() <= gap["attacked"].items()
        assert attacked["attacks"][gap["by"]]["accuracy"] == min(a["accuracy"] for a in attacked["attacks"].values())
        assert attacked["in_torch"]["worst_case"].items() <= gap["in_torch"].items()
        assert list(attacked["in_torch"]["attacks"]) == list(attacked["attacks"])


def test_tables_say_when_activations_have_a_width_of_their_own(small_run: Path) -> None:
    result = json.loads((small_run / "report.json").read_text())
    assert result["activation_bits"] is None
    for drawn in (run_table, places_table):
        titles = [str(drawn(result | {"activation_bits": bits}).title) for bits in (None, 8)]
        assert ["activations of 8 bits" in title for title in titles] == [False, True]


def test_the_table_says_where_square_was_not_measured(small_run: Path) -> None:
    result = json.loads((small_run / "report.json").read_text())
    del result["widths"][0]["after"]["accuracy"]["square"]
    result["threat"] = {"norm": "l2", "eps": 0.5}
    drawn = run_table(result)
    square = next(column for column in drawn.columns if str(column.header) == "Square")
    assert [str(cell) == "not measured" for cell in square.cells] == [True, False, False]
    assert "l2, eps 0.5;" in str(drawn.title)


def test_the_artifact_loads_as_python(small_run: Path) -> None:
    artifact = Artifact.load(small_run / "qm-4" / "artifact")
    assert artifact.manifest["bits_per_layer"]["layer1.0.conv1"] == 4
    assert artifact.manifest["metrics"]["after"]["clean"] == pytest.approx(
        artifact.manifest["reference"]["clean"], abs=0.02
    )


def test_every_inner_convolution_runs_as_integers(small_run: Path) -> None:
    for bits in (4, 2):
        ops = json.loads((small_run / f"qm-{bits}" / "export.json").read_text())["optimised_ops"]
        layers = Artifact.load(small_run / f"qm-{bits}" / "artifact").manifest["bits_per_layer"]
        convolutions = [name for name in layers if name != "fc"]
        assert ops["QLinearConv"] == len(convolutions)
        assert "Conv" not in ops


def test_a_run_exports_for_another_target(small_run: Path, tmp_path: Path) -> None:
    assert ended("export", str(small_run), "--target", "ort-cpu-int8", "--out", str(tmp_path / "out")) == 0
    plain, narrow = (path / "model.onnx" for path in (tmp_path / "out" / "qm-4", small_run / "qm-4" / "artifact"))
    assert plain.stat().st_size > narrow.stat().st_size
    assert Artifact.load(tmp_path / "out" / "qm-4").manifest["opset"] == 20


DISTILLED = overrides(
    "bits=[32, 4]", "train.epochs=1", "train.milestones=[]", "train.sar.start=0", "data.train_size=300",
    "evaluate.attacks=['fgsm']",
    "export.suite_attacks=['fgsm']", "train.estimate_statistics=true", "quant.estimate_statistics=true",
    "quant.method=rslad", "quant.layers={'layer3.*' = 8}", "quant.straight_through=unclipped",
)[1::2]  # fmt: skip


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """QM-4 with a third stage of 8 bits, distilled from the float network; trained, evaluated and exported."""
    run = Run(recipe.load("digits", DISTILLED), tmp_path_factory.mktemp("distilled") / "run")
    run.train()
    for bits in run.recipe.bits:
        run.evaluate(bits)
        run.export(bits)
    return run


@pytest.mark.slow
def test_a_network_of_several_widths_is_distilled_judged_and_exported(distilled: Run) -> None:
    widths = Artifact.load(distilled.folder / "qm-4" / "artifact").manifest["bits_per_layer"]
    third = {bits for name, bits in widths.items() if name.startswith("layer3.")}
    inner = {bits for name, bits in widths.items() if name.startswith(("layer1.", "layer2."))}
    assert (third, inner) == ({8}, {4})
    float_one, four = (json.loads((distilled.folder / f"qm-{b}" / "eval.json").read_text()) for b in (32, 4))
    assert list(four["attacks"]) == ["fgsm"]
    assert four["cost"]["size_bytes"] < float_one["cost"]["size_bytes"] / 3
    assert four["cost"]["bops"] < float_one["cost"]["bops"] / 16  # what 8 bits by 8 bits in every layer would be
    assert four["cost"]["macs"] == float_one["cost"]["macs"]
    assert {layer: cost["weight_bits"] for layer, cost in four["cost"]["layers"].items()} == widths
    assert four["sanity_checks"]
    assert float_one["sanity_checks"]
    record = json.loads((distilled.folder / "qm-4" / "metrics.jsonl").read_text())
    assert set(record["masks"]) == {name for name in widths if name.startswith("layer")}
    assert {q.backward for q in quantizers(distilled.network(4)) if q.masked} == {"identity"}


@pytest.mark.slow
def test_statistics_are_means_over_the_training_images(distilled: Run) -> None:
    """Of the first batch-norm: over batches as large as those of training, shuffled, without augmentation."""
    for bits in (32, 4):
        job = distilled.train_stage(bits).job()
        model, seen = distilled.network(bits), []
        first = next(name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
        hook = model.get_submodule(first).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        with torch.no_grad():
            for x in plain_images(distilled.dataset.train, job):
                model(x)
        hook.remove()
        means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        torch.testing.assert_close(model.get_submodule(first).running_mean, means, atol=1e-5, rtol=1e-4)


TRANSFORMED = overrides(
    "bits=[32, 4]", "train.fat=normalised", "train.epochs=2", "train.milestones=[]", "train.sar.start=0",
    "train.awp.start=0", "train.average.start=0", "train.average.deploy=true", "data.train_size=200",
    "evaluate.attacks=['fgsm']",
    "export.suite_attacks=['fgsm']",
)[1::2]  # fmt: skip


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A float network that trained behind FAT, perturbed and averaged, and QM-4 from it."""
    run = Run(recipe.load("digits", TRANSFORMED), tmp_path_factory.mktemp("transformed") / "run")
    run.train()
    return run


@pytest.mark.parametrize("name", ["model", "average"])
def test_a_float_network_trains_behind_fat_and_is_kept_without(transformed: Run, name: str) -> None:
    """To the bit the network of the best epoch in the checkpoint, whose masks have moved."""
    folder, fresh = transformed.folder / "qm-32", transformed.untrained(32)
    behind = quantize(fresh, QuantConfig(32, fat="normalised"), calibration=None)
    behind.load_state_dict(load_state(folder / "checkpoint" / "last.safetensors").best_of(name))
    load_weights(folder / f"{name}.safetensors", fresh)
    x = data.to_unit(transformed.dataset.test.take(slice(0, 40)).x, torch.device("cpu"), channels_last=True)
    with torch.no_grad():
        assert torch.equal(devices.on_device(fresh).eval()(x), devices.on_device(behind).eval()(x))
    masks = [json.loads(line)["masks"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [set(epoch) for epoch in masks] == [set(mask_statistics(behind))] * 2
    assert masks[0] != masks[1]


@pytest.mark.slow
def test_training_behind_fat_continues_bit_identically(
    transformed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after each epoch, the last of the float network too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    run = Run(transformed.recipe, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_say", stop)
        for _ in range(transformed.recipe.train.epochs):
            with pytest.raises(KeyboardInterrupt):
                run.train()
    run.train()
    for name in ("qm-32/model", "qm-32/average", "qm-4/model"):
        file = f"{name}.safetensors"
        assert (run.folder / file).read_bytes() == (transformed.folder / file).read_bytes(), name


def test_a_float_network_behind_fat_is_judged_and_exported(transformed: Run) -> None:
    for bits in (32, 4):
        transformed.evaluate(bits)
        artifact = Artifact.load(transformed.export(bits))
        assert artifact.manifest["bits_per_layer"]["layer1.0.conv1"] == bits
        reference = artifact.manifest["reference"]["clean"]
        assert artifact.manifest["metrics"]["after"]["clean"] == pytest.approx(reference, abs=0.05)


class Normalised(torch.nn.Sequential):
    """A network with a module that has no quantised form."""

    def __init__(self) -> None:
        conv, norm, pool = torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.AdaptiveAvgPool2d(1)
        super().__init__(conv, norm, pool, torch.nn.Flatten(), torch.nn.Linear(4, 10))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("quant.layers={'layr3.*' = 8}", r"got 'layr3\.\*'; did you mean 'layer3\.\*'\?"),
        ("quant.layers={'layer3.0.conv1' = 8, 'layer3.*' = 4}", "from general to special, got 'layer3.0.conv1'"),
        ("quant.unsupported=refuse", "^1: no integer form of GroupNorm, of which there are"),
    ],
)
def test_what_cannot_be_quantised_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    build = models.build
    normalised = "unsupported" in setting
    monkeypatch.setattr(models, "build", lambda name, **k: Normalised() if normalised else build(name, **k))
    run = Run(recipe.load("digits", [setting]), tmp_path / "run")
    with pytest.raises(ModelError, match=message) as caught:
        run.train()
    assert "\n" not in str(caught.value)
    assert not run.folder.exists()


def test_the_order_of_patterns_is_another_training() -> None:
    """The last that matches decides."""
    patterns = ("'layer3.*' = 8", "'*.conv1' = 3")
    tables = [f"quant.layers={{{', '.join(order)}}}" for order in (patterns, patterns[::-1])]
    first, second = (training_settings(recipe.load("digits", [table]), 4) for table in tables)
    assert difference(first, first) is None
    assert "trained in the order" in (difference(first, second) or "")
    assert difference(*(training_settings(recipe.load("digits", [table]), 32) for table in tables)) is None


def test_a_width_starts_from_the_one_before_the_float_one_or_the_float_one_s_own_start(small_run: Path) -> None:
    """Latent weights are still theirs; a width that is skipped is no setting of the training."""
    whole = Networks(recipe.load(str(small_run / "recipe.toml")), RunFolder(small_run))
    sources = {"previous": whole.network(4), "float": whole.network(32), "initial": whole.initial()}
    weights = {name: latent(network.get_submodule(INNER)) for name, network in sources.items()}
    for start in sources:
        given = [f"quant.start_from={start}", "quant.calibration=16"]
        settings = recipe.load(str(small_run / "recipe.toml"), given)
        networks = Networks(settings, RunFolder(small_run))
        networks._loaded = whole._loaded
        begun = latent(networks.start(2).get_submodule(INNER))
        assert [name for name, weight in weights.items() if torch.equal(begun, weight)] == [start]
        assert training_settings(settings, 2)["bits"] == ([32, 4, 2] if start == "previous" else [32, 2])
        assert networks.before(2) == (4 if start == "previous" else 32)


def test_a_warm_up_of_the_attack_is_the_float_network_s(tmp_path):
    """A quantised one begins where that ended, and has fewer epochs than it."""
    loaded = recipe.load("digits", ["train.attack.warmup=3", "quant.method=rslad"])
    networks = Networks(loaded, RunFolder(tmp_path))
    assert networks.training(32) == loaded.train
    assert (networks.training(4).attack.warmup, networks.training(4).method) == (0, "rslad")
