"""Figures of an analysis inside the page, light or dark as it is, and images of a suite."""

import base64
import io
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from qrobust.report import pictures
from qrobust.report.pictures import MOST_SIDE, examples
from qrobust.runtime import Artifact
from qrobust.storage import write_json

from .conftest import analysed


def test_title_and_caption_are_text_and_the_figure_has_the_pages_colours(tmp_path):
    write_json(tmp_path / "low-pass.json", analysed())
    (found,) = pictures.figures([tmp_path / "low-pass.json"])
    assert found.title == "Accuracy behind a low-pass filter"
    assert "n = 12 test images of digits" in found.caption
    assert "\n" not in found.caption
    assert f'<title id="figure-low-pass-title">{found.title}</title>' in found.svg
    assert found.svg.count("behind a low-pass") == 1  # its words, not drawn twice
    assert not re.search(r"(?<!href=)\"?#[0-9a-f]{6}\b(?![\w-])", found.svg)
    assert {"ink", "soft", "grid", "s0", "s1"} <= set(re.findall(r"var\(--(\w+)\)", found.svg))
    assert found.width > found.height > 0


def test_a_heavy_figure_is_drawn_in_pixels_light_and_dark_or_left_out(tmp_path, monkeypatch):
    write_json(tmp_path / "low-pass.json", analysed())
    monkeypatch.setattr(pictures, "MOST_SVG", 10)
    (found,) = pictures.figures([tmp_path / "low-pass.json"])
    assert found.svg == ""
    assert [pixels(uri)[0, 0, :3].max() for uri in (found.source, found.dark)] == [0xFF, 0x28]
    monkeypatch.setattr(pictures, "MOST_BYTES", 100)
    (found,) = pictures.figures([tmp_path / "low-pass.json"])
    assert found.size == 0
    assert "Left out of this page for its size" in found.caption


def test_data_that_cannot_be_drawn_is_named(tmp_path):
    write_json(tmp_path / "other.json", {"figure": "low-pass"})
    write_json(tmp_path / "low-pass.json", analysed())
    known, other = pictures.figures([tmp_path / "other.json", tmp_path / "low-pass.json"][::-1])
    assert known.svg
    assert other.caption.startswith("Could not be drawn: expected the data of a figure")


EPS = 8 / 255


def artifact(y, after, channels=1, side=4, step=8, **more):
    """right when clean; labels `after` under the attack "pgd"; `step` up in the first pixel, down in the last."""
    clean = np.full((len(y), channels, side, side), 100, np.uint8)
    moved = clean.copy()
    moved[:, :, 0, 0], moved[:, :, -1, -1] = 100 + step, 100 - step
    suite = {
        "y": np.array(y),
        "label.clean": np.array(y),
        "label.pgd": np.array(after),
        "x.clean": clean,
        "x.pgd": moved,
    }
    names = tuple(f"class {index}" for index in range(10))
    parts = {"sets": ("clean", "pgd"), "manifest": {"reference": {"clean": 1.0, "pgd": 0.5}}, "eps": EPS}
    made = SimpleNamespace(suite=suite, classes=names, **parts | more)
    made.found_by = partial(Artifact.found_by, made)
    return made


def pixels(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_broken_ones_of_different_classes_come_first():
    found = examples(artifact([0, 1, 1, 2, 3], [0, 5, 6, 7, 3]))
    assert [(one.true, one.after) for one in found] == [
        ("class 1", "class 5"), ("class 2", "class 7"), ("class 0", "class 0"), ("class 3", "class 3"),
    ]  # fmt: skip


def test_images_that_were_wrong_before_are_not_shown():
    made = artifact([0, 1], [3, 3])
    made.suite["label.clean"] = np.array([9, 1])
    assert [(one.true, one.before) for one in examples(made)] == [("class 1", "class 1")]


@pytest.mark.parametrize(("channels", "step"), [(1, 8), (3, 8), (1, 2)])  # a step of 2: in l2 a pixel moves little
def test_pictures_are_the_suites(channels, step):
    one = examples(artifact([0], [1], channels, step=step))[0]
    assert pixels(one.clean).shape == ((4, 4, 3) if channels == 3 else (4, 4))
    assert np.unique(pixels(one.clean)).tolist() == [100]
    assert pixels(one.adversarial)[0, 0].max() == 100 + step
    difference = pixels(one.difference)
    assert (difference[0, 0].max(), difference[1, 1].max(), difference[-1, -1].max()) == (255, 128, 0)


def test_large_images_are_scaled_down_and_suites_without_attacks_show_none():
    assert pixels(examples(artifact([0], [1], side=2 * MOST_SIDE))[0].clean).shape == (MOST_SIDE, MOST_SIDE)
    assert examples(artifact([0], [1], sets=("clean",))) == ()


def test_the_attack_that_breaks_most_is_shown():
    made = artifact([0], [1], sets=("clean", "fgsm", "pgd"))
    made.manifest["reference"]["fgsm"] = 0.9
    assert examples(made)[0].attack == "pgd"


def test_the_part_of_a_cascade_that_found_an_image_is_named():
    made = artifact([0, 1], [1, 1])
    assert [one.part for one in examples(made)] == ["", ""]  # of suites without names
    attack = examples(made)[0].attack
    names = np.array([b"ce-50, random", b"clean"])  # the second is an image as it came
    made.suite[f"found_by.{attack}"] = names.view(np.uint8).reshape(2, -1)
    assert [(one.true, one.part) for one in examples(made)] == [("class 0", "ce-50, random"), ("class 1", "")]
