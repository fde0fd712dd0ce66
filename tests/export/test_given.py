"""`export_artifact`, `check` and `attack` on one's own network and images: what is written is what was evaluated."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import qrobust
from qrobust import ExportConfig, Threat
from qrobust.attacks import plan
from qrobust.data import Dataset, Images
from qrobust.errors import QrobustError
from qrobust.export.given import export_artifact
from qrobust.quant import first_unrounded, quantize, round_biases
from qrobust.runtime import Artifact, ArtifactError, sums_saturate

from ..conftest import once
from ..quant.helpers import Plain, images

THREAT = Threat("linf", 20 / 255)
X = (images(160, seed=2) * 255).round().to(torch.uint8)
COLOURS = ("red", "green", "blue", "grey")


def float_model():
    """Untrained, with every label for some images."""
    torch.manual_seed(0)
    model = Plain().eval()
    with torch.no_grad():
        model.fc.bias -= model(X / 255).mean(0)
    return model


def labelled(model):
    """The labels that a network gives, so that it is right on all of them."""
    with torch.no_grad():
        return model(X / 255).argmax(1)


def made():
    """A quantised network whose biases a loop of one's own left between two steps."""
    model = quantize(float_model(), 4, calibration=X).eval()
    with torch.no_grad():
        model.get_submodule("second").bias.add_(0.0013)
    assert first_unrounded(model) == "second"
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def make(path):
        model = made()
        export_artifact(
            model, (X, labelled(float_model())), threat=THREAT, out=path / "qm-4", attacks="pgd-2,gn,transfer-2",
            float_model=float_model(), config=ExportConfig(name="own", classes=COLOURS, suite_attacks=None),
        )  # fmt: skip
        assert first_unrounded(model) == "second"  # a copy was rounded

    return once(tmp_path_factory, "given", make)


def test_what_is_written_is_what_was_evaluated(folder):
    artifact, model = Artifact.load(folder / "qm-4"), made()
    manifest = artifact.manifest
    round_biases(model)
    result = qrobust.evaluate(
        model, (X, labelled(float_model())), attacks=["pgd-2", "gn", "transfer-2"], threat=THREAT,
        float_model=float_model(),
    ).to_dict()  # fmt: skip
    before = manifest["metrics"]["before"]
    assert before["clean"] == result["clean"]
    assert before["worst_case"] == result["worst_case"]
    assert {name: cell["accuracy"] for name, cell in before["attacks"].items()} == {
        name: cell["accuracy"] for name, cell in result["attacks"].items()
    }
    assert {"cost", "flags", "sanity_checks"} <= before.keys()
    assert (manifest["bits"], artifact.name, artifact.classes) == (4, "own", COLOURS)
    assert artifact.sets == ("clean", "pgd-2", "transfer-2")  # noise is bounded by nothing
    assert manifest["parity"]["flips"] == 0
    logits = torch.from_numpy(artifact.logits(X.numpy()))
    with torch.no_grad():
        assert torch.equal(logits.argmax(1), model(X / 255).argmax(1))
    assert json.loads((folder / "qm-4" / "manifest.json").read_text()) == manifest


def test_the_float_artifact_lies_beside_it(folder):
    beside = Artifact.load(folder / "qm-32")
    assert (beside.manifest["bits"], beside.sets, beside.name) == (32, ("clean", "pgd-2"), "own-qm-32")
    result = qrobust.attack(folder / "qm-4", attacks=["transfer-2"], n=40)
    assert list(result["attacks"]["transfer-2"]["settings"]["sources"]) == ["own-qm-32"]


def test_the_file_is_attacked_on_the_suite_or_on_images_that_are_given(folder):
    artifact, y = Artifact.load(folder / "qm-4"), labelled(float_model())
    suite = qrobust.attack(artifact, attacks="pgd-2", n=40)
    assert suite["gap"]["replayed"]["n"] == 40
    loader = DataLoader(TensorDataset(X[:30] / 255, y[:30]), batch_size=8)
    given = qrobust.attack(str(folder / "qm-4"), loader, attacks=["pgd-2"])
    assert given["n"] == 30
    assert given["gap"]["replayed"] == {}  # other images than the suite's
    if sums_saturate():
        pytest.skip("without VNNI, onnxruntime's defaults, by which a bare file is opened, let sums saturate")
    bare = qrobust.attack(folder / "qm-4" / "model.onnx", (X[:30], y[:30]), attacks=["pgd-2"], eps=THREAT.eps)
    assert bare["clean"] == given["clean"]
    assert bare["worst_case"]["accuracy"] < bare["clean"]["accuracy"]


def test_a_check_says_whether_it_passed(folder):
    path = folder / "qm-4"
    report = qrobust.check(path, queries=100)
    assert report.passed
    size = (path / "model.onnx").stat().st_size
    broken = qrobust.check(Artifact.load(path), queries=100, size_bytes=size - 1, accuracy_drop=0.0)
    assert broken.outcomes == report.outcomes
    assert [verdict.name for verdict in broken.verdicts if not verdict.passed] == ["size_bytes"]
    assert not broken.passed
    with pytest.raises(ArtifactError, match="expected an artifact in"):
        qrobust.check(folder)


