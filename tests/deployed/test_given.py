"""`export_file`: six files as others write them become artifacts, and a regression planted in each is caught."""

import functools
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from qrobust import attack, export_artifact, runtime
from qrobust.bench import measure
from qrobust.deployed.given import FileConfig, export_file
from qrobust.errors import DataError, ExportError, GraphError, ModelError, RecipeError
from qrobust.export.artifact import _expect_repeated
from qrobust.export.sessions import BareFile
from qrobust.export.target import load_target
from qrobust.export.write import check_given
from qrobust.report import write
from qrobust.runtime import Artifact, ArtifactError
from qrobust.tables import artifact_text
from qrobust.threat import Threat

from ..test_runtime import edit
from .others import BITS, MAKERS, PREPARED, N, exported, images, network, perturb, rescale, text_file

THREAT = Threat("linf", 8 / 255)
QUICK, STRONG = "pgd-10:keep=best", "onnxruntime, QDQ"  # attacks of all files but one
LATE = "torch.onnx, dynamo"  # takes two seconds to be written
EACH = [pytest.param(name, marks=pytest.mark.slow) if name == LATE else name for name in MAKERS]


def tolerant(name="as-given"):
    """A target for which few images are enough."""
    target = load_target(name)
    return target.model_copy(update={"statistics": target.statistics.model_copy(update={"detected_drop": 0.5})})


def artifact_of(file, out, attacks=QUICK, target=None, **config):
    return export_file(
        file,
        images(),
        threat=THREAT,
        out=out,
        target=target or tolerant(),
        attacks=attacks,
        config=FileConfig(**config),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """By maker: the file as it came, and its artifact. Not to be changed."""

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp("others")
        file = MAKERS[name](folder / "given.onnx")
        attacks = "strong:quick" if name == STRONG else QUICK
        return file, artifact_of(file, folder / "artifact", attacks, name="theirs", **PREPARED.get(name, {}))

    return make


def exit_code(folder):
    return runtime.main([str(folder), "--queries", "50"])


@pytest.mark.parametrize("name", EACH)
def test_it_is_checked_and_attacked_as_our_own(made, name, capsys):
    file, artifact = made(name)
    assert exit_code(artifact.path) == 0
    assert "Parity: none." in capsys.readouterr().out
    manifest = artifact.manifest
    assert (manifest["parity"], manifest["bits"]) == ("none", BITS.get(name, 32))
    assert manifest["source"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (artifact.model == file.read_bytes()) == (not manifest["source"]["changes"])
    found = attack(artifact, attacks=["pgd-10", "square-20"])
    assert found["gap"]["in_torch"] == {}
    assert found["worst_case"]["accuracy"] < found["gap"]["replayed"]["clean"]
    assert not {"module-differs", "replay-differs", "zero-gradient"} & {flag["name"] for flag in found["flags"]}


def regressed(artifact, place, harm, capsys):
    shutil.copytree(artifact.path, place)
    harm(place / "model.onnx")
    edit(place)
    assert exit_code(place) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EACH)
def test_weights_that_were_changed_are_caught(made, name, tmp_path, capsys):
    assert "broken label_flips: " in regressed(made(name)[1], tmp_path / "artifact", perturb, capsys)


@pytest.mark.parametrize("name", BITS)
def test_scales_that_were_changed_are_caught(made, name, tmp_path, capsys):
    assert "broken label_flips: " in regressed(made(name)[1], tmp_path / "artifact", rescale, capsys)


def test_bare_files_and_artifacts_are_timed_in_one_run(made, monkeypatch):
    monkeypatch.setattr(measure, "footprint", lambda *_a, **_k: {"memory_bytes": None, "load_ms": 1.0})
    bare = BareFile(made("torch.onnx, legacy")[0])
    others = [made(name)[1] for name in MAKERS if name != LATE]
    result = measure.bench([bare, *others], batches=[2], threads=1, seconds=0.01)
    assert result["reference"] == "given"
    assert len(result["results"]) == 1 + len(others)
    facts = result["artifacts"]["given"]
    assert (facts["bits"], facts["worst_case"], facts["size_bytes"]) == (None, None, bare.path.stat().st_size)
    assert facts["multiply_adds"] == result["artifacts"][str(others[0].path)]["multiply_adds"]


@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        ("g (float[1, 3, 4, 4] x) => (float[1, 48] y) { y = Flatten (x) }", 2, "calls of 1 .* choose --batch 1"),
        ("g (float[N, 3, H, W] x) => (float[N, M] y) { y = Flatten (x) }", 2, "known size .* qrobust export F.onnx"),
    ],
)
def test_a_bare_file_that_cannot_be_timed(tmp_path, text, batch, message):
    with pytest.raises(ArtifactError, match=message):
        BareFile(text_file(tmp_path / "f.onnx", text)).images(batch)


