"""Every step on small graphs made by hand."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qrobust.export import passes
from qrobust.export.passes import constant

FEATURES = 5


def random(seed=0):
    return np.random.default_rng(seed)


def model_of(nodes, initialisers, shape=("batch", 4, 6, 6), opset=20, also_inputs=()):
    """A graph from x to y; initialisers are arrays by name."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in initialisers.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors if t.name in also_inputs]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "channels", "h", "w"])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(proto)


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def images(n=3, channels=4, seed=0):
    return (random(seed).integers(0, 256, (n, channels, 6, 6)) / 255).astype(np.float32)


def kinds(model):
    return [node.op_type for node in model.graph]


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def norm_values(gamma, seed=1):
    r = random(seed)
    return {
        "gamma": np.asarray(gamma, np.float32),
        "beta": r.normal(size=FEATURES).astype(np.float32),
        "mean": r.normal(size=FEATURES).astype(np.float32),
        "variance": r.uniform(0.2, 3, FEATURES).astype(np.float32),
    }


GAMMAS = [[0.5, 1.2, 2.0, 0.1, 1.0], [-0.5, 1.2, -2.0, 0.0, 1.0]]
NORM = node("BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], "y", epsilon=1e-3)


def quantised_input():
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], "xq"),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], "xd"),
    ]
    return nodes, {"x_scale": np.float32(1 / 255), "x_zero": np.uint8(0)}


def integer_conv(per_channel, bias=None, largest=7):
    """x → uint8 → Conv with int8 weights → c."""
    nodes, values = quantised_input()
    values["w"] = random().integers(-largest, largest + 1, (FEATURES, 4, 3, 3)).astype(np.int8)
    values["w"].flat[:2] = (-largest, largest)
    scale = random(2).uniform(0.01, 0.1, FEATURES).astype(np.float32)
    values["w_scale"] = scale if per_channel else scale[0]
    values["w_zero"] = np.zeros(np.shape(values["w_scale"]), np.int8)
    nodes.append(node("DequantizeLinear", ["w", "w_scale", "w_zero"], "wd", axis=0))
    inputs = ["xd", "wd"]
    if bias is not None:
        values["bias"] = np.asarray(bias, np.float32)
        inputs.append("bias")
    nodes.append(node("Conv", inputs, "c", pads=[1, 1, 1, 1]))
    return nodes, values


def float_conv(bias):
    values = {"w": random().normal(size=(FEATURES, 4, 3, 3)).astype(np.float32)}
    if bias:
        values["bias"] = random(3).normal(size=FEATURES).astype(np.float32)
    return [node("Conv", ["x", "w", *(["bias"] if bias else [])], "c", pads=[1, 1, 1, 1])], values


def test_tidy_lifts_constants_and_drops_what_is_unused():
    two = numpy_helper.from_array(np.float32(2), "two")
    nodes = [
        helper.make_node("Constant", [], ["two"], value=two),
        node("Identity", ["x"], "same"),
        node("Relu", ["x"], "unread"),
        node("Mul", ["same", "two"], "product"),
        node("Add", ["product", "bias"], "y"),
    ]
    model = model_of(nodes, {"bias": np.float32(1), "unused": np.float32(7)}, also_inputs=("bias",))
    expected = images() * 2 + 1
    assert passes.tidy(model)
    assert kinds(model) == ["Mul", "Add"]
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert set(model.graph.initializers) == {"two", "bias"}
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.tidy(model)


def test_weight_clips_are_folded_and_others_stay():
    nodes, values = integer_conv(True, largest=9)
    values |= {"low": np.int8(-7), "high": np.int8(7), "low8": np.uint8(0), "high8": np.uint8(15)}
    nodes[1:1] = [node("Clip", ["xq", "low8", "high8"], "xc")]
    nodes[2].input[0] = "xc"
    nodes.insert(3, node("Clip", ["w", "low", "high"], "wc"))
    nodes[4].input[0] = "wc"
    nodes[-1].output[0] = "y"
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.fold_weight_clips(model)
    assert kinds(model).count("Clip") == 1
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.fold_weight_clips(model)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batch_norm_folds_into_a_float_convolution(gamma, bias):
    nodes, values = float_conv(bias)
    model = model_of([*nodes, NORM], values | norm_values(gamma))
    expected = run(model, images())
    assert passes.fold_batch_norm(model)
    assert kinds(model) == ["Conv"]
    np.testing.assert_allclose(run(model, images()), expected, rtol=1e-5, atol=1e-5)
    assert not passes.fold_batch_norm(model)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batch_norm_folds_into_an_integer_convolution(gamma, per_channel):
    nodes, values = integer_conv(per_channel)
    model = model_of([*nodes, NORM], values | norm_values(gamma))
    expected = run(model, images())
    assert passes.fold_batch_norm(model)
    assert "BatchNormalization" not in kinds(model)
    np.testing.assert_allclose(run(model, images()), expected, rtol=1e-5, atol=1e-5)
    conv = next(n for n in model.graph if n.op_type == "Conv")
    integers = constant(conv.inputs[1].producer().inputs[0])
    assert integers.dtype == np.int8
    np.testing.assert_array_equal(integers, values["w"] * np.sign(np.int8(np.sign(gamma))).reshape(-1, 1, 1, 1))
    assert (constant(conv.inputs[1].producer().inputs[1]) > 0).all()
    assert not passes.fold_batch_norm(model)


def test_a_convolution_with_two_readers_keeps_its_batch_norm():
    nodes, values = float_conv(False)
    norm = node("BatchNormalization", NORM.input, "n", epsilon=1e-3)
    model = model_of([*nodes, norm, node("Add", ["n", "c"], "y")], values | norm_values(GAMMAS[0]))
    assert not passes.fold_batch_norm(model)


