"""Every operator that a module covers, against onnxruntime."""

import onnx.reference
import pytest
import torch

from qrobust.onnx_module import covered, load_onnx

from ..helpers import runtime, text_model
from .cases import CASES, CONSTANTS, NEW, OLD

# Weights by their type, and the opset that brought it.
STORED = {"INT8": ("qw", 21), "INT4": ("w4", 21), "UINT4": ("u4", 21), "INT2": ("w2", 25), "UINT2": ("u2", 25)}
# Onnxruntime has the schema of the second and no code; the first is younger than what it runs.
ELSEWHERE = {"Swish", "com.microsoft::QLinearReduceMean"}


def inputs(n=3):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def model_of(text, opset=21):
    words = {word.strip(",()") for word in text.split()}
    return text_model(text, {name: value for name, value in CONSTANTS.items() if name in words}, opset=opset)


@torch.no_grad()
def both(model):
    data = model.SerializeToString()
    network = load_onnx(data)
    parts = inputs().split(network.plan.batch or 3)
    return network(inputs()), torch.cat([runtime(data, part) for part in parts])


def assert_agree(model):
    torch.testing.assert_close(*both(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("Q") or name.startswith("Quan")])
def test_it_computes_what_onnxruntime_does(name):
    assert_agree(model_of(CASES[name]))


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("Q") and not name.startswith("Quan")])
def test_on_integers_it_is_within_a_step(name):
    """Onnxruntime computes these in integers or tables: a value between two steps may fall to the other."""
    got, expected = both(model_of(CASES[name]))
    step = CONSTANTS[CASES[name].rsplit("(", 1)[1].split(",")[1].strip()]
    off = (got - expected).abs() / float(step.max())
    assert float(off.max()) < 1 + 1e-3
    assert float((off > 1e-3).float().mean()) < 0.01


@pytest.mark.parametrize("name", [*OLD, *NEW])
def test_older_and_newer_files_say_it_otherwise(name):
    assert_agree(model_of((OLD | NEW)[name], int(name.split("(")[1].split(")")[0])))


@pytest.mark.parametrize("kind", STORED)
def test_weights_of_every_width(kind):
    name, opset = STORED[kind]
    to = onnx.TensorProto.UINT8 if kind[0] == "U" else onnx.TensorProto.INT8
    texts = [f"v = Cast <to = {to}> ({name}) \n w_ = DequantizeLinear <axis = 0> (v, ws) \n a = Conv (x, w_)"]
    if opset == 21:  # onnxruntime dequantises no 2-bit integers
        texts.append(f"w_ = DequantizeLinear <axis = 0> ({name}, ws) \n a = Conv (x, w_)")
    for text in texts:
        assert_agree(model_of(text, opset))


def test_blocks_have_their_own_scale():
    text = "f = Flatten (x) \n w_ = DequantizeLinear <axis = 0, block_size = 48> (q, s) \n a = MatMul (f, w_)"
    model = text_model(text, {"q": CONSTANTS["qfc"].T.copy(), "s": abs(CONSTANTS["fct"][:4]) / 50})
    assert_agree(model)


def test_every_operator_has_a_case():
    texts = " ".join([*CASES.values(), *OLD.values(), *NEW.values()]).replace("com.microsoft.", "com.microsoft::")
    assert {name for name in covered() if name not in texts.split()} == ELSEWHERE


def test_swish_is_what_the_reference_says():
    model = text_model("a = Swish <alpha = 1.5> (x)", opset=24)
    (expected,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": inputs().numpy()})
    torch.testing.assert_close(load_onnx(model.SerializeToString())(inputs()), torch.from_numpy(expected))


def test_rows_of_integers_have_their_own_zero_points():
    """Which onnxruntime refuses, and ONNX's reference too."""
    model = model_of("q = QuantizeLinear (x, s, z) \n i = MatMulInteger (qrows, q, zrows, z) \n a = Cast <to = 1> (i)")
    rows, zeros, scale, zero = (torch.tensor(CONSTANTS[name]).float() for name in ("qrows", "zrows", "s", "z"))
    steps = ((inputs() / scale).round() + zero).clamp(0, 255) - zero
    expected = (rows - zeros[:, None]) @ steps
    torch.testing.assert_close(load_onnx(model.SerializeToString())(inputs()), expected.flatten(1))


def test_a_mean_of_integers_over_axes():
    before = "q = QuantizeLinear (x, s, z)"
    text = f"{before} \n o = com.microsoft.QLinearReduceMean <axes = [2, 3]> (q, s, z, s2, z2)"
    plain = f"{before} \n d = DequantizeLinear (q, s, z) \n e = ReduceMean (d, i23) \n o = QuantizeLinear (e, s2, z2)"
    ours, theirs = (model_of(f"{one} \n a = DequantizeLinear (o, s2, z2)").SerializeToString() for one in (text, plain))
    torch.testing.assert_close(load_onnx(ours)(inputs()), runtime(theirs, inputs()))
