"""Names in the file."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.export.target import load_target
from qrobust.export.write import lower
from qrobust.quant import bits_per_layer

from ..quant.helpers import images
from .helpers import lowered, network, runtime_logits

LONG = ("ort-cpu", "ort-cpu-int8", "ort-cpu-float", "ort-cuda", "tensorrt", "openvino", "qonnx")
LAYERS = ("Conv", "Gemm")


def graph_of(bits, target="ort-cpu", **settings):
    return onnx.load_from_string(lowered(bits, target=target, **settings)).graph


def values_of(graph):
    return [
        *(t.name for t in graph.initializer),
        *(v.name for v in graph.input),
        *(o for n in graph.node for o in n.output),
    ]


def shapes_of(graph):
    return {t.name: tuple(t.dims) for t in graph.initializer}


CASES = [(2, "ort-cpu"), (8, "ort-cpu"), *((4, target) for target in LONG[::2]), (32, "ort-cuda")]


@pytest.mark.parametrize(
    ("bits", "target", "shortcut"),
    [(4, "ort-cpu", "A"), (4, "ort-cpu", "B"), (32, "ort-cpu", "B"), (4, "ort-cuda", "A"), (4, "qonnx", "B")],
)
def test_every_name_is_unique(bits, target, shortcut):
    graph = graph_of(bits, target, shortcut=shortcut)
    named = [n.name for n in graph.node if n.name]
    assert len(named) == len(set(named))
    assert len(values_of(graph)) == len(set(values_of(graph)))


@pytest.mark.parametrize(("bits", "target"), CASES)
def test_layers_carry_their_module_path(bits, target):
    graph = graph_of(bits, target)
    assert {n.name for n in graph.node if n.op_type in LAYERS} == set(bits_per_layer(network(bits)))


@pytest.mark.parametrize(("bits", "target"), CASES)
def test_weights_and_biases_are_named_after_their_layer(bits, target):
    """And have its shape, but for the channels that the image lacks."""
    graph = graph_of(bits, target)
    shapes = shapes_of(graph)
    for path in bits_per_layer(network(bits)):
        weight = network(bits).get_submodule(path).weight
        assert shapes[f"{path}.weight"][0] == shapes[f"{path}.bias"][0] == weight.shape[0]
        assert path == "conv" or shapes[f"{path}.weight"] == tuple(weight.shape)
    assert not any(name.startswith(("/", "onnx::", "constant_")) for name in values_of(graph))


@pytest.mark.parametrize("target", LONG)
def test_quantisers_carry_the_path_of_what_they_quantise(target):
    """In every form: a difference is told by these names."""
    made = {name for n in graph_of(4, target).node for name in n.output}
    assert {"x.q", "layer2.0.conv1.q", "add1.q", "layer3.0.shortcut.0.q"} <= made
    assert not any(name.startswith(("round", "quant", "clip")) for name in made)


def test_what_makes_a_weight_has_no_name_of_its_own():
    graph = graph_of(2)
    (cast,) = (n for n in graph.node if n.input[0] == "layer2.0.conv1.weight")
    assert (cast.op_type, cast.name, list(cast.output)) == ("Cast", "", ["layer2.0.conv1.weight.i"])
    assert {"layer2.0.conv1.weight.scale", "layer2.0.conv1.bias.scale"} <= set(shapes_of(graph))


class Steps(nn.Module):
    """What has names of its own, what has none, and one layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2), nn.Linear(16, 4)

    def forward(self, x):
        y = self.conv(self.conv(x)) * torch.sigmoid(x) + F.conv2d(x, self.conv.weight, padding=1)
        return self.fc(self.pool(F.relu(y)).flatten(1)).abs()


def test_modules_of_torch_give_their_path_and_functions_their_kind():
    graph = onnx.load_from_string(lower(Steps().eval(), images(1), load_target("ort-cpu"))).graph
    assert [n.name for n in graph.node] == [
        "conv", "conv_2", "sigmoid1", "mul1", "conv_3", "add1", "relu1", "pool", "flatten1", "fc", "abs1",
    ]  # fmt: skip
    assert [list(n.output) for n in graph.node][-2:] == [["fc"], ["logits"]]
    assert sorted(t.name for t in graph.initializer) == ["conv.bias", "conv.weight", "fc.bias", "fc.weight"]


def test_short_names_are_numbers_of_values_alone():
    graph = graph_of(4, "compact")
    assert not any(n.name for n in graph.node)
    inner = set(values_of(graph)) - {"x", "logits"}
    assert len(inner) == len(values_of(graph)) - 2
    assert all(len(name) <= 3 and name.startswith("_") for name in inner)
    assert "x" in {name for n in graph.node for name in n.input}


@pytest.mark.slow
def test_short_names_make_the_smaller_file_and_the_same_results():
    target = load_target("ort-cpu").model_copy(update={"names": "short"})
    data, x = lower(network(2), images(1), target), images(20, seed=5).numpy()
    assert len(data) < 0.9 * len(lowered(2))
    np.testing.assert_array_equal(runtime_logits(data, x), runtime_logits(lowered(2), x))
