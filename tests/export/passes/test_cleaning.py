"""Steps that change no result."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qrobust.export import passes

from .helpers import PADS, float_conv, images, integer_conv, kinds, model_of, node, of_kind, run


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


def test_equal_constants_are_stored_once():
    nodes = [node("Add", ["x", "a"], "s"), node("Mul", ["s", "b"], "y")]
    model = model_of(nodes, {"a": np.float32(2), "b": np.float32(2), "unused": np.float32(1)})
    expected = run(model, images())
    assert passes.share_constants(model)
    assert len(model.graph.initializers) == 1
    np.testing.assert_array_equal(run(model, images()), expected)


def conv_with(**attributes):
    nodes, values = float_conv(True, output="y")
    del nodes[0].attribute[:]
    nodes[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return model_of(nodes, values)


def test_defaults_are_not_spelt_out_and_the_result_stays():
    usual = {"group": 1, "auto_pad": "NOTSET", "kernel_shape": [3, 3], "pads": [0] * 4}
    model = conv_with(**usual, strides=[1, 1], dilations=[1, 1])
    expected = run(model, images())
    assert passes.drop_defaults(model)
    assert not of_kind(model, "Conv").attributes
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize(
    "unusual", [{"pads": PADS}, {"pads": [0, 0, 0, 1]}, {"strides": [2, 2]}, {"strides": [1, 2]}, {"dilations": [2, 2]}]
)
def test_what_is_no_default_stays(unusual):
    model = conv_with(**unusual, kernel_shape=[3, 3])
    expected = run(model, images())
    assert passes.drop_defaults(model)
    assert set(of_kind(model, "Conv").attributes) == set(unusual)
    np.testing.assert_array_equal(run(model, images()), expected)


def gemm_with(flat, **attributes):
    nodes = [node("Flatten", ["x"], "f", axis=flat), node("Gemm", ["f", "w", "b"], "y", **attributes)]
    values = {"w": np.ones((144, 2), np.float32), "b": np.ones(2, np.float32)}
    return model_of(nodes, values, rank=2)


def test_defaults_of_the_classifier():
    model = gemm_with(1, alpha=1.0, beta=1.0, transA=0, transB=0)
    expected = run(model, images())
    assert passes.drop_defaults(model)
    assert not any(node.attributes for node in model.graph)
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.drop_defaults(gemm_with(-3, alpha=2.0, beta=0.5))


def test_the_axis_of_output_channels_stays():
    model = model_of(*integer_conv(output="y"))
    passes.drop_defaults(model)
    weight = of_kind(model, "Conv").inputs[1].producer()
    assert weight.attributes["axis"].as_int() == 0


def test_types_are_said_of_inputs_and_outputs_alone():
    model = model_of(*integer_conv(output="y"))
    for output in (output for each in model.graph for output in each.outputs):
        output.type, output.shape = output.type or ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
    model.graph.outputs[0].shape = ir.Shape(["batch", 5, 6, 6])
    said = (ir.DataType.FLOAT, [4, 6, 6], ir.DataType.FLOAT, [5, 6, 6])
    assert passes.drop_types(model)
    (first,), (last,) = model.graph.inputs, model.graph.outputs
    assert (first.dtype, list(first.shape)[1:], last.dtype, list(last.shape)[1:]) == said
    inner = [output for node in model.graph for output in node.outputs if output is not last]
    assert inner
    assert all(value.type is None and value.shape is None for value in inner)
    assert run(model, images()).shape == (3, 5, 6, 6)
