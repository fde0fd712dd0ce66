"""`zoo list`, `get` and `push`: what is written is whole, and what is damaged, unknown or of other data is refused."""

import io
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import qrobust
from qrobust import recipe, resources, zoo
from qrobust.data import DataSettings, Images, load
from qrobust.errors import DataError, ModelError, RunError
from qrobust.report import write
from qrobust.runs import publish
from qrobust.runtime import Artifact
from qrobust.zoo import entries, generated, hub, packing

from ..conftest import once

NAME = "digits-resnet8-w4a8"
FOLDER = entries._places()[NAME]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A zoo of one's own beside the targets: a copy of the digits' network, to be damaged."""
    monkeypatch.setattr(resources, "folders", lambda kind: [tmp_path / kind])
    shutil.copytree(FOLDER, tmp_path / "export" / "zoo" / NAME)
    for target in FOLDER.parent.parent.glob("*.toml"):
        shutil.copy(target, tmp_path / "export")
    return tmp_path / "export" / "zoo"


@pytest.fixture(scope="module")
def got(tmp_path_factory):
    return once(tmp_path_factory, "zoo", lambda folder: zoo.get(NAME, folder / NAME)) / NAME


def suite(norm=8):
    images = load(DataSettings("digits")).test
    which = torch.tensor([7, 3, 400])
    x, y = images.x[which].numpy(), images.y[which].numpy()
    change = np.random.default_rng(0).integers(-norm, norm + 1, x.shape)
    x_adv = (x + change).clip(0, 255).astype(np.uint8)
    more = {"label.clean": y, "label.pgd": y[::-1].copy(), "logits.clean": np.ones((3, 10), np.float32)}
    return {"x.clean": x, "x.pgd": x_adv, "y": y, **more}, images


@pytest.mark.parametrize(("reach", "kind"), [(8, "int8"), (255, "int16")])
def test_a_suite_comes_back_from_its_changes_alone(reach, kind):
    arrays, images = suite(reach)
    packed = packing.pack(arrays, images)
    file = np.load(io.BytesIO(packed))
    assert file["which"].tolist() == [7, 3, 400]
    assert file["d.pgd"].dtype == kind
    assert not {"x.clean", "x.pgd", "y"} & set(file.files)
    found = packing.unpack(packed, images, packing.arrays_sha256(arrays))
    assert set(found) == set(arrays)
    assert all((found[name] == array).all() and found[name].dtype == array.dtype for name, array in arrays.items())


def test_other_images_are_refused():
    arrays, images = suite()
    packed, sha256 = packing.pack(arrays, images), packing.arrays_sha256(arrays)
    changed = Images(images.x.roll(1, 3), images.y)
    for others in (changed, Images(images.x, images.y.roll(1)), images.take(slice(0, 10))):
        with pytest.raises(DataError, match=r"expected .*; name the folder of the official files by --root DIR"):
            packing.unpack(packed, others, sha256)
    with pytest.raises(DataError, match="suite of the data set's test images"):
        packing.pack(arrays, changed)


def test_what_is_got_is_an_artifact_with_its_torch_networks(got):
    artifact = Artifact.load(got)
    assert artifact.name == NAME
    x = torch.from_numpy(artifact.suite["x.clean"]).float() / 255
    model = qrobust.load(got / "model.safetensors")
    with torch.no_grad():
        logits = model(x).numpy()
    assert (logits.argmax(1) == artifact.suite["label.clean"]).all()
    apart = abs(logits - artifact.suite["logits.clean"]).max(axis=1)
    assert (apart < 1e-4).mean() >= 0.98  # a processor that sums in another order puts a value on the other step
    assert packing.arrays_sha256(artifact.suite) == zoo.find(NAME).index["suite_sha256"]


def test_a_page_on_what_is_got_is_one_on_an_artifact(got, tmp_path):
    page = write(got, tmp_path / "page.html").read_text()
    assert f"Robustness report of the artifact {NAME}" in page


def test_a_network_by_name_in_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = qrobust.load(f"zoo:{NAME}")
    artifact = loaded.artifact()  # in memory: no folder of it is left
    assert len(artifact.suite["y"]) == 300
    assert qrobust.attack(artifact, attacks=["fgsm"], n=8)["clean"]["accuracy"] > 0.5
    assert not loaded.model.training
    assert not loaded.float_model.training
    with pytest.raises(ModelError, match="leave it out"):
        qrobust.load(f"zoo:{NAME}", model=loaded.model)
    with pytest.raises(RunError, match=f"did you mean '{NAME}'"):
        qrobust.load("zoo:digits-resnet8-w4")


def test_verbs_refuse_in_one_line_and_leave_nothing(command_line, tmp_path):
    (tmp_path / "there").mkdir()
    name = ("--name", "n", "--out", "entry")
    for arguments, said in (
        (("get", "digits-resnet20"), f"expected a network of the zoo, got 'digits-resnet20'; did you mean '{NAME}'?"),
        (("get", NAME, "--out", "there"), "expected no file or folder at there"),
        (("push", "there", *name), "expected RUN, RUN/qm-N or its artifact"),
        (("push", "there", "--name", "A/b", "--out", "entry"), "expected a name of small letters"),
        (("push", "there", "--name", "n", "--out", "there"), "expected no file or folder at there"),
    ):
        code, out, errors = command_line("zoo", *arguments)
        assert (code, out) == (2, "")
        assert errors.startswith(f"error: {said}")
        assert errors.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    code, out, _ = command_line("zoo", "list")
    assert code == 0
    assert f"{NAME} " in out


def test_data_that_is_missing_is_said_with_what_works_without(shelf, tmp_path):
    index = json.loads((shelf / NAME / "zoo.json").read_text())
    (shelf / NAME / "zoo.json").write_text(json.dumps(index | {"data": {"name": "cifar10", "seed": 0}}))
    with pytest.raises(DataError, match=r"at nowhere/cifar-10-batches-py, got none; name .* --root DIR: .* loads"):
        zoo.get(NAME, tmp_path / "out", "nowhere")
    assert not (tmp_path / "out").exists()
    assert qrobust.load(f"zoo:{NAME}").model is not None


@pytest.mark.parametrize("name", [*entries.FILES, "zoo.json"])
def test_a_damaged_or_missing_file_is_refused(shelf, name):
    path = shelf / NAME / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(RunError, match="fetch"):
        zoo.find(NAME)
    path.unlink()
    with pytest.raises(RunError, match=r"expected a (whole|network)"):
        zoo.find(NAME)


def test_a_network_on_a_hub_is_pinned_and_read_from_the_cache(shelf, monkeypatch):
    """What lies damaged in the cache is fetched anew: removing it would not do, where a cache holds links."""
    cache, hubs = shelf.parent / "cache", shelf.parent / "hub"
    (shelf / NAME).rename(hubs)
    shutil.copytree(hubs, cache)
    sha256 = entries.described((cache / "zoo.json").read_bytes())["sha256"]
    pointer = {"hub": "some/one", "revision": "a" * 40, "sha256": sha256, "description": "d"}
    (shelf / f"{NAME}.json").write_text(json.dumps(pointer))
    assert list(zoo.listing()) == [(NAME, "d")]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r"pip install 'qrobust\[hub\]'"):
        zoo.find(NAME)
    asked, online = [], [True]

    def download(name, *, revision, allow_patterns, local_files_only, force_download):
        assert (name, revision, "model.onnx" in allow_patterns) == ("some/one", "a" * 40, True)
        asked.append("cache" if local_files_only else "anew" if force_download else "hub")
        if asked == ["cache"] or not (local_files_only or online):
            cause = ConnectionError("refused\nfor more see elsewhere")
            raise FileNotFoundError("a long story") from cause
        if force_download:
            shutil.copytree(hubs, cache, dirs_exist_ok=True)
        return str(cache)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert zoo.find(NAME).name == NAME
    assert asked == ["cache", "hub"]
    assert zoo.find(NAME).name == NAME
    assert asked[2:] == ["cache"]
    for file in ("zoo.json", "model.onnx"):
        (cache / file).write_bytes(b"damaged")
        asked[:] = ["begun"]
        assert zoo.find(NAME).name == NAME
        assert asked[1:] == ["cache", "anew"]
    online.clear()
    (cache / "model.onnx").write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"got ConnectionError: refused; try again online, else install another"):
        zoo.find(NAME)
    online.append(True)
    (shelf / f"{NAME}.json").write_text(json.dumps(pointer | {"sha256": "0" * 64}))
    with pytest.raises(RunError, match=r"expected digits.* in some/one at aaaaaaaaaaaa, got another network"):
        zoo.find(NAME)
    (shelf / f"{NAME}.json").write_text(json.dumps(pointer | {"revision": "main"}))
    with pytest.raises(RunError, match="a commit of 40"):
        hub.read_pointer(shelf / f"{NAME}.json")
    assert next(zoo.listing())[1].startswith("broken: ")


def test_generated_images_are_the_same_everywhere():
    made = generated.images(3, (3, 8, 8))
    assert packing.arrays_sha256({"x": made}) == HASH
    assert generated.labels(np.array([[0.0, 1.0, 0.99], [2.0, 1.0, 0.0]])) == [None, 0]
    assert generated.agreement([None, 0, 1], np.eye(3)) == 0


HASH = "3481c6017f38052b34a45c37398972d36812e9f887b4b3b0eeb7b14aedf90363"


def test_the_recipe_of_an_entry_names_no_place_of_the_machine_it_was_made_on():
    """Neither of weights and teachers, nor of images; what it starts from lies beside it."""
    extra = "{name = 'npz', root = '/home/me/x.npz', share = 0.5}"
    teacher = "{name = 'resnet20', weights = '/home/me/t.pth'}"
    given = {"model.weights": "/home/me/w.pth", "data.root": "/home/me/data", "train.extra": extra,
             "train.teacher": teacher, "train.method": "ard"}  # fmt: skip
    placed = recipe.load("digits", [f"{key}={value}" for key, value in given.items()])
    own = publish._own(placed)
    assert "/home/me" in recipe.dump(placed)
    assert "/home" not in recipe.dump(own)
    assert (own.model.weights, own.train.teacher.weights) == (entries.FLOAT, "t.pth")
    assert publish._own(recipe.load("digits")).model.weights is None
    manifest = publish._public(recipe.portable(placed.model_dump(mode="json", exclude_none=True)))
    assert "/home" not in json.dumps(manifest)


@pytest.mark.slow
def test_a_run_is_pushed_and_got_again(small_run, shelf, tmp_path, command_line):
    """What `push` writes is what the zoo reads; nothing of the machine stands in it."""
    code, _, errors = command_line("zoo", "push", str(small_run), "--name", "x", "--out", "e")
    assert (code, "name one, as" in errors) == (2, True)
    place = str(small_run / "qm-4" / "artifact")
    assert command_line("zoo", "push", place, "--name", "digits-small", "--out", str(shelf / "digits-small"))[0] == 0
    entry = zoo.find("digits-small")
    assert set(entry.files) == set(entries.FILES)
    assert not [name for name, data in entry.files.items() if str(tmp_path.parent).encode() in data]
    assert command_line("zoo", "get", "digits-small")[0] == 0
    found, before = Artifact.load(tmp_path / "digits-small"), Artifact.load(place)
    assert all((found.suite[name] == array).all() for name, array in before.suite.items())


@pytest.mark.slow
def test_further_evaluations_are_pushed_and_those_of_other_networks_refused(small_run, tmp_path, command_line):
    """An attack that took too long for the run's own evaluation still stands on the card, with its n."""
    asked = ("eval", str(small_run), "--attacks", "apgd-ce", "-n", "40", "--json", "more.json")
    assert command_line(*asked)[0] == 0
    push = ("zoo", "push", str(small_run / "qm-4"), "--name", "x", "--evaluation", "more.json", "--out")
    assert command_line(*push, "entry")[0] == 0
    more = json.loads((tmp_path / "more.json").read_text())
    result = json.loads((tmp_path / "entry" / "result.json").read_text())
    for part, width in (("network", "qm-4"), ("float_model", "qm-32")):
        (further,) = result[part]["further"]
        assert further["attacks"]["apgd-ce"] == more[width]["attacks"]["apgd-ce"]
        assert further["n"] == 40
    share = more["qm-4"]["worst_case"]["accuracy"]
    assert f"| apgd-ce, in torch | 40 | {100 * share:.1f} % (" in (tmp_path / "entry" / "README.md").read_text()
    whole = dict(more)
    for damage, words in (
        ({"qm-4": more["qm-4"] | {"images": "ab"}}, "got one of another network, threat or images"),
        ({"qm-4": more["qm-4"] | {"clean": {"accuracy": 0.1}}}, "got one of another network, threat or images"),
        ({"qm-32": {}}, "expected a result with qm-32 in more.json, got one without 'n'"),
    ):
        (tmp_path / "more.json").write_text(json.dumps(whole | damage))
        code, _, errors = command_line(*push, "other")
        assert (code, words in errors, (tmp_path / "other").exists()) == (2, True, False), errors
