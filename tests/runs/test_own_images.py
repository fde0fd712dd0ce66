"""A user's own images, of any shape and with what folders hold, on the way to a checked artifact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qrobust.runs.run import Run
from qrobust.runtime import Artifact

from ..conftest import CommandLine

FACTORY = """
import torch

def make(n=700, height=12, width=20, shift=0):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    x = torch.randint(120, (n, 1, height, width), generator=generator)
    for k in range(3):
        x[y == k, :, :, width // 3 * k : width // 3 * (k + 1)] += 130
    return x.to(torch.uint8), y + shift
"""
RECIPE = """
name = "own"
bits = [32, 4]
threat = {eps = "16/255"}
model = {name = "resnet8"}
train = {epochs = 1, batch_size = 64, class_weights = "balanced", attack = {steps = 1}, validation = {steps = 1}}
quant = {epochs = 1, batch_size = 64, lr = 0.01}
evaluate = {attacks = ["pgd-2"]}
export = {suite_n = 120, suite_attacks = ["pgd-2"]}
bench = {batches = [1], seconds = 0.05}
attack = {attacks = ["pgd-2"], n = 20}
"""
OWN = 'data = {name = "mine.py:make", test_share = 0.3, crop = 1}\n'
FOLDER = 'data = {name = "folder", root = "shapes", size = [12, 20], skip_unreadable = true, test_share = 0.5}\n'


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a recipe, and the function that it names."""
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "own.toml").write_text(OWN + RECIPE)
    return tmp_path


def pictures(root: Path) -> None:
    """Two classes without a split: mixed sizes, grey ones among them, a broken file, a file that is none."""
    generator = np.random.default_rng(0)
    for position in range(260):
        height, width = generator.integers(14, 30, size=2)
        pixels = generator.integers(120, size=(height, width), dtype=np.uint8)
        pixels[:, : width // 2] += np.uint8(130 * (position % 2))
        path = root / ("left" if position % 2 else "none") / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert("L" if position % 3 else "RGB").save(path)
    (root / "left" / "1.png").write_bytes((root / "left" / "1.png").read_bytes()[:60])
    (root / "left" / "notes.txt").write_text("no image")


@pytest.mark.slow
@pytest.mark.parametrize("data", [OWN, FOLDER], ids=["function", "folder"])
def test_to_a_checked_artifact(own: Path, data: str, command_line: CommandLine) -> None:
    (own / "own.toml").write_text(data + RECIPE)
    pictures(own / "shapes")
    code, _, said = command_line("run", "own.toml", "--out", "run")
    report = json.loads((own / "run" / "report.json").read_text())
    assert code == (0 if report["passed"] else 1)  # which an epoch need not reach
    assert "no images for testing" in said
    artifact = Artifact.load(own / "run" / "qm-4" / "artifact")
    assert artifact.suite["x.clean"].shape[2:] == (12, 20)
    assert command_line("check", "run/qm-4/artifact")[0] in (0, 1)
    assert command_line("attack", "run/qm-4/artifact", "--attacks", "fgsm", "-n", "10")[0] == 0
    found = json.loads((own / "run" / "qm-4" / "eval.json").read_text())
    assert sum(found["per_class"]["n"]) == found["n"]
    page = (own / "run" / "report.html").read_text()
    assert "By class" in page
    again = command_line("run", "own.toml", "--out", "run")[2]
    assert again.count("done before") == 11
    if data == FOLDER:
        assert json.loads((own / "run" / "skipped.json").read_text()) == ["shapes/left/1.png"]
        assert "1 of 260 files cannot be read and are left out: 'left/1.png'" in said


BAD = {
    "a label below 0": (["data.shift=-1"], "expected labels of training images of "),
    "a class without images": (["data.shift=1"], "expected training images of every class, got none of '0'"),
    "an option that it lacks": (
        ["data.sift=1"],
        "TypeError: make() got an unexpected keyword argument 'sift'",
    ),
    "a file that is not there": (["data.name=not.py:make"], "expected Python code at "),
    "weights of other classes": (
        ["train.class_weights=[1, 2]"],
        "expected a number a class, 3, in train.class",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_a_line_before_training(own: Path, name: str, command_line: CommandLine) -> None:
    overrides, text = BAD[name]
    code, _, said = command_line("run", "own.toml", *(part for one in overrides for part in ("-o", one)))
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1)
    assert text in errors[0]
    assert "Traceback" not in said
    assert not (own / "runs").exists()


def test_a_function_that_moves_trains_nothing_anew(own: Path) -> None:
    """Its images decide, not where its file lies."""
    from qrobust.recipe import load
    from qrobust.runs.training import training_settings

    (own / "deep").mkdir()
    for name in ("mine.py", "own.toml"):
        (own / "deep" / name).write_text((own / name).read_text())
    one, other = (load(str(path)) for path in (own / "own.toml", own / "deep" / "own.toml"))
    assert one.data.name != other.data.name
    assert training_settings(one, 4) == training_settings(other, 4)
    assert training_settings(one, 4)["data"]["name"] == "mine.py:make"
    assert Run(one, own / "run").dataset.fingerprint == Run(other, own / "run").dataset.fingerprint
