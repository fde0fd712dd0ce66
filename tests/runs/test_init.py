"""A recipe for one's own folder: what is looked at, what follows, and that a run takes it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qrobust import devices, recipe
from qrobust.errors import DataError, RunError
from qrobust.runs import init as beginning
from qrobust.runs.init import Found, Part, Plan, init, look
from qrobust.runs.run import Run

from ..conftest import CommandLine, ended


def draw(folder: Path, count: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> None:
    """Pictures of a (width, height) whose colour is of their class, the last letter of the folder's name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(count)
    for index in range(count):
        pixels = generator.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
        pixels[..., "abc".index(folder.name[-1])] += 120
        Image.fromarray(pixels).convert(mode).save(folder / f"{mode}{size[0]}-{index}.png")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of one image takes 10 ms, on whatever this is."""
    monkeypatch.setattr(beginning, "_seconds", lambda model, shape: 0.01)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "device", lambda: torch.device("cuda"))


def planned(sizes: dict[tuple[int, int], int], classes: int = 3, tested: int | None = 200) -> dict:
    """The tables for images of these (height, width), as many of each class, and as many of one size to test."""
    train = Part({f"class {index}": sum(sizes.values()) // classes for index in range(classes)}, Counter(sizes))
    test = None if tested is None else Part({"class 0": tested}, Counter({next(iter(sizes)): tested}))
    return Plan(Found(Path("photos"), train, test)).table()


@pytest.mark.parametrize(
    ("sizes", "size"),
    [({(12, 12): 300}, None), ({(48, 64): 300}, None), ({(12, 12): 299, (13, 13): 1}, 8), ({(500, 500): 300}, 64),
     ({(40, 36): 200, (52, 44): 100}, 32), ({(480, 640): 300}, [64, 88]), ({(90, 60): 150, (100, 70): 150}, [72, 48]),
     ({(9, 100): 200, (9, 104): 100}, [8, 88])],
)  # fmt: skip
def test_one_size_is_kept_and_many_become_one(sizes: dict, size: object) -> None:
    assert planned(sizes)["data"].get("size") == size


@pytest.mark.parametrize(
    ("side", "classes", "name", "eps"),
    [(12, 3, "resnet8", "8/255"), (32, 30, "resnet20", "8/255"), (64, 3, "resnet20", "8/255")],
)
def test_a_network_that_a_cpu_trains(side: int, classes: int, name: str, eps: str) -> None:
    table = planned({(side, side): 300}, classes)
    assert (table["model"], table["threat"]["eps"]) == ({"name": name}, eps)
    assert table["train"]["attack"] == {"kind": "n-fgsm"}


@pytest.mark.usefixtures("gpu")
def test_a_network_that_a_gpu_trains() -> None:
    large, small = planned({(300, 300): 300}), planned({(32, 32): 300})
    assert large["data"]["size"] == 224
    assert large["model"] == {"name": "resnet18", "stem": "imagenet"}
    assert large["threat"]["eps"] == "4/255"
    assert small["model"] == {"name": "resnet18"}
    assert small["train"]["attack"] == {"kind": "pgd", "steps": 7}


@pytest.mark.parametrize(("images", "epochs"), [(300, 60), (3000, 30), (300_000, 6)])
def test_epochs_fill_half_an_hour(images: int, epochs: int) -> None:
    assert planned({(12, 12): images})["train"]["epochs"] == epochs  # 0.02 s an image and epoch


@pytest.mark.parametrize(("images", "share"), [(600, 0.2), (500, 0.3), (240, 0.5)])
def test_as_many_images_are_drawn_for_testing_as_a_check_needs(images: int, share: float) -> None:
    assert planned({(12, 12): images}, tested=None)["data"]["test_share"] == share


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected 117 images or more for testing, .* got 110 in photos; add images"):
        planned({(12, 12): 220}, tested=None)
    with pytest.raises(DataError, match="got 116 in photos"):
        planned({(12, 12): 240}, tested=116)
    assert "evaluate" not in planned({(12, 12): 240}, tested=117)
    assert planned({(12, 12): 240}, tested=5000)["evaluate"] == {"n": 1000}


def test_what_lies_in_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a", 3, (12, 10))
    draw(tmp_path / "train" / "b", 2, mode="L")
    draw(tmp_path / "val" / "a", 1)
    draw(tmp_path / "val" / "b", 1)
    (tmp_path / "train" / ".c").mkdir()
    (tmp_path / "train" / "empty").mkdir()
    (tmp_path / "train" / "b" / "notes.txt").write_text("no picture")
    broken = tmp_path / "train" / "b" / "cut.png"
    broken.write_bytes((tmp_path / "train" / "b" / "L12-0.png").read_bytes()[:60])
    turned = Image.new("RGB", (10, 20))
    turned.getexif()[0x0112] = 6  # by a quarter
    turned.save(tmp_path / "train" / "a" / "turned.jpg", exif=turned.getexif())
    found = look(tmp_path)
    assert found.train.counts == {"a": 4, "b": 2}
    assert found.train.sizes == {(10, 12): 3, (12, 12): 2, (10, 20): 1}
    assert (found.train.grey, found.train.broken) == (2, [broken])
    assert found.test is not None
    assert found.test.total == 2


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Training and test images of three classes and one size."""
    for name in "abc":
        draw(tmp_path / "my photos!" / "train" / name, 20)
        draw(tmp_path / "my photos!" / "test" / name, 50)
    return tmp_path / "my photos!"


