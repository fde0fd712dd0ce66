"""What ran is what onnxruntime's profile says; a node elsewhere is an error."""

import copy

import pytest
import torch
from torch import nn

from qrobust.bench.executed import Node, compute_type, executed, multiply_adds, placement, refuse_fallback
from qrobust.export.sessions import PROVIDERS
from qrobust.runtime import OPENVINO, ArtifactError

from ..conftest import evidence
from ..export.helpers import network

CPU, CUDA = PROVIDERS["cpu"], PROVIDERS["cuda"]
IMAGE = (("float", (1, 3, 8, 8)),)


def test_integer_convolutions_are_seen(artifacts):
    nodes = executed(artifacts[4], CPU)
    kinds = placement(nodes)[CPU]
    assert kinds["QLinearConv"] == 9
    assert "Conv" not in kinds
    assert compute_type(nodes) == "uint8"


def test_float_convolutions_are_seen(artifacts):
    nodes = executed(artifacts[32], CPU)
    assert set(placement(nodes)) == {CPU}
    assert "QLinearConv" not in placement(nodes)[CPU]
    assert compute_type(nodes) == "float"


def test_openvinos_nodes_are_seen(artifacts):
    evidence("openvino")
    nodes = executed(artifacts[8], OPENVINO)
    assert placement(nodes)[OPENVINO]["Convolution"] == 9
    assert compute_type(nodes) in ("u8", "i8")


def test_a_profile_leaves_no_file(artifacts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed(artifacts[4], CPU)
    assert not list(tmp_path.iterdir())


def _counted(model, x):
    """Multiply-adds by hooks on torch's own layers."""
    total = []

    def conv(layer, inputs, output):
        total.append(output.numel() * layer.weight[0].numel())

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(conv)
    with torch.no_grad():
        model(x)
    return sum(total)


def test_multiply_adds_are_those_of_torch(artifacts):
    counted = _counted(copy.deepcopy(network(32)), torch.rand(1, 1, 8, 8))
    assert multiply_adds(artifacts[32]) == counted
    # An export may pad the image's channels, so that integer convolutions start at full speed.
    assert counted <= multiply_adds(artifacts[8]) == multiply_adds(artifacts[4]) <= 1.05 * counted


def test_a_fallback_is_refused_with_what_it_was():
    nodes = [Node("Conv", CUDA, IMAGE), Node("QLinearConv", CPU, IMAGE), Node("QLinearConv", CPU, IMAGE)]
    with pytest.raises(ArtifactError) as caught:
        refuse_fallback(nodes, CUDA)
    text = "expected all nodes on CUDAExecutionProvider, got 2 QLinearConv on CPUExecutionProvider; it lacks"
    assert str(caught.value).startswith(text)
    assert caught.value.exit_code == 2


def test_arithmetic_on_shapes_is_no_fallback():
    gather = Node("Gather", CPU, (("int64", (4,)), ("int64", ())))
    refuse_fallback([Node("Conv", CUDA, IMAGE), Node("Shape", CPU, IMAGE), gather], CUDA)


def test_no_convolution_has_no_type():
    assert compute_type([Node("Gemm", CPU, IMAGE)]) is None
