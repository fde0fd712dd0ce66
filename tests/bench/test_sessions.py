"""Sessions on a provider, or one line that says what is missing."""

import platform
import sys
from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import qrobust
from qrobust import runtime
from qrobust.errors import RecipeError
from qrobust.export.sessions import (  # fmt: skip
    PROVIDERS,
    Bound,
    NullSession,
    artifact_session,
    beside_others,
    images_for,
    provider_of,
    require,
)
from qrobust.runtime import OPENVINO, Artifact, ArtifactError, check, load_session, sums_saturate

from ..conftest import evidence
from .conftest import written

CPU = PROVIDERS["cpu"]


FLAGS = {  # what /proc/cpuinfo lists (None: there is no such file) -> whether sums may saturate
    "AVX-512 without VNNI": ("x86_64", "flags : fpu avx2 avx512f avx512bw\n", True),
    "AVX-512 VNNI": ("x86_64", "model name : caf\xe9\nflags : fpu avx2 avx512_vnni\nbugs :\n", False),
    "AVX VNNI": ("AMD64", "flags\t\t: avx2 avx_vnni\n" * 4, False),
    "one core without": ("x86_64", "flags : avx2 avx_vnni\nflags : avx2\n", True),
    "another flag's part": ("x86_64", "flags : not_avx_vnni_at_all\n", True),
    "a file without flags": ("x86_64", "", True),
    "Windows and macOS": ("AMD64", None, True),
    "ARM": ("aarch64", "Features : fp asimd\n", False),
    "Apple's ARM": ("arm64", None, False),
}


@pytest.fixture(params=FLAGS)
def needed(request, tmp_path, monkeypatch):
    """Whether the option is needed on a processor that is not this one."""
    kind, text, expected = FLAGS[request.param]
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text, encoding="latin-1")  # no UTF-8: nothing has to decode it
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "machine", lambda: kind)
    return expected


def test_processors_are_asked_whether_sums_of_8_bit_products_may_saturate(needed):
    assert sums_saturate() == needed


@pytest.mark.parametrize("needed", ["AVX-512 without VNNI", "AVX-512 VNNI"], indirect=True)
@pytest.mark.parametrize("wanted", [0, 1])
def test_every_session_that_is_timed_has_the_option_where_it_is_needed_alone(needed, wanted, artifacts, monkeypatch):
    one, entry = artifacts[8], runtime.ENTRIES["x64quantprecision"]
    assert one.manifest["target"]["session_options"]["x64quantprecision"] == 1
    monkeypatch.setitem(one.manifest["target"]["session_options"], "x64quantprecision", wanted)
    first = artifact_session(one, CPU, 1)
    for session in (one.session(), first, beside_others(first, one)):
        found = session.get_session_options().get_session_config_entry(entry)
        assert found == str(int(needed and wanted))


def test_short_names_and_full_ones():
    assert [provider_of(name) for name in ("cpu", "cuda", "tensorrt", "openvino")] == [*PROVIDERS.values()]
    assert provider_of("CUDAExecutionProvider") == "CUDAExecutionProvider"
    assert provider_of("CoreMLExecutionProvider") == "CoreMLExecutionProvider"
    assert provider_of("OpenVINOExecutionProvider") == OPENVINO
    with pytest.raises(RecipeError, match=r"expected a provider, got 'cude'; did you mean 'cuda'\?"):
        provider_of("cude")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here nothing is missing")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_gpu_that_is_not_there_is_one_line_and_silent(name, artifacts, capfd):
    if PROVIDERS[name] not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no such provider at all")
    with pytest.raises(ArtifactError, match=rf"expected the libraries of {PROVIDERS[name]}, got none called lib.*; "):
        artifact_session(artifacts[4], PROVIDERS[name], 1)
    assert capfd.readouterr() == ("", "")


def test_the_cpu_needs_nothing():
    require(CPU)


def test_openvino_that_is_not_installed_is_named(artifacts, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArtifactError, match=r"expected the package openvino, got .*; pip install openvino"):
        artifact_session(artifacts[4], OPENVINO, 1)


def on_openvino():
    evidence("openvino")
    if sums_saturate():
        pytest.skip("expected a processor with VNNI: without it OpenVINO's sums of 8-bit products saturate")


def moved(report):
    return next(one.measured for one in report.verdicts if one.name == "logit_change")


@pytest.mark.parametrize("bits", [32, 8])
def test_openvino_says_what_onnxruntime_says(bits, artifacts):
    on_openvino()
    one, x = artifacts[bits], images_for(artifacts[bits], 5)
    session = artifact_session(one, OPENVINO, 1)
    feed = {session.get_inputs()[0].name: x}
    (ours,), (theirs,) = artifact_session(one, CPU, 1).run(None, feed), session.run(None, feed)
    assert theirs.shape == (5, 10)
    assert np.abs(ours - theirs).max() < (1e-5 if bits == 32 else 0.05) * np.abs(ours).max()
    (once_more,) = session.run(["logits"], {**feed, session.get_inputs()[0].name: x[::-1].copy()})
    np.testing.assert_array_equal(once_more, theirs[::-1])  # which the second call left alone