def test_a_recipe_is_written_and_said(photos: Path, command_line: CommandLine, tmp_path: Path) -> None:
    code, out, error = command_line("init", str(photos))
    assert (code, error) == (0, "")
    *reasons, last = out.splitlines()
    assert last == "recipe: my-photos.toml; next: qrobust run my-photos.toml"
    written = recipe.load("my-photos.toml")
    assert (written.name, written.data.root) == ("my-photos", str(photos))
    assert written.data.size is None
    text = (tmp_path / "my-photos.toml").read_text()
    for reason in reasons:
        assert f"# {reason.strip()}\n" in text
    assert "60 images for training, 3 classes: colour; fewest of 'a', 20" in out
    assert command_line("init", str(photos))[0] == 2
    assert (tmp_path / "my-photos.toml").read_text() == text


def test_what_is_no_folder_of_images_is_refused(tmp_path: Path, photos: Path) -> None:
    draw(tmp_path / "one" / "a", 1)
    wrong: dict[str, tuple[Callable[[], object], type[Exception]]] = {
        "images in two folders or more, a class each, in .*one, got 1; lay": (
            lambda: init(tmp_path / "one"),
            DataError,
        ),
        "a folder of images at .*nowhere, got": (lambda: init(tmp_path / "nowhere"), DataError),
        "--out to end in .toml": (lambda: init(photos, tmp_path / "a.json"), RunError),
        "no file at .*, got one": (lambda: init(photos, photos), RunError),
    }
    for said, (call, kind) in wrong.items():
        with pytest.raises(kind, match=said):
            call()
    assert not list(tmp_path.glob("*.toml"))


@pytest.mark.slow
def test_a_run_takes_what_is_written(photos: Path, tmp_path: Path) -> None:
    path, _ = init(photos, tmp_path / "own.toml")
    Run(recipe.load(str(path)), tmp_path / "run")._preflight()


@pytest.mark.slow
def test_from_mixed_images_to_a_checked_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        draw(tmp_path / "photos" / name, 100)
        draw(tmp_path / "photos" / name, 60, (18, 15))
        draw(tmp_path / "photos" / name, 20, mode="L")
    (tmp_path / "photos" / "b" / "broken.png").write_bytes(b"\x89PNG nothing")
    assert ended("init", "photos") == 0
    written = recipe.load("photos.toml")
    assert (written.data.skip_unreadable, written.data.test_share, written.data.size) == (True, 0.3, 8)
    small = ("train.epochs=3", "quant.epochs=1", "bench.seconds=0.1", "threads=1", "evaluate.attacks=['pgd-5']",
             "export.suite_attacks=['pgd-5']", "attack.n=20", "attack.attacks=['pgd-5']")  # fmt: skip
    assert ended("run", "photos.toml", *(part for one in small for part in ("-o", one))) in (0, 1)
    report = json.loads(Path("runs/photos/report.json").read_text())
    assert [width["bits"] for width in report["widths"]] == [32, 8, 4]
    assert ended("check", "runs/photos/qm-8/artifact", "--queries", "50") == 0
