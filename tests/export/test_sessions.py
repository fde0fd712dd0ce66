"""What the runtime makes of a file, and targets that ask for it."""

import onnxruntime
import pytest
import torch

from qrobust.errors import ExportError
from qrobust.export import sessions
from qrobust.export.sessions import open_session, present_provider
from qrobust.export.target import load_target
from qrobust.export.write import check_ops, optimised_ops

from .helpers import lowered, network


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def asking(name="ort-cpu", **keys):
    return load_target(name).model_copy(update=keys)


def test_operators_are_those_behind_the_targets_optimisation(path):
    path.write_bytes(lowered(4))
    ran = optimised_ops(path, asking())
    assert (ran["QLinearConv"], ran["QLinearAdd"], ran["QGemm"], ran["Conv"]) == (9, 3, 1, 0)
    session = asking().session.model_copy(update={"graph_optimization_level": "disable"})
    said = optimised_ops(path, asking(session=session))
    assert (said["QLinearConv"], said["Conv"], said["Gemm"]) == (0, 9, 1)


def test_nothing_executes_qonnx(path):
    path.write_bytes(lowered(4, target="qonnx"))
    assert not optimised_ops(path, load_target("qonnx"))
    check_ops(path, load_target("qonnx"), network(4))


@pytest.mark.parametrize(
    ("bits", "name"),
    [*((4, name) for name in ("ort-cpu", "ort-cpu-int8", "ort-cpu-float", "openvino", "compact")), (2, "ort-cpu"),
     (2, "ort-cpu-int8"), (8, "ort-cpu"), (8, "openvino")],
)  # fmt: skip
def test_every_target_gets_what_it_asks_for(path, bits, name):
    path.write_bytes(lowered(bits, target=name))
    check_ops(path, load_target(name), network(bits))


def test_float_convolutions_in_an_integer_network_are_refused(path):
    path.write_bytes(lowered(32))
    with pytest.raises(ExportError, match=r"^ort-cpu: expected 9 QLinearConv once optimised.*got 0; choose a target"):
        check_ops(path, asking(), network(4))
    check_ops(path, asking(), network(32))  # which has no quantised convolutions


def test_edge_layers_in_float_are_no_quantised_convolutions(path):
    settings = {"fat": "paper", "edge_layers": "float"}
    path.write_bytes(lowered(3, **settings))
    assert optimised_ops(path, asking())["QLinearConv"] == 8
    check_ops(path, asking(), network(3, **settings))
    with pytest.raises(ExportError, match=r"expected 9 QLinearConv once optimised.*got 8"):
        check_ops(path, asking(), network(4))


def test_what_a_target_forbids_is_refused(path):
    path.write_bytes(lowered(4))
    with pytest.raises(ExportError, match=r"^ort-cpu: expected no QLinearConv once optimised, got 9; choose another"):
        check_ops(path, asking(forbidden_ops=("QLinearConv",), required_ops=()), network(4))


def test_providers_that_are_not_there_give_way_to_the_cpu_in_silence(monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    sessions._opens.cache_clear()
    names = ["ort-cpu", "ort-cuda", "tensorrt", "qonnx"]
    assert {present_provider(load_target(name)) for name in names} == {"CPUExecutionProvider"}
    assert capfd.readouterr() == ("", "")


def test_a_provider_without_its_libraries_is_not_there(monkeypatch):
    """onnxruntime lists it, and takes the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(sessions, "open_session", lambda *_: open_session(lowered(4), "basic", sessions.CPU))
    sessions._opens.cache_clear()
    assert present_provider(load_target("ort-cuda")) == "CPUExecutionProvider"
    sessions._opens.cache_clear()


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "all"])
def test_a_session_opens_a_file_or_its_bytes_on_one_thread(path, level):
    path.write_bytes(lowered(4))
    for source in (path, lowered(4)):
        session = open_session(source, level, "CPUExecutionProvider")
        assert session.get_session_options().intra_op_num_threads == 1
        assert [value.name for value in session.get_inputs()] == ["x"]
