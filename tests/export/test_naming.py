"""Names in the file."""

import onnx
import pytest
from torch import nn

from qrobust.export.naming import name_by_module
from qrobust.quant import bits_per_layer

from .helpers import lowered, network
from .test_passes import model_of, quantised_input


def names(bits, **settings):
    graph = onnx.load_from_string(lowered(bits, **settings)).graph
    return graph, [node.name for node in graph.node], [t.name for t in graph.initializer]


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("bits", [2, 8, 32])
def test_every_name_is_unique(bits, shortcut):
    graph, nodes, initialisers = names(bits, shortcut=shortcut)
    assert all(nodes)
    assert len(nodes) == len(set(nodes))
    values = [*initialisers, *(v.name for v in graph.input), *(o for n in graph.node for o in n.output)]
    assert len(values) == len(set(values))


@pytest.mark.parametrize("bits", [2, 32])
def test_layers_carry_their_module_path(bits):
    graph, _, _ = names(bits)
    layers = {node.name for node in graph.node if node.op_type in ("Conv", "Gemm")}
    assert layers == set(bits_per_layer(network(bits)))
    for node in graph.node:
        if node.op_type == "Conv":
            widths = [t.dims[0] for t in graph.initializer if t.name.startswith(f"{node.name}.weight")]
            assert not widths or max(widths) == network(bits).get_submodule(node.name).out_channels


def test_a_path_names_the_layer_of_that_shape():
    graph, _, _ = names(32)
    shapes = {t.name: tuple(t.dims) for t in graph.initializer}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert shapes[node.input[1]] == tuple(network(32).get_submodule(node.name).weight.shape)


def test_weights_and_biases_are_named_after_their_layer():
    _, nodes, initialisers = names(4)
    assert {"layer2.0.conv1.weight", "layer2.0.conv1.weight.cast", "layer2.0.conv1.bias"} <= set(nodes)
    assert "layer2.0.conv1.weight.cast:0" in initialisers
    assert {"x.q", "x.dq"} <= set(nodes)
    assert not any(name.startswith(("/", "onnx::", "constant_")) for name in (*nodes, *initialisers))


def test_two_quantisers_of_one_value_get_two_names():
    nodes, values = quantised_input()
    more = [onnx.helper.make_node(n.op_type, n.input, ["second"]) for n in nodes[:1]]
    back = onnx.helper.make_node("DequantizeLinear", ["second", "x_scale", "x_zero"], ["back"])
    model = model_of([*nodes, *more, back, onnx.helper.make_node("Add", ["xd", "back"], ["y"])], values)
    name_by_module(model, nn.Identity())
    assert [node.name for node in model.graph] == ["x.q", "x.dq", "x.q_2", "x.dq_2", "add1"]
    assert [value.name for value in model.graph.outputs] == ["y"]
