"""Artifacts are written whole, or not at all."""

import hashlib
import json

import pytest
import torch

from qrobust.attacks import named
from qrobust.data import Dataset, Images
from qrobust.errors import ExportError
from qrobust.export import Contents, load_target, make_suite, optimised_ops, write_artifact
from qrobust.export.artifact import check_integer
from qrobust.runtime import Artifact
from qrobust.threat import Threat

from .helpers import lowered, network


def some_dataset(n=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    part = Images(x, torch.arange(n) % 10)
    return Dataset("random", tuple("0123456789"), part, part, part, "0" * 64)


def some_contents(norm="linf", bits=4):
    threat, dataset = Threat(norm, 8 / 255), some_dataset()
    suite = make_suite(network(bits), dataset.test, attacks=[named("fgsm", threat)], threat=threat, seed=0)
    return Contents("try", bits, 0, threat, {"name": "try"}, suite, {"clean": 0.1})


def write(folder, **settings):
    write_artifact(folder, network(4), some_dataset(), load_target("ort-cpu"), some_contents(**settings))


def test_an_artifact_can_be_loaded_and_its_manifest_holds(tmp_path):
    write(tmp_path / "new" / "artifact")
    folder = tmp_path / "new" / "artifact"
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, said in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert said == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["metrics"]["after"]) == {"clean", "fgsm"}
    assert manifest["metrics"]["after"] == manifest["reference"]
    assert manifest["bits_per_layer"]["layer1.0.conv1"] == 4
    assert Artifact.load(folder).suite["y"].shape == (12,)
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_what_stood_there_is_replaced(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old").touch()
    write(folder)
    assert not (folder / "old").exists()


def test_a_refused_artifact_leaves_the_old_one(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ExportError, match=r"expected a threat in linf.*got l2"):
        write(folder, norm="l2")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert (folder / "old").exists()


def test_float_convolutions_in_an_integer_network_are_refused(tmp_path):
    path, target = tmp_path / "model.onnx", load_target("ort-cpu")
    path.write_bytes(lowered(32))
    assert optimised_ops(path, target)["QLinearConv"] == 0
    with pytest.raises(ExportError, match=r"ort-cpu: expected 9 integer convolutions.*got 0"):
        check_integer(path, target, network(4))
