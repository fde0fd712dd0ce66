"""Widths by patterns: tables worked out by hand, and what is refused."""

import pytest

from qrobust.errors import ModelError
from qrobust.quant import QuantConfig, bits_per_layer, quantize, quantizers, requantize
from qrobust.quant.placement import layer_widths

from .helpers import Branched, Plain, images, input_bits, resnet

NAMES = ("conv", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "fc")
TABLE = [
    # bits, activation_bits, weights, what layers read
    (4, None, (8, 4, 4, 4, 8), (8, 4, 4, 4, 8)),
    ({"*": 4, "layer2.*": 8}, None, (8, 4, 4, 8, 8), (8, 4, 4, 8, 8)),
    ({"*": 4, "layer1": 2}, None, (8, 2, 2, 4, 8), (8, 2, 2, 4, 8)),
    ({"*": 4, "layer1.*": 2, "*.conv2": 6}, None, (8, 2, 6, 4, 8), (8, 2, 6, 4, 8)),
    ({"*": 4, "fc": 5, "conv": 32}, None, (32, 4, 4, 4, 5), (32, 4, 4, 4, 5)),
    ({"layer?.*": 3}, None, (8, 3, 3, 3, 8), (8, 3, 3, 3, 8)),
    (2, 4, (8, 2, 2, 2, 8), (8, 4, 4, 4, 8)),
    (2, {"*.conv1": 5, "fc": 6}, (8, 2, 2, 2, 8), (8, 5, 2, 5, 6)),
    ({"*": 2, "layer1.*": 4}, {"*": 3}, (8, 4, 4, 2, 8), (8, 3, 3, 3, 8)),
]


@pytest.mark.parametrize(("bits", "activation_bits", "weights", "reads"), TABLE)
def test_the_last_pattern_that_matches_decides(bits, activation_bits, weights, reads):
    found = layer_widths(NAMES, {"conv": "int8", "fc": "int8"}, bits=bits, activation_bits=activation_bits)
    assert tuple(found[name].weight for name in NAMES) == weights
    assert tuple(found[name].reads for name in NAMES) == reads


def test_float_edges_are_those_that_no_pattern_names():
    found = layer_widths(NAMES, {"conv": "float", "fc": "float"}, bits={"*": 4, "fc": 8}, activation_bits=None)
    assert (found["conv"].weight, found["fc"].weight) == (32, 8)


REFUSED = [
    ({"*": 4, "layr2.*": 8}, None, r"got 'layr2\.\*'; did you mean 'layer2\.\*'\?"),
    ({"*": 4, "layer1.0.conv3": 8}, None, r"got 'layer1\.0\.conv3'; did you mean 'layer1\.0\.conv2'\?"),
    ({"*": 4, "layer9.*": 8, "fc": 2}, None, r"expected a layer's name or a pattern of them, got 'layer9\.\*'"),
    ({"*": 4, "layer1.*": 9}, None, r"layer1\.\*: expected bits from 2 to 8, or 32 to stay in float, got 9"),
    ({"*": 4.0}, None, r"\*: expected bits from 2 to 8"),
    (32, None, r"expected bits from 2 to 8 \(32 is the float network\), got 32"),
    ({"fc": 4}, None, r"expected bits for every layer, got none for layer1\.0\.conv1; begin with"),
    ({}, None, "expected bits for every layer"),
    ({"layer1.*": 2, "*": 4}, None, r"from general to special, got 'layer1\.\*' before what overrides it"),
    (4, 32, "expected activation_bits from 2 to 8"),
    (4, {"*": 32}, r"\*: expected activation_bits from 2 to 8, got 32"),
    (4, {"layer3": 8}, "got 'layer3'; did you mean 'layer"),
]


@pytest.mark.parametrize(("bits", "activation_bits", "message"), REFUSED)
def test_refuses_what_decides_nothing_or_is_out_of_range(bits, activation_bits, message):
    with pytest.raises(ModelError, match=message) as caught:
        layer_widths(NAMES, {"conv": "int8", "fc": "int8"}, bits=bits, activation_bits=activation_bits)
    assert "\n" not in str(caught.value)