def test_a_check_needs_no_torch():
    program = "import sys, qrobust; print(qrobust.check.__name__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["check", "False"]


def test_names_of_classes_come_from_the_data(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "FLOAT", ())  # of the suite's cascade, its first part
    model, y = float_model(), labelled(float_model())
    data = TensorDataset(X, y)
    data.classes = list(COLOURS)
    artifact = export_artifact(
        model, DataLoader(data, batch_size=50), threat=THREAT, out=tmp_path / "a", attacks=["pgd-2"], target="compact",
        config=ExportConfig(n=120, input="uint8-nhwc", suite_attacks=None),
    )  # fmt: skip
    assert (artifact.classes, artifact.takes_bytes, artifact.manifest["bits"]) == (COLOURS, True, 32)
    assert len(artifact.suite["y"]) == artifact.manifest["metrics"]["before"]["n"] == 120
    part = Images(X, y)
    ours = Dataset("own", COLOURS[::-1], part.take(slice(0, 0)), part.take(slice(0, 0)), part, "f" * 64)
    settings = {"threat": THREAT, "out": tmp_path / "a", "attacks": ["pgd-2"]}
    artifact = export_artifact(model, ours, config=ExportConfig(suite_attacks=None), **settings)
    assert (artifact.classes, artifact.manifest["data_fingerprint"]) == (COLOURS[::-1], "f" * 64)
    assert np.array_equal(artifact.suite["y"], y.numpy())
    again = export_artifact(model, part, **settings)
    assert again.classes == tuple("0123")
    assert again.sets == ("clean", "strong")  # whatever the evaluation takes
    assert "margin-30" in again.found_by("strong")


def refuse(tmp_path, model=None, data=None, **settings):
    given = {"threat": THREAT, "out": tmp_path / "a", "attacks": ["pgd-2"], **settings}
    model = float_model() if model is None else model
    return export_artifact(model, (X, labelled(float_model())) if data is None else data, **given)


REFUSED = {
    "no network": (lambda p: refuse(p, "net"), "expected a network .*, got 'net'"),
    "too few images": (lambda p: refuse(p, data=(X[:20], labelled(float_model())[:20])), "expected .* images or more"),
    "too few of them": (lambda p: refuse(p, config=ExportConfig(n=20)), "expected .* images or more"),
    "noise alone": (lambda p: refuse(p, attacks=["gn"]), "within the threat to evaluate by, got none; add one"),
    "nothing to store": (
        lambda p: refuse(p, config=ExportConfig(suite_attacks=())), "expected an attack within the threat to store"
    ),
    "nothing to transfer from": (lambda p: refuse(p, attacks=["transfer-5"]), "expected an attack within the threat"),
    "an unbounded suite": (lambda p: refuse(p, config=ExportConfig(suite_attacks=("gn",))), "within the threat in"),
    "an unknown attack": (lambda p: refuse(p, attacks=["pgdd-2"]), "did you mean"),
    "an unknown target": (lambda p: refuse(p, target="ort-cpuu"), "did you mean"),
    "an unknown input": (lambda p: refuse(p, config=ExportConfig(input="uint8")), "expected input .*did you mean"),
    "names too few": (lambda p: refuse(p, config=ExportConfig(classes=("a", "b"))), "expected 4 names .* 2"),
    "other labels": (lambda p: refuse(p, data=(X, labelled(float_model()) + 4)), r"expected labels in \[0, 3\]"),
    "probabilities": (lambda p: refuse(p, nn.Sequential(float_model(), nn.Softmax(1))), "expected logits, got prob"),
    "a folder of another's": (lambda p: ((p / "a").mkdir(), (p / "a" / "b").touch(), refuse(p)), "expected no folder"),
    "the float one's folder": (
        lambda p: refuse(p, made(), out=p / "qm-32", float_model=float_model()), "expected a folder other than qm-32"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(tmp_path, name):
    call, message = REFUSED[name]
    with pytest.raises(QrobustError, match=message) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


UNUSABLE = {
    "an unknown limit": (lambda p: qrobust.check(p, robust=0.1), "unknown key 'robust'; did you mean 'robust_drop'"),
    "a limit too large": (lambda p: qrobust.check(p, robust_drop=0.9), "check: robust_drop: expected less"),
    "a limit beyond what is detected": (
        lambda p: qrobust.check(p, robust_drop=0.1), "expected accuracy_drop and robust_drop below 0.1, .* got 0.1"
    ),
    "no images": (lambda p: qrobust.attack(p / "model.onnx"), r"has no suite, got none; pass data=\(x, y\)"),
    "other labels": (
        lambda p: qrobust.attack(p, (X, labelled(float_model()) + 9)), r"expected labels in \[0, 3\], got"
    ),
    "an unknown attack": (lambda p: qrobust.attack(p, attacks=["pgdd-2"]), "did you mean"),
    "nothing to transfer from": (lambda p: qrobust.attack(p, transfer=[p.parent.parent]), "expected an artifact or"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_asked_of_an_artifact_and_makes_no_sense_is_refused_in_one_line(folder, name):
    call, message = UNUSABLE[name]
    with pytest.raises(QrobustError, match=message) as caught:
        call(folder / "qm-4")
    assert "\n" not in str(caught.value)
