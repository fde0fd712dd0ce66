"""docs/data.md: its recipes load its images, its function and its example run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust import recipe
from qrobust.data import DataSettings, Extra, load, make_images

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
PYTHON, TOML = (re.findall(rf"```{kind}\n(.*?)```", TEXT, re.S) for kind in ("python", "toml"))
REST = 'model = {name = "resnet8"}\nthreat = {eps = "8/255"}\nbits = [32]\n'


def written(folder, block):
    """The recipe that a block is a part of."""
    tables = "" if "[train]" in block else "[train]\nepochs = 1\n"
    path = folder / "mine.toml"
    path.write_text(REST + block.replace("[train]\n", "data = {name = 'digits'}\n[train]\nepochs = 1\n") + tables)
    return recipe.load(str(path))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """With what the page speaks of: mine.py, and a folder of mixed sizes, grey and broken files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PYTHON[0])
    for position in range(20):
        path = tmp_path / "shapes" / "ab"[position % 2] / f"{position}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((14 + position, 20 + 3 * (position % 5), 3), position, np.uint8)
        Image.fromarray(pixels if position % 3 else pixels[..., 0]).save(path)
    (tmp_path / "shapes" / "a" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path


@pytest.mark.parametrize("block", TOML[:2], ids=["folder", "function"])
def test_its_recipes_load_images(place, block, capfd):
    found = load(DataSettings(**written(place, block).data.model_dump(exclude={"crop", "flip"})))
    height = 12 if "folder" in block else 10
    assert found.shape == (3, height, 20)
    assert len(found.test) == (4 if "folder" in block else 120)
    said = capfd.readouterr().err
    assert "no images for testing" in said
    assert ("1 of 21 files cannot be read and are left out: 'a/broken.jpg'" in said) == ("folder" in block)


def test_its_weights_of_classes(place):
    assert written(place, TOML[3]).train.class_weights == "balanced"


def test_its_second_source(place):
    """And what the page says of a batch."""
    found = written(place, f"[train]\n{TOML[2]}").train.extra
    assert (found.name, found.root, found.share) == ("npz", "generated.npz", 0.7)
    beside = Extra(make_images(torch.zeros(1, 1, 1, 1).byte(), torch.tensor([0]), classes=1), found.share, torch.arange)
    assert beside.counts(3 * 38, 128) == [90] * 3


def test_its_example_runs(capsys):
    exec(compile(PYTHON[1], "docs/data.md", "exec"), {})
    assert "'n': [20, 20, 20]" in capsys.readouterr().out
