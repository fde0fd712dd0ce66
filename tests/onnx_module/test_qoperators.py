"""QOperator form is written as what it means; agreement with onnxruntime is tested with the operators."""

import pytest

from qrobust.errors import GraphError
from qrobust.onnx_module import load_onnx

from .helpers import text_model
from .operators.cases import CONSTANTS
from .test_building import made, ops

Q = "q = QuantizeLinear (x, s, z)"
CONV = f"{Q} \n o = QLinearConv (q, s, z, qw, ws, wz, sy, z2, qb) \n a = DequantizeLinear (o, sy, z2)"


def test_a_chain_of_operators_is_a_chain_of_fused_quantisers():
    network = made(CONV, "s", "z", "qw", "ws", "wz", "sy", "z2", "qb")
    assert ops(network) == ["FakeQuantize", "Conv", "FakeQuantize", "Flatten"]
    assert len(network.plan.steps[1].node.inputs) == 3


def test_bias_and_zero_points_may_be_left_out():
    text = f"{Q} \n o = QLinearConv (q, s, z, qw, ws, wz, sy, z2) \n a = DequantizeLinear (o, sy, z2)"
    network = made(text, "s", "z", "qw", "ws", "wz", "sy", "z2")
    assert len(network.plan.steps[1].node.inputs) == 2


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (f"{Q} \n a = com.microsoft.QLinearGlobalAveragePool <channels_last = 1> (q, s, z, s, z)", "channels_last"),
        (f"{Q} \n a = com.microsoft.QGemm <alpha = 2.0> (q, s, z, q, s, z)", "expected alpha 1, got 2.0"),
    ],
)
def test_what_is_not_covered_is_told(text, match):
    data = text_model(text, {name: CONSTANTS[name] for name in ("s", "z")}).SerializeToString()
    with pytest.raises(GraphError, match=match):
        load_onnx(data)
