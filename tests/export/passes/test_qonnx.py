"""One Quant for every weight and activation, of the same values."""

import numpy as np
import onnx
import pytest
import torch

from qrobust.export import passes
from qrobust.export.passes.graph import required
from qrobust.export.passes.qonnx import DOMAIN
from qrobust.export.target import load_target
from qrobust.export.write import lower

from ...quant.helpers import images as torch_images
from ..helpers import network, torch_logits
from .helpers import activation, float_conv, images, integer_conv, kinds, model_of, of_kind, run, small_network
from .quant_op import evaluate

SIGNED = (images() - 0.5) * 8


def said(node):
    """What a Quant says: bits, signed, narrow."""
    bits, attributes = int(required(node.inputs[3])), node.attributes
    return bits, attributes["signed"].as_int(), attributes["narrow"].as_int()


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    ("bits", "signed", "narrow"),
    [(2, False, False), (5, False, False), (8, False, False), (4, True, True), (4, True, False), (8, True, False)],
)
def test_an_activation_becomes_one_quant(bits, signed, narrow, dtype):
    model = model_of(*activation("x", "y", bits, signed=signed, narrow=narrow))
    expected = run(model, SIGNED)
    if dtype == np.uint8:
        passes.unsigned_activations(model)
    assert passes.to_qonnx(model)
    assert kinds(model) == ["Quant"]
    assert said(of_kind(model, "Quant")) == (bits, signed, narrow)
    assert model.graph.opset_imports[DOMAIN] > 0
    np.testing.assert_array_equal(evaluate(model, SIGNED), expected)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("largest", "bits"), [(0, 2), (1, 2), (2, 3), (3, 3), (7, 4), (8, 5), (127, 8)])
def test_a_weight_becomes_floats_and_a_quant_of_its_width(largest, bits, per_channel):
    model = model_of(*integer_conv(per_channel, largest=largest, output="y"))
    expected = run(model, images())
    assert passes.to_qonnx(model)
    conv = of_kind(model, "Conv")
    quant = conv.inputs[1].producer()
    assert said(quant) == (bits, 1, 1)
    assert required(quant.inputs[0]).dtype == np.float32
    np.testing.assert_allclose(evaluate(model, images()), expected, atol=1e-5)


def test_a_whole_graph_holds_no_quantisers_of_onnx():
    model = small_network()
    expected = run(model, images())
    assert passes.to_qonnx(model)
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(kinds(model))
    np.testing.assert_allclose(evaluate(model, images()), expected, atol=1e-4)


def test_a_float_network_stays():
    model = model_of(*float_conv(True, output="y"))
    assert not passes.to_qonnx(model)
    assert DOMAIN not in model.graph.opset_imports


@pytest.mark.parametrize("input", ["float32-nchw", "uint8-nhwc"])
@pytest.mark.parametrize(("bits", "activation"), [(2, "relu"), (4, "hardtanh"), (7, "relu"), (8, "relu")])
def test_the_file_computes_what_torch_does(bits, activation, input):
    model, x = network(bits, activation), torch_images(20, seed=5)
    proto = onnx.load_from_string(lower(model, x[:1], load_target("qonnx"), input=input))
    expected = torch_logits(model, x)
    shown = x if input == "float32-nchw" else (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    got = evaluate(proto, shown.numpy())
    assert (np.abs(got - expected).max(axis=1) <= 1e-4).mean() >= 0.9
    assert not {node.op_type for node in proto.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert [entry.domain for entry in proto.opset_import] == ["", DOMAIN]
