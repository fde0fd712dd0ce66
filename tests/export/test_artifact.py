"""Artifacts are written whole, or not at all."""

import hashlib
import json

import pytest
import torch

from qrobust.attacks import named
from qrobust.data import Dataset, Images
from qrobust.errors import ExportError
from qrobust.export import INPUTS, Contents, load_target, make_suite, optimised, write_artifact
from qrobust.runtime import Artifact
from qrobust.threat import Threat

from .helpers import network


def some_dataset(n=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    part = Images(x, torch.arange(n) % 10)
    return Dataset("random", tuple("0123456789"), part, part, part, "0" * 64)


def some_contents(norm="linf", bits=4, input="float32-nchw"):
    threat, dataset = Threat(norm, 8 / 255), some_dataset()
    suite = make_suite(network(bits), dataset.test, attacks=[named("fgsm", threat)], threat=threat, seed=0)
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


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("target", ["ort-cpu", "tensorrt", "compact"])
def test_the_manifest_says_what_goes_in_and_how_well_it_agrees(tmp_path, target, input):
    manifest = write(tmp_path / "artifact", target, input=input)
    shape, dtype = ([1, 8, 8], "float32") if input == INPUTS[0] else ([8, 8, 1], "uint8")
    assert (manifest["input"]["shape"], manifest["input"]["dtype"]) == (shape, dtype)
    assert (manifest["parity"]["n"], manifest["parity"]["flips"], manifest["parity"]["first"]) == (12, 0, None)
    assert manifest["metrics"]["after"] == manifest["reference"]


def test_where_the_provider_is_missing_the_cpu_replays_and_the_manifest_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    optimised._opens.cache_clear()
    manifest = write(tmp_path / "artifact", "ort-cuda")
    assert manifest["target"]["provider"] == "CUDAExecutionProvider"
    assert manifest["metrics"]["after_provider"] == "CPUExecutionProvider"


def test_what_no_runtime_executes_is_written_without_outcomes(tmp_path):
    manifest = write(tmp_path / "artifact", "qonnx")
    assert manifest["metrics"]["after"] == {}
    assert "parity" not in manifest