def test_an_artifact_is_checked_and_attacked_on_openvino_and_a_fault_is_found(tmp_path):
    on_openvino()
    one = written(tmp_path / "one", 8, target="openvino")
    assert {"verify.py"} == {path.name for path in one.path.iterdir() if path.name.startswith("verify")}
    assert one.manifest["metrics"]["after_provider"] == CPU  # which stands in for it at export
    report = check(one, queries=50)
    assert not report.label_flips
    assert moved(report) < 0.05  # of a network that nobody trained
    assert report.versions[OPENVINO] == version("openvino")
    attacked = qrobust.attack(one, attacks=("pgd-2",), n=12)
    assert attacked["artifact"]["provider"] == OPENVINO

    proto = onnx.load(one.path / "model.onnx")
    scale = next(each for each in proto.graph.initializer if each.name.endswith("weight.scale"))
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(3), scale.name))
    broken = Artifact(one.path, one.manifest, one.suite, proto.SerializeToString())
    assert moved(check(broken, queries=50)) > 0.5


def test_openvino_refuses_in_one_line(artifacts):
    evidence("openvino")
    with pytest.raises(ArtifactError, match=r"expected a file that OpenVINO reads, got .*target openvino") as caught:
        load_session(b"no graph", OPENVINO, 1)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match=r"expected 0 to .* as intra_op_num_threads, got -1"):
        load_session(artifacts[8].model, OPENVINO, -1)


@pytest.mark.parametrize("place", ["weights.bin", "{}/weights.bin", "../weights.bin"])
def test_openvino_reads_no_data_beside_a_file(place, artifacts, tmp_path, monkeypatch):
    """An artifact's hashes say nothing of those."""
    evidence("openvino")
    monkeypatch.chdir(tmp_path)
    proto = onnx.load_from_string(artifacts[32].model)
    weights = next(one for one in proto.graph.initializer if len(one.raw_data) > 100)
    for folder in (tmp_path, tmp_path.parent):
        (folder / "weights.bin").write_bytes(weights.raw_data)
    onnx.external_data_helper.set_external_data(weights, place.format(tmp_path))
    weights.ClearField("raw_data")
    data = proto.SerializeToString()
    if place == "weights.bin":  # OpenVINO itself takes them
        (tmp_path / "model.onnx").write_bytes(data)
        runtime.openvino_module().Core().compile_model(str(tmp_path / "model.onnx"), "CPU")
    with pytest.raises(ArtifactError, match="expected a file that OpenVINO reads"):
        load_session(data, OPENVINO, 1)


def test_a_session_beside_others_says_the_same(artifacts):
    session, x = artifact_session(artifacts[4], CPU, 2), images_for(artifacts[4], 3)
    again = beside_others(session, artifacts[4])
    feed = {session.get_inputs()[0].name: x}
    assert again.get_session_options().intra_op_num_threads == 2
    assert again.get_session_options().get_session_config_entry("session.force_spinning_stop") == "1"
    assert np.array_equal(again.run(None, feed)[0], session.run(None, feed)[0])
    assert isinstance(beside_others(NullSession(), artifacts[4]), NullSession)


def test_images_are_as_the_artifact_takes_them(artifacts):
    one = artifacts[4]
    x = images_for(one, 20)
    assert (x.shape, x.dtype) == ((20, 1, 8, 8), np.float32)
    assert np.array_equal(x[12:] * 255, one.suite["x.clean"][:8].astype(np.float32))
    assert images_for(one, 3).shape == (3, 1, 8, 8)


def test_images_of_a_camera(artifacts, monkeypatch):
    monkeypatch.setattr(artifacts[4], "takes_bytes", True)
    x = images_for(artifacts[4], 3)
    assert (x.shape, x.dtype, x.flags["C_CONTIGUOUS"]) == ((3, 8, 8, 1), np.uint8, True)
    assert np.array_equal(x[..., 0], artifacts[4].suite["x.clean"][:3, 0])


def test_a_bound_session_sees_its_own_images(artifacts):
    session, x = artifact_session(artifacts[4], CPU, 1), images_for(artifacts[4], 2)
    (bound,) = Bound(session, x).run(None, {"x": np.empty(0)})
    assert np.array_equal(bound, session.run(None, {session.get_inputs()[0].name: x})[0])
    assert Bound(NullSession(), x).run(None, {}) == []
