"""Which images are shown, and that they show what the suite holds."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from qrobust.report.examples import MOST_SIDE, examples

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
    told = {"sets": ("clean", "pgd"), "manifest": {"reference": {"clean": 1.0, "pgd": 0.5}}, "eps": EPS}
    return SimpleNamespace(suite=suite, classes=names, **told | more)


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
