"""From graph to steps: what is folded and fused, what is not covered, what asks for too much."""

import numpy as np
import pytest
import torch

from qrobust.errors import GraphError
from qrobust.onnx_module import load_onnx

from .helpers import runtime, text_model
from .operators.cases import CONSTANTS
from .test_module import chain, uniform

Q = "q = QuantizeLinear (x, s, z)"


def made(text, *names, opset=21, **constants):
    given = {name: CONSTANTS[name] for name in names} | constants
    return load_onnx(text_model(text, given, opset=opset).SerializeToString())


def ops(network):
    return [step.node.op for step in network.plan.steps]


def refused(text, *names, match, **constants):
    with pytest.raises(GraphError, match=match) as caught:
        made(text, *names, **constants)
    assert "\n" not in str(caught.value)


def test_an_exported_layer_is_one_quantiser_and_one_convolution():
    assert ops(load_onnx(chain())) == ["FakeQuantize", "Conv", "Flatten", "Gemm"]


def test_weights_are_constants_and_what_they_came_from_is_gone():
    network = load_onnx(chain())
    assert sorted(tuple(b.shape) for b in network.buffers() if b.dim()) == [(4, 3, 3, 3), (5, 144)]
    assert not network.plan.constants


def test_what_the_output_does_not_need_is_not_asked_for():
    assert ops(made("c = NonMaxSuppression (x, x) \n a = Relu (x)")) == ["Relu", "Flatten"]


def test_uncovered_operators_are_named_with_what_is_covered():
    text = "b = Einsum (x) \n c = com.microsoft.Evil (b) \n a = Einsum (c)"
    refused(
        text, match=r"got Einsum \(2\), com.microsoft::Evil \(1\), first at node b; covered: Abs, Add, .*, com.micro"
    )


def test_a_custom_domain_is_not_mistaken_for_onnx():
    refused("a = com.microsoft.Relu (x)", match=r"got com.microsoft::Relu \(1\)")
    refused("a = FakeQuantize (x)", match=r"got FakeQuantize \(1\)")


def test_quantisers_are_fused_only_with_what_undoes_them():
    same = f"{Q} \n a = DequantizeLinear (q, s, z)"
    assert ops(made(same, "s", "z")) == ["FakeQuantize", "Flatten"]
    other = f"{Q} \n a = DequantizeLinear (q, s2, z)"
    assert ops(made(other, "s", "z", "s2")) == ["QuantizeLinear", "DequantizeLinear", "Flatten"]
    equal = f"{Q} \n a = DequantizeLinear (q, t, z)"
    assert ops(made(equal, "s", "z", t=CONSTANTS["s"])) == ["FakeQuantize", "Flatten"]
    two = f"{Q} \n d = DequantizeLinear (q, s, z) \n p = MaxPool <kernel_shape = [8, 8]> (q) \n"
    two += "e = DequantizeLinear (p, s, z) \n a = Add (d, e)"
    assert ops(made(two, "s", "z"))[0] == "QuantizeLinear"


ARITHMETIC = "d = Div (x, s) \n r = Round (d) \n c = Clip (r, low, high) \n a = Mul (c, {})"


def arithmetic(scale):
    return made(ARITHMETIC.format(scale), "s", "s2", low=np.float32(-7), high=np.float32(7))


def test_the_same_in_float_arithmetic_is_one_quantiser_too():
    network = arithmetic("s")
    assert ops(network) == ["FakeQuantize", "Flatten"]
    assert set(ops(arithmetic("s2"))) == {"Div", "Round", "Clip", "Mul", "Flatten"}
    x = uniform(4, -0.3, 0.3)
    torch.testing.assert_close(network(x), ((x / 0.0117).round().clamp(-7, 7) * 0.0117).flatten(1))


@pytest.mark.parametrize(("high", "fused"), [(7 * 0.0117, True), (7.4 * 0.0117, False)])
def test_bounds_before_a_quantiser_are_its_range_if_they_are_whole_steps(high, fused):
    text = "c = Clip (x, low, high) \n q = QuantizeLinear (c, s, z0) \n a = DequantizeLinear (q, s, z0)"
    network = made(text, "s", "z0", low=np.float32(0), high=np.float32(high))
    assert ops(network) == [*([] if fused else ["Clip"]), "FakeQuantize", "Flatten"]
    x = uniform(4, -0.3, 0.3)
    torch.testing.assert_close(network(x), ((x.clamp(0, high) / 0.0117).round() * 0.0117).flatten(1))