def test_strong_is_made_by_the_rebuilt_module_and_judged_by_the_session(made):
    artifact = made(STRONG)[1]
    suite, before = artifact.suite, artifact.manifest["metrics"]["before"]
    assert artifact.name == "theirs"
    assert before["attacks"]["strong:quick"]["parts"][0]["broken"] > 0
    assert before["attacks"]["strong:quick"]["settings"]["backward"] == ["clipped", "soft", "identity"]
    assert before["n"] == len(suite["y"]) == N
    for name in artifact.sets:
        assert np.array_equal(artifact.logits(suite[f"x.{name}"]).argmax(1), suite[f"label.{name}"])
    right = suite["label.clean"] == suite["y"]
    assert ((np.array(artifact.found_by("strong:quick")) == "clean") == ~right).all()


def test_what_is_printed_says_that_there_is_no_parity(made):
    line = artifact_text(made("NHWC")[1].path)
    assert "parity none: no torch network is known" in line
    assert "flip" not in line


def test_a_report_of_an_artifact_alone_says_what_is_known(made, tmp_path, capsys):
    place = shutil.copytree(made("NHWC")[1].path, tmp_path / "a")
    page = write(place)
    assert page == tmp_path / "a.html"
    text = page.read_text()
    assert "Parity: none." in text
    assert "no torch network is known" in text
    assert "No check has judged it: qrobust check" in text
    assert "logits taken before Softmax" in text
    assert f"{100 * Artifact.load(place).manifest['metrics']['before']['worst_case']['accuracy']:.1f}" in text
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.html"}
    assert runtime.main([str(place), "--queries", "50", "--json", str(tmp_path / "a.check.json")]) == 0
    capsys.readouterr()
    text = write(place).read_text()
    assert "✓ held" in text
    assert "No check has judged it" not in text
    edit(place, lambda manifest: manifest["files"]["model.onnx"].update(sha256="0" * 64))
    with pytest.raises(ArtifactError, match="sha256"):
        write(place)


def test_a_check_of_ours_says_nothing_of_it(capsys, tmp_path):
    from ..test_runtime import suite_arrays
    from ..test_runtime import write as written

    assert exit_code(written(tmp_path / "ours", suite_arrays())) == 0
    text = capsys.readouterr().out
    assert "Parity: none" not in text
    assert "the network before export" in text


@pytest.mark.parametrize("parity", ["held", 1, []])
def test_another_parity_is_refused(made, tmp_path, parity):
    place = shutil.copytree(made("NHWC")[1].path, tmp_path / "artifact")
    edit(place, lambda manifest: manifest.update(parity=parity))
    with pytest.raises(ArtifactError, match="'none' as 'parity'"):
        Artifact.load(place)


def test_labels_of_a_second_time_must_be_those_of_the_first(made):
    artifact = made("NHWC")[1]
    labels = {name: artifact.suite[f"label.{name}"] for name in artifact.sets}
    _expect_repeated(artifact, labels, tolerant())
    with pytest.raises(ExportError, match="labels images alike each time, got 50"):
        _expect_repeated(artifact, labels | {"clean": labels["clean"] + 1}, tolerant())


# What is refused


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"n": 0}, DataError, "n of 1 or more"),
        ({"n": 5}, DataError, "images or more, for as-given to detect a drop of 0.5"),
        ({"classes": ("a", "b")}, DataError, "expected 4 names of classes"),
        ({"attacks": "transfer-20"}, RecipeError, "attacks on the file itself"),
        ({"attacks": "gn"}, ExportError, "within"),
        ({"target": "ort-cpu"}, ExportError, "expected 1 QLinearConv once optimised.* as as-given"),
        ({"target": "qonnx"}, ExportError, "a runtime executes; choose as-given"),
    ],
)
def test_settings_that_cannot_be_met(made, tmp_path, change, kind, message):
    file, place = made("torch.onnx, legacy")[0], tmp_path / "a"
    settings = change | {"target": tolerant(change.get("target", "as-given"))}
    with pytest.raises(kind, match=message):
        artifact_of(file, place, **settings)
    assert not place.exists()


