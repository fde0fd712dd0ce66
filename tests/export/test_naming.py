"""Names in the file."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import nn

from qrobust.export.naming import name_by_module, shorten_names
from qrobust.quant import bits_per_layer

from ..quant.helpers import images
from .helpers import lowered, network, runtime_logits
from .passes.helpers import data_of, model_of, node, quantised_input, run, small_network
from .passes.helpers import images as small_images

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


CASES = [(2, "ort-cpu"), (8, "ort-cpu"), *((bits, target) for target in LONG for bits in (4, 32))]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("bits", "target"), [(4, "ort-cpu"), (32, "ort-cpu"), (4, "ort-cuda"), (4, "qonnx")])
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


def test_two_quantisers_of_one_value_get_two_names():
    nodes, values = quantised_input()
    more = [node("QuantizeLinear", nodes[0].input, "second")]
    back = node("DequantizeLinear", ["second", "x_scale", "x_zero"], "back")
    model = model_of([*nodes, *more, back, node("Add", ["xd", "back"], "y")], values)
    name_by_module(model, nn.Identity())
    assert [n.name for n in model.graph] == ["x.q", "x.dq", "x.q_2", "x.q_2.dq", "add1"]
    assert [value.name for value in model.graph.outputs] == ["y"]


@pytest.mark.parametrize("rename", [lambda model: name_by_module(model, nn.Identity()), shorten_names])
def test_renaming_twice_changes_no_name_and_never_a_result(rename):
    model = small_network()
    expected = run(model, small_images())
    rename(model)
    np.testing.assert_array_equal(run(model, small_images()), expected)
    once = data_of(model)
    rename(model)
    assert data_of(model) == once


def test_a_network_without_paths_is_named_by_kind():
    model = small_network()
    name_by_module(model, nn.Identity())
    assert [n.name for n in model.graph if n.op_type in LAYERS] == ["conv", "conv_2", "gemm"]
    assert {"conv.weight", "conv_2.weight", "gemm.bias"} <= set(model.graph.initializers)


def test_short_names_are_numbers_of_values_alone():
    graph = graph_of(4, "compact")
    assert not any(n.name for n in graph.node)
    inner = set(values_of(graph)) - {"x", "logits"}
    assert len(inner) == len(values_of(graph)) - 2
    assert all(len(name) <= 3 and name.startswith("_") for name in inner)
    assert "x" in {name for n in graph.node for name in n.input}


def test_short_names_make_the_smaller_file_and_the_same_results():
    model = ir.from_proto(onnx.load_from_string(lowered(2)))
    shorten_names(model)
    data, x = ir.to_proto(model).SerializeToString(), images(20, seed=5).numpy()
    assert len(data) < 0.9 * len(lowered(2))
    np.testing.assert_array_equal(runtime_logits(data, x), runtime_logits(lowered(2), x))
