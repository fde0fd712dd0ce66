"""Artifacts are written whole, or not at all."""

import hashlib
import json

import pytest
import torch

from qrobust.attacks import named
from qrobust.data import Dataset, Images
from qrobust.errors import ExportError
from qrobust.export import sessions
from qrobust.export.artifact import Contents, make_suite, write_artifact
from qrobust.export.target import load_target
from qrobust.export.write import INPUTS
from qrobust.runtime import Artifact
from qrobust.threat import Threat

from .helpers import network


def some_dataset(n=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    part = Images(x, torch.arange(n) % 10)
    return Dataset("random", tuple("0123456789"), part, part, part, "0" * 64)


def some_contents(threat=Threat("linf", 8 / 255), bits=4, input="float32-nchw", attack="fgsm"):
    dataset = some_dataset()
    suite = make_suite(network(bits), dataset.test, attacks=[named(attack, threat)], threat=threat, seed=0)
    return Contents("try", bits, 0, threat, {"name": "try"}, suite, {"clean": 0.1}, input)


def write(folder, target="ort-cpu", **settings):
    write_artifact(folder, network(4), some_dataset(), load_target(target), some_contents(**settings))
    return json.loads((folder / "manifest.json").read_text())


def test_an_artifact_can_be_loaded_and_its_manifest_holds(tmp_path):
    folder = tmp_path / "new" / "artifact"
    manifest = write(folder)
    for name, said in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert said == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert {path.name for path in folder.iterdir()} == {*manifest["files"], "manifest.json"}
    assert set(manifest["metrics"]["after"]) == {"clean", "fgsm"}
    assert manifest["metrics"]["after"] == manifest["reference"]
    assert manifest["statistics"]["test"] == "exact-score"
    assert manifest["bits_per_layer"]["layer1.0.conv1"] == 4
    assert Artifact.load(folder).suite["y"].shape == (12,)
    assert (manifest["schema_version"], Artifact.load(folder).found_by("fgsm")) == (1, ())
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_an_artifact_is_replaced_even_one_that_was_damaged(tmp_path):
    write(tmp_path / "artifact")
    for name in ("model.onnx", "manifest.json"):
        (tmp_path / "artifact" / name).write_text("")
        (tmp_path / "artifact" / "signature.sig").touch()
        write(tmp_path / "artifact")
        Artifact.load(tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_refused_artifact_leaves_the_old_one(tmp_path):
    write(tmp_path / "artifact")
    before = {path.name: path.read_bytes() for path in (tmp_path / "artifact").iterdir()}
    with pytest.raises(ExportError, match=r"expected input float32-nchw or uint8-nhwc, got 'bytes'"):
        write(tmp_path / "artifact", input="bytes")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "artifact").iterdir()} == before


def test_a_suite_of_a_cascade_says_which_part_found_each_image(tmp_path):
    manifest = write(tmp_path / "artifact", attack="strong:budget=20")
    artifact = Artifact.load(tmp_path / "artifact")
    names = artifact.found_by("strong:budget=20")
    assert (manifest["schema_version"], len(names)) == (2, 12)
    assert set(names) == {"clean", "margin-9"}
    assert artifact.found_by("clean") == ()
    assert manifest["metrics"]["after"] == manifest["reference"]


@pytest.mark.parametrize("input", INPUTS)
def test_an_l2_threat_reaches_the_artifact(tmp_path, input):
    manifest = write(tmp_path / "artifact", threat=Threat("l2", 0.5), input=input)
    assert manifest["threat"] == {"norm": "l2", "eps": 0.5}
    assert manifest["metrics"]["after"] == manifest["reference"]
    suite = Artifact.load(tmp_path / "artifact").suite
    change = (suite["x.fgsm"].astype(int) - suite["x.clean"]).reshape(12, -1)
    assert 0 < (change**2).sum(1).max() <= (255 * 0.5) ** 2


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", pytest.param("compact", marks=pytest.mark.slow)])
def test_the_manifest_says_what_goes_in_and_how_well_it_agrees(tmp_path, target, input):
    manifest = write(tmp_path / "artifact", target, input=input)
    shape, dtype = ([1, 8, 8], "float32") if input == INPUTS[0] else ([8, 8, 1], "uint8")
    assert (manifest["input"]["shape"], manifest["input"]["dtype"]) == (shape, dtype)
    assert (manifest["parity"]["n"], manifest["parity"]["flips"], manifest["parity"]["first"]) == (12, 0, None)
    assert manifest["metrics"]["after"] == manifest["reference"]


def test_where_the_provider_is_missing_the_cpu_replays_and_the_manifest_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sessions._opens.cache_clear()
    manifest = write(tmp_path / "artifact", "ort-cuda")
    assert manifest["target"]["provider"] == "CUDAExecutionProvider"
    assert manifest["metrics"]["after_provider"] == "CPUExecutionProvider"


def test_what_no_runtime_executes_is_written_without_outcomes(tmp_path):
    manifest = write(tmp_path / "artifact", "qonnx")
    assert manifest["metrics"]["after"] == {}
    assert "parity" not in manifest