def test_networks_get_the_widths_of_their_patterns():
    bits = {"*": 4, "layer2.*": 2, "layer3.0.conv1": 32, "fc": 5}
    model = quantize(resnet(), bits, calibration=[images(8)])
    widths, reads = bits_per_layer(model), input_bits(model)
    assert (widths.pop("conv"), widths.pop("fc"), widths.pop("layer3.0.conv1")) == (8, 5, 32)
    assert {name: width for name, width in widths.items() if width != 4} == dict.fromkeys(
        ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0"), 2
    )
    assert "layer3.0.conv1" not in reads
    assert (reads["layer2.0.conv1"], reads["layer1.0.conv1"], reads["fc"]) == (2, 4, 5)


def test_what_two_layers_read_has_the_larger_width():
    model = quantize(resnet(), {"*": 4, "layer2.0.shortcut": 6, "layer2.0.conv1": 3}, calibration=[images(8)])
    assert (input_bits(model)["layer2.0.conv1"], input_bits(model)["layer2.0.shortcut.0"]) == (6, 6)
    assert bits_per_layer(model)["layer2.0.conv1"] == 3


def test_a_float_layer_reads_floats_beside_one_that_reads_few_bits():
    model = quantize(resnet(), {"*": 4, "layer2.0.shortcut": 32}, calibration=[images(8)])
    shortcut = next(node for node in model.graph.nodes if node.target == "layer2.0.shortcut.0")
    assert str(shortcut.all_input_nodes[0].target) == "layer1.0.act2"
    assert not list(quantizers(model.get_submodule("layer1.0.act2")))  # relu, as it was
    assert input_bits(model)["layer2.0.conv1"] == 4


def test_activations_may_be_wider_than_weights():
    model = quantize(resnet(), QuantConfig(2, activation_bits=5), calibration=[images(8)])
    assert set(input_bits(model).values()) == {5, 8}
    assert set(bits_per_layer(model).values()) == {2, 8}
    narrower = requantize(model, 3, calibration=[images(8)])
    assert set(input_bits(narrower).values()) == {5, 8}
    assert set(bits_per_layer(narrower).values()) == {3, 8}


def test_requantize_leaves_layers_that_were_named():
    bits = {"*": 5, "layer2.0.conv1": 6, "layer3": 7, "layer1.0.conv1": 32}
    model = requantize(quantize(resnet(), bits, calibration=[images(8)]), 2, calibration=[images(8)])
    widths, reads = bits_per_layer(model), input_bits(model)
    assert (widths["layer1.0.conv1"], widths["layer2.0.conv1"], widths["layer3.0.conv2"]) == (32, 6, 7)
    assert (widths["layer1.0.conv2"], widths["layer2.0.shortcut.0"], widths["layer2.0.conv2"]) == (2, 2, 2)
    assert (reads["layer1.0.conv2"], reads["layer2.0.conv2"], reads["layer3.0.conv1"]) == (2, 2, 7)
    assert reads["layer2.0.shortcut.0"] == reads["layer2.0.conv1"] == 6  # one activation, two readers
    again = requantize(model, 8, calibration=[images(8)])
    assert input_bits(again)["layer2.0.conv1"] == 8
    fresh = quantize(resnet(), {**bits, "*": 8}, calibration=[images(8)])
    assert (bits_per_layer(again), input_bits(again)) == (bits_per_layer(fresh), input_bits(fresh))


def test_requantize_takes_one_width():
    with pytest.raises(ModelError, match="expected one width to change the network's n to, got"):
        requantize(quantize(Plain(), calibration=None), {"*": 4}, calibration=[images()])


def test_one_quantiser_for_layers_behind_the_one_for_sums_follows_them():
    model = quantize(Branched(), {"*": 3, "conv2": 6}, calibration=[images()])
    assert input_bits(model) == {"conv1": 8, "conv2": 6, "conv3": 3, "fc": 8}
