"""From graph to steps: what is folded and fused, what is not covered, what asks for too much."""

import numpy as np
import pytest
import torch

from qrobust.errors import GraphError
from qrobust.onnx_module import FORMS, covered, load_onnx

from .helpers import runtime, text_model
from .operators.cases import CONSTANTS
from .test_module import chain, uniform

Q = "q = QuantizeLinear (x, s, z)"


def made(text, *names, opset=21, **constants):
    given = {name: CONSTANTS[name] for name in names} | constants
    return load_onnx(text_model(text, given, opset=opset).SerializeToString())


def ops(network):
    return [step.node.op for step in network.plan.steps]


def refused(text, *names, match, flat=True, **constants):
    given = {name: CONSTANTS[name] for name in names} | constants
    with pytest.raises(GraphError, match=match) as caught:
        load_onnx(text_model(text, given, flat=flat).SerializeToString())
    assert "\n" not in str(caught.value)


def test_an_exported_layer_is_one_quantiser_and_one_convolution():
    assert ops(load_onnx(chain())) == ["FakeQuantize", "Conv", "Flatten", "Gemm"]


def test_weights_are_constants_and_what_they_came_from_is_gone():
    network = load_onnx(chain())
    assert sorted(tuple(b.shape) for b in network.buffers() if b.dim()) == [(4, 3, 3, 3), (5, 144)]
    assert not network.plan.constants


def test_what_the_output_does_not_need_is_not_asked_for():
    assert ops(made("c = NonMaxSuppression (x, x) \n a = Relu (x)")) == ["Relu", "Flatten"]


def test_uncovered_operators_are_named_and_where_the_covered_are_listed():
    text = "b = Det (x) \n c = com.microsoft.Evil (b) \n a = Det (c)"
    refused(
        text, match=r"got Det \(2\), com.microsoft::Evil \(1\), first at node b; .* qrobust.onnx_module.covered\(\)"
    )
    assert {"Abs", "Attention", "com.microsoft::QGemm"} < set(covered())


def test_a_result_that_is_not_covered_is_named():
    refused(
        "p, i = MaxPool <kernel_shape = [2, 2]> (x) \n a = Cast <to = 1> (i)", match="results that are covered, got i"
    )
    refused("p, y = Dropout (x)", match="expected logits", flat=False)


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


AGAIN = """q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    r = Relu (d)
    t = Transpose <perm = [0, 2, 3, 1]> (r)
    p = QuantizeLinear (t, {0}, z)
    a = DequantizeLinear (p, {0}, z)"""


def test_a_quantiser_of_values_on_its_own_steps_goes():
    once = made(AGAIN.format("s"), "s", "z")
    assert ops(once) == ["FakeQuantize", "Relu", "Transpose", "Flatten"]
    assert ops(made(AGAIN.format("s2"), "s", "s2", "z")).count("FakeQuantize") == 2
    x = uniform(2, -1, 1)
    data = text_model(AGAIN.format("s"), {name: CONSTANTS[name] for name in ("s", "z")}).SerializeToString()
    torch.testing.assert_close(once(x), runtime(data, x))


def test_and_leaves_the_soft_form_its_gradient():
    once, alone = (
        made(AGAIN.format("s"), "s", "z"),
        made(f"{Q} \n d = DequantizeLinear (q, s, z) \n a = Relu (d)", "s", "z"),
    )
    x = uniform(2, -1, 1)
    once.backward_form = alone.backward_form = "soft"
    theirs, ours = (gradient_of(network, x) for network in (alone, once))
    torch.testing.assert_close(ours, theirs)


def gradient_of(network, x):
    x = x.clone().requires_grad_(True)
    network(x).sum().backward()
    return x.grad


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


LINEAR = """q = QuantizeLinear (x, s, z)
    i = MatMulInteger (q, w, z, wz)
    f = Cast <to = 1> (i)
    one = DequantizeLinear (unit, s)
    v = Mul (one, ws)
    a = Mul (f, v)"""


@pytest.mark.parametrize("form", FORMS)
def test_integer_products_have_the_gradients_of_the_layer_that_they_are(form):
    """Those of a quantiser and a product in float, also where the range is measured on the image."""
    constants = {"w": CONSTANTS["qm8"], "wz": CONSTANTS["z5"], "ws": CONSTANTS["s5"], "unit": np.int8(1)}
    given = {name: CONSTANTS[name] for name in ("s", "z")}
    text = "q = QuantizeLinear (x, s, z) \n d = DequantizeLinear (q, s, z) \n "
    text += "wd = DequantizeLinear <axis = 1> (w, ws, wz) \n a = MatMul (d, wd)"
    whole, plain = (made(one, **given, **constants) for one in (LINEAR, text))
    x = uniform(2, -3, 3)
    whole.backward_form = plain.backward_form = form
    torch.testing.assert_close(whole(x), plain(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient_of(whole, x), gradient_of(plain, x), rtol=1e-4, atol=1e-4)
    assert float(gradient_of(whole, x).norm()) > 0


def test_a_range_measured_on_the_image_is_its_own():
    """In a batch, onnxruntime takes one range of all images: here and in an attack each has its own."""
    text = "q, s, z = DynamicQuantizeLinear (x) \n a = DequantizeLinear (q, s, z)"
    network, x = made(text), uniform(3, -1, 1) * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1)
    assert network.plan.batch == 1
    torch.testing.assert_close(network(x), torch.cat([network(one[None]) for one in x]))
    torch.testing.assert_close(gradient_of(network, x), torch.ones_like(x))
    assert (network(torch.zeros(1, 3, 8, 8)) == 0).all()


def test_small_gradients_pass_16_bits():
    """1e-8 is no number of float16."""
    text = "h = Cast <to = 10> (x) \n m = Mul (h, t) \n n = Mul (m, t) \n a = Cast <to = 1> (n)"
    network, x = made(text, t=np.float16(1e-4)), uniform(2)
    assert torch.equal(network.inside(x)["m"], (x.half() * torch.tensor(1e-4).half()).float())
    torch.testing.assert_close(gradient_of(network, x), torch.full_like(x, 1e-8), rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("op", "inside", "outside"), [("Floor", 1.0, 1.0), ("Ceil", 1.0, 1.0), ("Round", 1.0, 1.0), ("Sign", 1.0, 0.0)]
)
def test_bare_roundings_let_gradients_pass(op, inside, outside):
    network, x = made(f"a = {op} (x)"), uniform(2, -3, 3)
    assert (gradient_of(network, x) == 1).all()
    network.backward_form = "clipped"
    expected = torch.where(x.abs() <= 1, inside, outside)
    assert torch.equal(gradient_of(network, x), expected)
    network.backward_form = "soft"
    assert float(gradient_of(network, x).norm()) > 0


@pytest.mark.parametrize("lowest", [-3.4028235e38, -np.inf])
def test_a_range_beyond_float32_has_a_gradient(lowest):
    """What calibration makes of a mask of the lowest number."""
    text = f"{Q} \n d = DequantizeLinear (q, s, z) \n m = Add (d, k) \n p = QuantizeLinear (m, t, top) \n"
    text += "e = DequantizeLinear (p, t, top) \n b = Mul (e, zero) \n a = Add (b, d)"
    mask = np.where(CONSTANTS["wide_mask"] < 0, np.float32(lowest), np.float32(0))
    constants = {"k": mask, "t": CONSTANTS["smask"], "top": CONSTANTS["zmask"], "zero": np.float32(0)}
    network = made(text, "s", "z", **constants)
    for form in FORMS:
        network.backward_form = form
        assert gradient_of(network, uniform(1)).isfinite().all()