def test_biases_become_int32_on_the_accumulators_grid():
    nodes, values = integer_conv(True, bias=[0.5, -1.0, 0.0, 3.0, 0.01])
    nodes[-1].output[0] = "y"
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.quantise_biases(model)
    bias = next(n for n in model.graph if n.op_type == "Conv").inputs[2].producer()
    integers, scale = constant(bias.inputs[0]), constant(bias.inputs[1])
    assert (integers.dtype, scale.dtype) == (np.int32, np.float32)
    np.testing.assert_allclose(scale, values["x_scale"] * values["w_scale"], rtol=1e-6)
    assert np.abs(integers * scale.astype(float) - values["bias"]).max() <= scale.max() / 2
    assert np.abs(run(model, images()) - expected).max() <= scale.max()
    assert not passes.quantise_biases(model)


@pytest.mark.parametrize("scale", [1e-12, 1e-30])
def test_a_scale_too_small_for_its_bias_grows(scale):
    nodes, values = integer_conv(True, bias=[0.5, -1.0, 0.0, 3.0, 0.01])
    nodes[-1].output[0] = "y"
    values["w_scale"][1] = scale
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.quantise_biases(model)
    conv = next(n for n in model.graph if n.op_type == "Conv")
    weight, bias = conv.inputs[1].producer(), conv.inputs[2].producer()
    np.testing.assert_array_equal(np.delete(constant(weight.inputs[0]), 1, 0), np.delete(values["w"], 1, 0))
    assert constant(weight.inputs[1])[1] > scale
    assert (constant(weight.inputs[0])[1] == 0).all()  # less than half a step of the new scale
    assert constant(bias.inputs[0])[1] == pytest.approx(-(2**30), rel=1e-5)
    got = run(model, images())
    np.testing.assert_allclose(got[:, 1], expected[:, 1], rtol=1e-5)
    assert np.abs(got - expected).max() <= 0.001


def test_biases_of_float_layers_stay():
    nodes, values = float_conv(True)
    nodes[-1].output[0] = "y"
    assert not passes.quantise_biases(model_of(nodes, values))


@pytest.mark.parametrize("clip", [True, False])
def test_signed_activations_become_unsigned_and_outputs_stay(clip):
    nodes = [node("QuantizeLinear", ["x", "scale", "zero"], "q")]
    if clip:
        nodes.append(node("Clip", ["q", "low", "high"], "c"))
    last = nodes[-1].output[0]
    nodes += [
        node("DequantizeLinear", [last, "scale", "zero"], "d1"),
        node("DequantizeLinear", [last, "scale", "zero"], "d2"),
        node("Add", ["d1", "d2"], "y"),
    ]
    values = {"scale": np.float32(0.02), "zero": np.int8(0), "low": np.int8(-7), "high": np.int8(7)}
    model = model_of(nodes, values if clip else {k: values[k] for k in ("scale", "zero")})
    x = (images() - 0.5) * 8
    expected = run(model, x)
    assert expected.min() < 0 < expected.max()
    assert passes.unsigned_activations(model)
    assert constant(model.graph[0].inputs[2]).dtype == np.uint8
    np.testing.assert_array_equal(run(model, x), expected)
    assert not passes.unsigned_activations(model)


def test_zero_points_of_weights_are_dropped():
    nodes, values = integer_conv(True)
    nodes[-1].output[0] = "y"
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.drop_zero_points(model)
    inputs = {n.outputs[0].name: len(n.inputs) for n in model.graph if n.op_type == "DequantizeLinear"}
    assert inputs == {"xd": 3, "wd": 2}
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.drop_zero_points(model)


@pytest.mark.parametrize(
    ("largest", "dtype", "opset", "version"),
    [(0, "INT2", 25, 13), (1, "INT2", 25, 13), (2, "INT4", 21, 10), (7, "INT4", 21, 10), (8, "INT8", 20, 10)],
)
def test_weights_are_stored_at_the_least_width(largest, dtype, opset, version):
    nodes, values = integer_conv(True, largest=largest)
    nodes[-1].output[0] = "y"
    model = model_of(nodes, values)
    passes.drop_zero_points(model)
    expected = run(model, images())
    assert passes.narrow_storage(model) == (dtype != "INT8")
    conv = next(n for n in model.graph if n.op_type == "Conv")
    stored = conv.inputs[1].producer().inputs[0]
    stored = stored.producer().inputs[0] if stored.producer() else stored
    assert stored.dtype.name == dtype
    assert (model.graph.opset_imports[""], model.ir_version) == (opset, version)
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.narrow_storage(model)


def test_equal_constants_are_stored_once():
    nodes = [node("Add", ["x", "a"], "s"), node("Mul", ["s", "b"], "y")]
    model = model_of(nodes, {"a": np.float32(2), "b": np.float32(2), "unused": np.float32(1)})
    expected = run(model, images())
    assert passes.share_constants(model)
    assert len(model.graph.initializers) == 1
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.share_constants(model)


def test_all_steps_in_order_and_then_nothing_more():
    nodes, values = integer_conv(True)
    model = model_of([*nodes, NORM], values | norm_values(GAMMAS[1]))
    expected = run(model, images())
    changed = [step.__name__ for step in passes.LOWERING if step(model)]
    assert "tidy" not in changed
    assert "fold_batch_norm" in changed
    assert np.abs(run(model, images()) - expected).max() < 1e-3
    assert [step.__name__ for step in passes.LOWERING if step(model)] == []