def test_a_target_that_breaks_int8_activations_or_reads_an_older_opset_is_refused(made, tmp_path):
    file = made("NNCF")[0]
    check_given(file.read_bytes(), load_target("compact"))  # its weights alone are INT8
    text = "g (float[N, 3] x) => (float[N, 3] y) { q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }"
    signed = text_file(tmp_path / "f.onnx", text, s=np.float32(1), z=np.int8(0)).read_bytes()
    check_given(signed, tolerant())
    with pytest.raises(ExportError, match=r"compact: expected no INT8 activations.* choose as-given"):
        check_given(signed, load_target("compact"))
    old = tolerant().model_copy(update={"opset": 16})
    with pytest.raises(ExportError, match="expected opset 16 or lower, got 20"):
        artifact_of(file, tmp_path / "a", target=old)


def test_labels_that_the_file_never_gives(made, tmp_path):
    x, y = images()
    wrong = (network()(torch.from_numpy(x).float() / 255).argmin(1)).numpy()
    file, more = made("torch.onnx, legacy")[0], {"threat": THREAT, "out": tmp_path / "a", "target": tolerant()}
    with pytest.raises(GraphError, match=r"right on some of 36 images.*--mean"):
        export_file(file, (x, wrong), **more)
    with pytest.raises(DataError, match="expected labels in"):
        export_file(file, (x, y + 4), **more)


def test_a_path_is_no_network(tmp_path):
    with pytest.raises(ModelError, match=r"call qrobust.export_file"):
        export_artifact("f.onnx", images(), threat=THREAT, out=tmp_path / "a")


def test_the_command_line(command_line, tmp_path):
    x, y = images()
    np.savez(tmp_path / "d.npz", x=x, y=y)
    np.savez(tmp_path / "one.npz", x=x[:1], y=y[:1])
    np.savez(tmp_path / "bare.npz", x=x)
    np.savez(tmp_path / "beyond.npz", x=x, y=y + 4)
    text_file(tmp_path / "alone.onnx", "g (float[3, 8, 8] x) => (float[3, 64] y) { y = Flatten (x) }")
    text_file(tmp_path / "own.onnx", "g (float[N, 3, 8, 8] x) => (float[N, 4] y) { y = my.Own (x) }")
    exported(tmp_path / "f.onnx", dynamic=False, size=(1, 3, 8, 8))
    (tmp_path / "few.toml").write_text(
        'extends = "as-given"\ndescription = "few images"\nstatistics.detected_drop = 0.5\n'
    )
    (tmp_path / "no.onnx").write_text("no file of ONNX")
    refused = {
        ("f.onnx",): "expected images for f.onnx, got none; add --data",
        ("f.onnx", "--data", "one.npz"): "expected 117 images or more",
        ("f.onnx", "--data", "bare.npz"): "expected arrays x and y in bare.npz",
        ("f.onnx", "--data", "beyond.npz", "--target", "few.toml"): "expected labels in [0, 3], got 7",
        ("alone.onnx", "--data", "d.npz", "--target", "few.toml"): "no batch dimension",
        ("own.onnx", "--data", "d.npz", "--target", "few.toml"): "got my::Own",
        ("f.onnx", "--data", "d.npz", "--mean", "x"): "expected --mean as 0.5",
        ("f.onnx", "--data", "d.npz", "--model", "x"): "expected --model with a run folder",
        ("f.onnx", "--data", "d.npz", "--eps", "0", "--target", "few.toml"): "expected eps of 1/255 or more",
        ("no.onnx", "--data", "d.npz"): "expected an ONNX file, got 15 bytes",
        ("gone.onnx", "--data", "d.npz"): "expected an ONNX file at gone.onnx",
        (".", "--data", "d.npz"): "expected --data with an ONNX file",
    }
    for arguments, message in refused.items():
        code, _, errors = command_line("export", *arguments, "--out", "a")
        assert (code, errors.count("\n")) == (2, 1), errors
        assert message in errors
    assert not (tmp_path / "a").exists()
    command = ("export", "f.onnx", "--data", "d.npz", "--target", "few.toml", "--eps", "48/255", "--out", "a")
    code, output, _ = command_line(*command)
    assert code == 0
    assert "batch of 1 made open" in output
    assert "parity none" in output
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["target"]["name"] == "few"
