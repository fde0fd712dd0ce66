"""Checks of a file: planted faults raise their flag, and only theirs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import qrobust
from qrobust import zoo
from qrobust.attacks import PartResult, named
from qrobust.deployed.model import find_images, open_deployed
from qrobust.deployed.sanity import SANITY_CHECKS, CheckedFile, apart, first_apart
from qrobust.evaluation import Outcomes, check_sanity
from qrobust.onnx_module import load_onnx
from qrobust.runtime import ArtifactError, sums_saturate
from qrobust.threat import Threat

from ..onnx_module.helpers import registry_file
from ..onnx_module.test_module import WEIGHTS, chain
from ..quant.helpers import images as floats
from ..test_runtime import EPS, WEIGHT, model_bytes
from .linear import artifact, masked

THREAT = Threat("linf", EPS)
N = 64


def checked(deployed, n=N, **broken):
    """With outcomes made by hand: for each attack, how many of the first images it breaks."""
    names = {key.replace("_", "-"): count for key, count in broken.items()}  # pgd_5, or its name as a key
    masks = {name: np.arange(n) >= count for name, count in {"clean": 0, **names}.items()}
    attacks = tuple(named(name, THREAT) for name in names)
    outcomes = Outcomes(THREAT, 0, attacks, "", masks, dict.fromkeys(masks, 0.0))
    served, images = deployed.served(), find_images(deployed)
    return CheckedFile(deployed, served, images, outcomes, batch_size=50)


def raised(found):
    return [flag.name for flag in check_sanity(found, SANITY_CHECKS).flags]


@pytest.fixture
def sound(tmp_path):
    return open_deployed(artifact(tmp_path / "one"))


def test_a_sound_file_raises_none(sound):
    found = check_sanity(checked(sound, pgd_5=10, square_5=10, transfer_5=10), SANITY_CHECKS)
    assert found.flags == []
    assert found.measured == dict.fromkeys((one.name for one in SANITY_CHECKS), 0.0)


def test_a_module_of_another_file(sound):
    assert raised(checked(replace(sound, module=load_onnx(model_bytes(np.roll(WEIGHT, 1)))))) == ["module-differs"]


def test_a_file_of_another_network(tmp_path):
    deployed = open_deployed(artifact(tmp_path / "one", model_bytes(np.roll(WEIGHT, 1))))
    assert raised(checked(deployed)) == ["replay-differs"]


@pytest.mark.parametrize("level", ["disable", "basic", "extended"])
def test_a_level_that_computes_something_else(sound, level):
    def at(wanted):
        right = sound.at(wanted)
        return (lambda x: -right(x)) if wanted == level else right

    assert raised(checked(replace(sound, at=at))) == ["level-differs"]


def test_a_provider_need_not_have_every_level(sound):
    def at(wanted):
        if wanted != sound.level:
            raise ArtifactError("no")
        return sound.at(wanted)

    assert "level-differs" not in check_sanity(checked(replace(sound, at=at)), SANITY_CHECKS).measured


# how many of the first images each attack breaks; the flags that follow
BEATEN = {
    "one of 64 is no sign": ({"pgd-5": 10, "cw-inf-5": 14, "square-5": 14, "transfer-5": 15}, []),
    "by Square": ({"pgd-5": 10, "square-5": 12}, ["square-wins"]),
    "by transfer": ({"pgd-5": 10, "transfer-5": 12}, ["transfer-wins"]),
    "AutoAttack holds Square": ({"pgd-5": 10, "autoattack": 30, "square-5": 12}, ["square-wins"]),
    "no best point": ({"pgd-5:keep=best": 10, "pgd-5": 30, "square-5": 12}, ["square-wins"]),
    "the best point": ({"pgd-5:keep=best": 12, "pgd-5": 10, "square-5": 12, "transfer-5": 12}, []),
    "strong": ({"strong": 10, "square-5": 12, "transfer-5": 12}, ["square-wins", "transfer-wins"]),
    "not strong": ({"strong:quick": 12, "pgd-5": 10, "square-5": 12, "transfer-5": 12}, []),
}


@pytest.mark.parametrize("case", BEATEN)
def test_who_beats_white_box_is_counted_beyond_its_best_points(sound, case):
    broken, expected = BEATEN[case]
    assert raised(checked(sound, **broken)) == expected


def test_where_no_gradient_was_tried_nothing_is_beaten(sound):
    measured = check_sanity(checked(sound, square_5=12, transfer_5=3), SANITY_CHECKS).measured
    assert {"square-wins", "transfer-wins"}.isdisjoint(measured)


@pytest.mark.parametrize(("by_square", "flags"), [(7, []), (9, ["square-wins"])])
def test_square_within_the_cascade_must_not_break_more_than_its_gradients(sound, by_square, flags):
    found = checked(sound, strong=7 + by_square, square_5=2)
    parts = {"margin-30": 5, "square-240, last": by_square - 1, "ce-50, random": 2, "square-300, best": 1}
    found.outcomes.parts["strong"] = [PartResult(part, N, broken, 0, 0, 0.0) for part, broken in parts.items()]
    assert raised(found) == flags


def test_gradients_are_those_that_quantisers_are_trained_with(tmp_path):
    """Where QuantizeLinear's saturation is a relu, a gradient that passes it points elsewhere than the network's."""
    name = "digits-resnet8-w4a8"
    zoo.get(name, tmp_path / name)
    found = checked(open_deployed(tmp_path / name))
    own = found.gradient_of(qrobust.load(f"zoo:{name}").model)
    assert F.cosine_similarity(found.gradient.flatten(1), own.flatten(1), dim=1).median() > 0.99


def test_labels_apart():
    first = {"a": torch.tensor([0, 1]), "b": torch.tensor([2, 2])}
    assert apart(first, {"a": torch.tensor([0, 0]), "b": torch.tensor([2, 2])}) == 0.25


@pytest.fixture
def bare(tmp_path):
    def written(data):
        (tmp_path / "bare.onnx").write_bytes(data)
        return open_deployed(tmp_path / "bare.onnx")

    return written


def test_the_first_layer_apart_is_named(bare, monkeypatch):
    deployed = bare(chain())
    assert first_apart(deployed, floats(4, 8, 3)) is None
    monkeypatch.setitem(WEIGHTS, "top", np.uint8(7))  # a clip of three bits
    assert first_apart(replace(deployed, module=load_onnx(chain())), floats(4, 8, 3)) == "d"


@pytest.mark.skipif(sums_saturate(), reason="without VNNI, onnxruntime's defaults let a bare file's sums saturate")
def test_layers_of_an_exported_network_agree(bare):
    assert first_apart(bare(registry_file("resnet8", 4)), floats(4, 16, 3)) is None


def test_the_flag_names_the_layer(tmp_path, monkeypatch):
    from qrobust.deployed import sanity

    deployed = open_deployed(artifact(tmp_path / "one", masked()))
    other = replace(deployed, module=load_onnx(model_bytes(np.roll(WEIGHT, 1))))
    monkeypatch.setattr(sanity, "first_apart", lambda *_: "conv1.out")
    flags = {flag.name: flag.reason for flag in sanity.check_file_sanity(checked(other)).flags}
    assert flags["module-differs"].endswith("first in conv1.out")