def test_a_clip_that_others_bypass_stays():
    text = f"{Q} \n c = Clip (q, z2, z) \n d = DequantizeLinear (c, s, z) \n"
    text += "e = DequantizeLinear (q, s, z) \n a = Add (d, e)"
    network = made(text, "s", "z", "z2")
    assert "Clip" in ops(network)
    x = uniform(2, -2, 2)
    data = text_model(text, {name: CONSTANTS[name] for name in ("s", "z", "z2")}).SerializeToString()
    torch.testing.assert_close(network(x), runtime(data, x))


def test_the_output_may_be_a_fused_value():
    text = "f = Flatten (x) \n q = QuantizeLinear (f, s, z) \n"
    text += "e = DequantizeLinear (q, s, z) \n y = DequantizeLinear (q, s, z)"
    constants = {name: CONSTANTS[name] for name in ("s", "z")}
    data = text_model(text, constants, flat=False).SerializeToString()
    x = uniform(2)
    torch.testing.assert_close(load_onnx(data)(x), runtime(data, x))


def test_operators_used_as_onnx_forbids_are_named():
    refused(
        "n = Conv (x, k) \n a = Relu (n)",
        match=r"Conv \(node n\) to take inputs of shapes .*\(2, 2\), got",
        k=np.ones((2, 2), "f"),
    )
    refused("a = Add (x)", match=r"expected Add \(node a\) to take inputs of shapes \(.*\), got")
    refused(
        "a = BatchNormalization <training_mode = 1> (x, g, h, mu, var)",
        "g",
        "h",
        "mu",
        "var",
        match="training_mode is set",
    )
    refused("a = Dropout (x, half, t)", "half", "t", match="training_mode is set")


def test_logits_are_two_dimensional_and_depend_on_images():
    refused("a = Unsqueeze (x, i) \n y = Relu (a)", match="expected|got", i=np.array([0]))
    constant = text_model("a = Relu (x)", flat=False)
    constant.graph.node[0].output[0] = "y"
    with pytest.raises(GraphError, match=r"expected logits \(batch, classes\) in y, got shape \(1, 3, 8, 8\)"):
        load_onnx(constant.SerializeToString())
    fixed = text_model("y = Relu (k)", {"k": np.ones((1, 2), "f")}, flat=False)
    with pytest.raises(GraphError, match="expected logits that depend on images, got constants in y"):
        load_onnx(fixed.SerializeToString())


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        ("k = ConstantOfShape (n) \n a = Add (x, k)", {"n": np.array([10**6, 10**6])}),
        ("k = Expand (h, n) \n a = Add (x, k)", {"h": np.float32(1), "n": np.array([10**6, 10**6])}),
        ("a = Pad (x, n)", {"n": np.array([0, 0, 0, 10**9, 0, 0, 0, 0])}),
        ("a = Tile (x, n)", {"n": np.array([1, 10**9, 1, 1])}),
        ("k = MatMul (u, v) \n a = Add (x, k)", {"u": np.ones((10**5, 1), "f"), "v": np.ones((1, 10**5), "f")}),
        ("k = Range (o, n, i) \n a = Add (x, k)", {"o": np.int64(0), "n": np.int64(10**12), "i": np.int64(1)}),
        ("a = Conv <pads = [1000000, 1000000, 0, 0]> (x, w)", {"w": CONSTANTS["w"]}),
        ("k = Add (u, v) \n a = Add (x, k)", {"u": np.ones((10**4, 1, 1, 1), "f"), "v": np.ones((10**5, 1, 1), "f")}),
    ],
)  # fmt: skip
def test_a_small_file_cannot_ask_for_all_memory(text, constants):
    refused(text, match="elements is more than 268435456", **constants)


@pytest.mark.parametrize(
    "text",
    [
        "a = Where (x)",
        "d = Div (x) \n r = Round (d) \n c = Clip (r, low, high) \n a = Mul (c, s)",
        "d = Div (x, s) \n r = Round (d) \n c = Clip (r, low, high) \n a = Mul (c)",
        "c = Clip () \n q = QuantizeLinear (c, s) \n a = DequantizeLinear (q, s)",
        "c = Clip (x, nan, high) \n q = QuantizeLinear (c, s) \n b = DequantizeLinear (q, s) \n a = Where (b)",
    ],
)
def test_what_is_fused_may_lack_its_inputs(text):
    low, high, nan = np.float32(-7), np.float32(7), np.float32("nan")
    refused(text, "s", match="^expected", low=low, high=high, nan=nan)
