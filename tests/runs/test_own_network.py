"""A run of a network that is the user's own: from recipe to artifact, opened again, and every slip before training."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qrobust import recipe
from qrobust.errors import ModelError, RunError
from qrobust.runs.folder import RunFolder, seal
from qrobust.runs.networks import source_record
from qrobust.runs.run import Run
from qrobust.runtime import Artifact

from ..conftest import CommandLine, ended, evidence, once

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "own.md").read_text()
EXAMPLES = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", DOCUMENT, re.S))
COMMANDS = dict(
    zip(
        ("module", "checkpoint", "moved", "from", "ptq", "file"),
        re.findall(r"```sh\n(.*?)```", DOCUMENT, re.S),
        strict=True,
    )
)
SMALL = (
    "train.epochs=1", "train.milestones=[]", "train.attack.steps=1", "train.validation.steps=1", "quant.epochs=1",
    "data.test_size=120", "data.train_size=300", "evaluate.n=120", "evaluate.attacks=['fgsm']", "export.suite_n=120",
    "export.suite_attacks=['fgsm']", "bench.seconds=0.05",
)  # fmt: skip
UNTRAINED = ("train.epochs=0", "quant.epochs=0", "quant.fat=none")


def options(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("-o", setting)]


def examples(folder: Path) -> None:
    for name, text in EXAMPLES.items():
        (folder / name).write_text(text)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document's own network beside its recipe, and its run, small. Not to be changed."""

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            train(folder, patch)

    def train(folder: Path, patch: pytest.MonkeyPatch) -> None:
        examples(folder)
        patch.setenv("XDG_STATE_HOME", str(folder / "state"))
        assert ended("train", str(folder / "own.toml"), *options(*SMALL), "--out", str(folder / "run")) == 0
        run = Run.open(folder / "run")
        for bits in run.recipe.bits:
            run.evaluate(bits)
            run.export(bits)

    return once(tmp_path_factory, "own", make)


