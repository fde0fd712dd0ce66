"""What training takes from elsewhere: teachers that are any network and weights, and a second source of images."""

import numpy as np
import pytest
import torch

from qrobust import Threat, models, recipe
from qrobust.errors import CheckpointError, ModelError, RunError
from qrobust.recipe import difference
from qrobust.runs.folder import RunFolder
from qrobust.runs.networks import Networks
from qrobust.runs.training import TrainStage, training_settings
from qrobust.storage import read_json

from ..conftest import CommandLine
from ..train.helpers import are_equal, some_images, weights_of

NETS = """
from torch import nn

def wide(classes, width=6):
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), *pooled, nn.Linear(width, classes))

def for_large_images(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))

def of_ten(in_channels):
    return wide(10)
"""
SMALL = {"epochs": 1, "batch_size": 20, "attack": {"steps": 1}, "validation": {"steps": 1}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a data set of three classes, networks, and weights of one."""
    train, test = some_images(40, 0), some_images(120, 1)
    arrays = {"x_train": train.x, "y_train": train.y, "x_test": test.x, "y_test": test.y}
    np.savez(tmp_path / "images.npz", **{name: array.numpy() for name, array in arrays.items()})
    (tmp_path / "nets.py").write_text(NETS)
    torch.manual_seed(5)
    torch.save(models.build(f"{tmp_path}/nets.py:wide", in_channels=3, classes=3).state_dict(), tmp_path / "wide.pth")
    torch.save(models.build("resnet8", in_channels=3, classes=10).state_dict(), tmp_path / "ten.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def networks(place, teacher, of="train", **more):
    """Of a recipe whose float network, or whose quantised one, has this teacher; ARD and RSLAD in turns."""
    method = {"train": {"method": "ard", "teacher": teacher}, "quant": {"method": "rslad", "teacher": teacher}}[of]
    table = {
        "name": "taught", "data": {"name": "npz", "root": str(place / "images.npz")}, "threat": {"eps": "8/255"},
        "bits": [32, 4], "model": {"name": "nets.py:wide", "width": 4}, "train": SMALL, "quant": {"epochs": 1}, **more,
    }  # fmt: skip
    whole = {**table, of: table[of] | method}
    return Networks(recipe.parse(recipe.located(whole, place), source="test"), RunFolder(place / "run"))


WIDE = {"name": "nets.py:wide", "weights": "wide.pth", "mean": 0.5, "std": [0.2, 0.3, 0.4]}


@pytest.mark.parametrize(("of", "bits"), [("train", 32), ("quant", 4)])
def test_it_is_the_network_of_its_table(place, of, bits):
    teacher, x = networks(place, WIDE, of).teacher(bits), torch.rand(2, 3, 6, 6)
    saved = torch.load(place / "wide.pth")
    assert are_equal({name.removeprefix("network."): value for name, value in weights_of(teacher).items()
                      if name.startswith("network.")}, saved)  # fmt: skip
    std = torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    assert torch.equal(teacher(x), teacher.network((x - 0.5) / std))
    assert not teacher.training
    assert networks(place, WIDE, "quant").teacher(32) is None  # whose method is at


WRONG = {
    "classes": ({"name": "resnet8", "weights": "ten.pth"}, CheckpointError, r"of another shape \(fc.*10.*not.*3"),
    "a factory's classes": ({"name": "nets.py:of_ten"}, ModelError, "make it for 3 classes"),
    "image size": ({"name": "nets.py:for_large_images"}, ModelError, r"to take images \(2, 3, 6, 6\)"),
    "no file": ({"name": "resnet8", "weights": "no.pth"}, CheckpointError, "no.pth, got no file; correct the path"),
    "no code": ({"name": "none.py:f"}, ModelError, "none.py; correct the path or the name"),
    "other code": ({"name": "nets.py:wide", "sha256": "0"}, ModelError, "put it back, or remove sha256"),
    "normalisation": ({**WIDE, "mean": [1, 2]}, ModelError, "expected mean of 1 or 3 numbers, one a channel, got 2"),
    "an option": ({"name": "nets.py:wide", "depth": 3}, ModelError, "has no option 'depth'"),
}


@pytest.mark.parametrize(("table", "error", "text"), WRONG.values(), ids=WRONG)
def test_another_network_is_refused_in_a_line(place, table, error, text):
    with pytest.raises(error, match=rf"^train\.teacher: .*{text}") as caught:
        networks(place, table).teacher(32)
    assert "\n" not in str(caught.value)


def test_a_run_is_refused_before_its_first_epoch(place, command_line: CommandLine):
    settings = (
        "data={name = 'npz', root = 'images.npz', test_size = 120, train_size = 40}", "model={name = 'resnet8'}",
        "evaluate={n = 120, attacks = ['fgsm']}", "export={suite_n = 120, suite_attacks = ['fgsm']}", "bits=[32]",
        "attack.n=9", f"train.teacher={{name = 'resnet8', weights = '{place}/ten.pth'}}", "train.method=rslad",
    )  # fmt: skip
    options = [part for one in settings for part in ("-o", one)]
    code, _, errors = command_line("train", "digits", "--out", str(place / "run"), *options)
    assert (code, errors.strip().splitlines()[-1].count("train.teacher: expected weights of this network")) == (2, 1)
    assert not (place / "run" / "qm-32").exists()


@pytest.mark.parametrize("of", ["train", "quant"])
def test_its_weights_and_code_decide_what_is_trained_not_their_place(place, of):
    def settings(**table):
        return training_settings(networks(place, WIDE | table, of).recipe, 4)

    before = settings()
    moved = place / "elsewhere"
    moved.mkdir()
    for name in ("wide.pth", "nets.py"):
        (moved / name).write_bytes((place / name).read_bytes())
    found = settings(name="elsewhere/nets.py:wide", weights="elsewhere/wide.pth")
    assert found == before
    recorded = recipe.parse({"name": "x", **before}, source="recorded")
    assert training_settings(recorded, 4) == before
    torch.save({name: 2 * value for name, value in torch.load("wide.pth").items()}, "wide.pth")
    assert difference(before, settings()).startswith(f"{of}.teacher.weights: trained with 'sha256:")
    (place / "nets.py").write_text(NETS + "# another")
    assert settings(weights="elsewhere/wide.pth")[of]["teacher"]["sha256"] != before[of]["teacher"]["sha256"]


def test_float_networks_and_quantised_ones_learn_from_it(place):
    """From two teachers; from another one the float network is another."""
    trained = {}
    for name, teacher in {"wide": WIDE, "again": WIDE, "wider": {**WIDE, "mean": 0.0}}.items():
        quant = {"epochs": 1, "method": "rslad", "teacher": teacher, "fat": "none"}
        made = networks(place, teacher, quant=quant)
        made.files = RunFolder(place / name)
        for bits in (32, 4):
            TrainStage(made, Threat("linf", 8 / 255), bits).run()
        trained[name] = weights_of(made.network(32)) | weights_of(made.network(4))
        recorded = read_json(made.files.network(4).training)["settings"]
        assert recorded["quant"]["teacher"]["weights"].startswith("sha256:")
    assert are_equal(trained["wide"], trained["again"])
    assert not are_equal(trained["wide"], trained["wider"])


# A second source


def with_extra(place, file="more.npz", **more):
    extra = {"name": "npz", "root": str(place / file), "share": 0.5, **more}
    made = networks(place, WIDE, "quant", train={**SMALL, "extra": extra}, bits=[32])
    return TrainStage(made, Threat("linf", 8 / 255), 32)


def test_the_images_of_a_second_source_decide_what_is_trained_not_their_place(place):
    for name, seed in (("more", 3), ("other", 4)):
        images = some_images(30, seed)
        np.savez(place / f"{name}.npz", image=images.x.permute(0, 2, 3, 1).numpy(), label=images.y.numpy())
    stage = with_extra(place)
    stage.run()
    recorded = read_json(stage.files.training)["settings"]["train"]["extra"]
    assert len(recorded["sha256"]) == 64
    assert "root" not in recorded
    (place / "more.npz").rename(place / "moved.npz")
    moved = with_extra(place, "moved.npz")
    moved.reconcile()
    assert moved.stage.done()
    other = with_extra(place, "other.npz")
    assert not other.stage.done()
    with pytest.raises(RunError, match=r"train\.extra\.sha256: trained with '"):
        other.reconcile()
    with pytest.raises(RunError, match=r"^train\.extra: expected images of sha256 .*; give the same, or remove sha256"):
        with_extra(place, "other.npz", sha256=recorded["sha256"])
    assert with_extra(place, "none.npz", share=0.0).networks.extra is None