@pytest.fixture(autouse=True)
def user(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who made the run, not who runs the tests."""
    folder = request.getfixturevalue("made") if "made" in request.fixturenames else tmp_path
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same to be changed, as if it had been made there."""
    folder = shutil.copytree(made, tmp_path / "copied")
    files = RunFolder(folder / "run")
    files.recipe.write_text(re.sub(r'"[^"]*nets.py:', f'"{folder / "nets.py"}:', files.recipe.read_text()))
    seal(files, source_record(recipe.load(str(files.recipe))))
    return folder


def test_an_own_network_is_trained_quantised_and_exported(made: Path) -> None:
    run = Run.open(made / "run")
    assert run.recipe.bits == (32, 4)
    assert run.recipe.train.method == "trades"
    manifest = Artifact.load(made / "run" / "qm-4" / "artifact").manifest
    assert manifest["recipe"]["model"]["name"] == "nets.py:small"  # not where it lies on this machine
    widths = manifest["bits_per_layer"]
    assert widths == {"network.0.0": 8, "network.1.0": 4, "network.2.0": 4, "network.5": 8}
    assert run.recipe.model.options == {"width": 12}
    x = torch.rand(2, 1, 8, 8)
    float_one = run.network(32)
    with torch.no_grad():
        assert torch.equal(float_one(x), float_one.network((x - 0.3) / 0.4))


def test_it_is_opened_again_where_its_code_is_not_loaded_yet(made: Path, tmp_path: Path) -> None:
    """The document's examples, below, do so in processes of their own."""
    for name in [name for name in sys.modules if name.startswith("qrobust_own_")]:
        del sys.modules[name]
    assert ended("export", str(made / "run"), "--out", str(tmp_path / "out")) == 0
    for bits in (32, 4):
        again, before = tmp_path / "out" / f"qm-{bits}", made / "run" / f"qm-{bits}" / "artifact"
        assert (again / "model.onnx").read_bytes() == (before / "model.onnx").read_bytes()


def test_a_changed_file_is_refused_until_it_is_named(copied: Path, command_line: CommandLine) -> None:
    nets = copied / "nets.py"
    assert command_line("eval", str(copied / "run" / "qm-4"), "-n", "20", "--attacks", "fgsm")[0] == 0
    nets.write_text(nets.read_text() + "\n")
    code, _, errors = command_line("eval", str(copied / "run"), "-n", "20")
    assert code == 2
    assert f"expected the file {nets} that the network was made by (sha256 " in errors
    assert errors.endswith("put it back, or name it by --model FILE.py:factory\n")
    code, _, errors = command_line("analyze", str(copied / "run"), "--figures", "kernels", "-n", "20")
    assert (code, "--model" in errors) == (2, True)
    named = ("--model", f"{nets}:small")
    assert command_line("eval", str(copied / "run" / "qm-4"), "-n", "20", "--attacks", "fgsm", *named)[0] == 0
    nets.unlink()
    code, _, errors = command_line("export", str(copied / "run"))
    assert code == 2
    assert errors.endswith(f"no {nets}; correct the path or the name, or name it by --model FILE.py:factory\n")


FOREIGN = {"a file that came along": "FOLDER/nets.py:small", "Python's": "os:system", "another option": ""}


@pytest.mark.parametrize("case", FOREIGN)
def test_a_run_folder_of_another_loads_no_code_unasked(copied: Path, command_line: CommandLine, case: str) -> None:
    name, table = FOREIGN[case], copied / "run" / "recipe.toml"
    shutil.copy(copied / "nets.py", copied / "run")
    text = re.sub(
        r'name = "[^"]*nets.py:small"', f'name = "{name}"'.replace("FOLDER", str(copied / "run")), table.read_text()
    )
    table.write_text(text if name else table.read_text().replace("width = 12", "width = 13"))
    for arguments in (
        ["eval", str(copied / "run")],
        ["train", str(copied / "own.toml"), "--from", str(copied / "run")],
    ):
        code, _, errors = command_line(*arguments)
        assert (code, errors.count("\n")) == (2, 1)
        assert errors.startswith("error: expected a run that you made yourself to load code for, got ")
        assert errors.endswith("changed since; name it by --model FILE.py:factory, if you trust it\n")


def test_a_run_is_its_user_s(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run.open(made / "run").recipe.model.sha256
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(RunError, match=r"expected a run that you made yourself"):
        Run.open(made / "run")
    assert Run.open(made / "run", model=f"{made / 'nets.py'}:small").recipe.model.sha256
    assert (tmp_path / "qrobust" / "key").stat().st_mode & 0o777 == 0o600


def test_a_moved_recipe_is_the_same_run_and_a_changed_network_another(copied: Path) -> None:
    moved = recipe.load(str(copied / "own.toml"), SMALL)
    Run(moved, copied / "run").train_stage(32).reconcile()
    (copied / "nets.py").write_text(EXAMPLES["nets.py"] + "\n")
    with pytest.raises(RunError, match=r"model.sha256: trained with '\w+', the recipe has '\w+'; set it back"):
        Run(moved, copied / "run").train_stage(32).reconcile()


def test_without_training_a_float_network_is_taken_as_it_is(made: Path, tmp_path: Path) -> None:
    """From another run; and quantised by calibration alone, then anew with another setting, then trained."""
    weights = (made / "run" / "qm-32" / "model.safetensors").read_bytes()
    common = ["train", str(made / "own.toml"), "--from", str(made / "run"), "--out", str(tmp_path / "run")]
    assert ended(*common, *options(*SMALL, *UNTRAINED, "bits=[8]")) == 0
    taken = Run.open(tmp_path / "run")
    record = json.loads((tmp_path / "run" / "qm-32" / "train.json").read_text())
    assert (record["epochs"], taken.recipe.bits, taken.recipe.train.epochs) == (0, (32, 8), 0)
    before = Run.open(made / "run").network(32)
    x = taken.dataset.test.take(slice(0, 60)).x.float() / 255
    with torch.no_grad():
        assert torch.equal(taken.network(32)(x), before(x))
        assert (taken.network(8)(x) - before(x)).abs().mean() < 0.1 * before(x).std()
    assert ended(*common, *options(*SMALL, "quant.fat=none", "bits=[8]")) == 0
    assert (tmp_path / "run" / "older" / "qm-8.1" / "train.json").is_file()
    assert json.loads((tmp_path / "run" / "qm-8" / "train.json").read_text())["epochs"] == 1
    assert (made / "run" / "qm-32" / "model.safetensors").read_bytes() == weights
    with pytest.raises(RunError, match=r"expected a run of this recipe .*; model.weights: trained with 'sha256:"):
        Run(recipe.load(str(made / "own.toml"), SMALL), tmp_path / "run").train_stage(32).reconcile()


def test_damaged_weights_of_a_network_that_is_not_trained_are_made_anew(made: Path, tmp_path: Path) -> None:
    settings = ["train", str(made / "own.toml"), "--from", str(made / "run"), "--out", str(tmp_path / "run")]
    settings += options(*SMALL, *UNTRAINED, "bits=[32]")
    assert ended(*settings) == 0
    file = tmp_path / "run" / "qm-32" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert ended(*settings) == 0
    assert file.read_bytes() == whole


FACTORIES = """
from torch import nn

def raises(classes):
    return {}["depth"]

def nothing():
    return None

def hundred():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 100))
"""
FITTING = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
"""
REFUSED = {
    "raises": ("model.name=bad.py:raises", "expected a network of .*, got KeyError: 'depth'"),
    "missing": ("model.name=bad.py:rises", "expected a function 'rises' in .*; did you mean 'raises'"),
    "nothing": ("model.name=bad.py:nothing", "expected a torch module of .*, got None; return the network"),
    "classes": (
        "model.name=bad.py:hundred",
        r"expected logits \(2, 10\) of .*, got \(2, 100\); make it for 10 classes",
    ),
    "no file": ("model.name=none.py:raises", "no .*none.py; correct the path or the name"),
    "no weights": ("model.weights=none.pth", "expected weights at .*none.pth, got no file; correct the path"),
    "others": ("model.weights=others.pth", "expected weights of this network in .*others.pth, got others: 1 missing"),
    "code": ("model.weights=code.pth", "expected tensors alone in .*code.pth, got pickled code"),
    "mean": ("model.mean=[0.1, 0.2]", "expected model.mean of 1 or 1 numbers, one a channel, got 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_slip_is_one_line_before_training(tmp_path: Path, command_line: CommandLine, case: str) -> None:
    setting, text = REFUSED[case]
    (tmp_path / "bad.py").write_text(FACTORIES)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    (tmp_path / "nets.py").write_text(FITTING)
    torch.save({key: value for key, value in model.state_dict().items() if key != "2.bias"}, tmp_path / "others.pth")
    torch.save(model, tmp_path / "code.pth")
    (tmp_path / "own.toml").write_text(
        EXAMPLES["own.toml"].replace("nets.py:small", "nets.py:net").replace("width =", "#")
    )
    code, _, errors = command_line("run", "own.toml", *options(*SMALL, setting), "--out", "run")
    assert code == 2
    assert re.search(rf"^error: .*{text}", errors)
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_float_network_gives_none(made: Path, tmp_path: Path, command_line: CommandLine) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("recipe.toml", "source.json"):
        shutil.copy(made / "run" / name, tmp_path / "empty")
    code, _, errors = command_line("train", str(made / "own.toml"), "--from", "empty")
    assert (code, "expected a trained float network in empty, got none" in errors) == (2, True)


def test_pinned_source_is_held_to_in_a_recipe_too(tmp_path: Path) -> None:
    examples(tmp_path)
    with pytest.raises(RunError, match=r"expected the file .*nets.py that the network was made by"):
        Run(recipe.load(str(tmp_path / "own.toml"), ["model.sha256='0000'"]), tmp_path / "run")
    with pytest.raises(ModelError, match=r"no .*none.py; correct"):
        Run(recipe.load(str(tmp_path / "own.toml"), [f"model.name={tmp_path}/none.py:small"]), tmp_path / "run")


def execute(commands: str, folder: Path) -> list[int]:
    """Exit codes of commands in a shell, none of them 2 or more."""
    path, codes = f"{Path(sys.executable).parent}:{os.environ['PATH']}", []
    for line in commands.splitlines():
        command = line.replace("qrobust ", f"{sys.executable} -m qrobust ", 1)
        done = subprocess.run(
            command, shell=True, cwd=folder, capture_output=True, text=True, env=os.environ | {"PATH": path}
        )
        assert done.returncode in (0, 1), done.stderr
        codes.append(done.returncode)
    return codes


@pytest.mark.slow
def test_the_document_s_file_of_somebody_else_becomes_an_artifact(tmp_path: Path) -> None:
    examples(tmp_path)
    assert set(execute(COMMANDS["file"], tmp_path)) == {0}
    manifest = Artifact.load(tmp_path / "artifacts" / "theirs").manifest
    assert manifest["parity"] == "none"
    assert manifest["reference"]["clean"] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["module", "checkpoint"])
def test_the_document_s_examples_run(tmp_path: Path, chapter: str) -> None:
    """As they stand there, in a shell; the checkpoint's on real images."""
    examples(tmp_path)
    if chapter == "checkpoint":
        (tmp_path / "tiny-imagenet").symlink_to(Path(str(evidence("images"))) / "tiny-imagenet-sample")
    execute(COMMANDS[chapter] + (COMMANDS["from"] + COMMANDS["ptq"] if chapter == "module" else ""), tmp_path)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    chance = 0.05 if chapter == "checkpoint" else 0.1
    for width in report["widths"]:
        assert width["before"]["clean"]["accuracy"] > 2 * chance
        assert width["after"]["accuracy"]["clean"] > 2 * chance
        if chapter == "checkpoint":
            assert width["gap"]["n"] == 50
