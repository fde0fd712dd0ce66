"""How weights lie in the file: the integers stay."""

import numpy as np
import onnx_ir as ir
import pytest

from qrobust.export import passes
from qrobust.export.passes.graph import constant

from .helpers import (
    FEATURES,
    PADS,
    classifier,
    float_conv,
    images,
    integer_conv,
    kinds,
    model_of,
    node,
    of_kind,
    quantised_input,
    run,
)


def conv_of(largest=7, **settings):
    return model_of(*integer_conv(largest=largest, output="y", **settings))


def gemm_of(largest):
    """x → uint8 → Flatten → Gemm."""
    first, values = quantised_input()
    last, others = classifier("xd")
    others["g"] = np.clip(np.resize(others["g"], (3, FEATURES * 36)), -largest, largest)
    return model_of([*first, *last], values | others, ("batch", FEATURES, 6, 6), rank=2)


def weight_node(model, kind="Conv"):
    """What makes the layer's weight, and the stored value."""
    node = of_kind(model, kind).inputs[1].producer()
    stored = node.inputs[0]
    return node, stored.producer().inputs[0] if stored.producer() else stored


def test_no_two_layers_share_what_makes_their_weights():
    """Of two equal layers: integers and zero point are stored twice, scales once; activations share what they may."""
    nodes, values = integer_conv()
    again = [
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], "wd2", axis=0),
        node("Conv", ["xd", "wd2"], "c2", pads=PADS),
        node("Add", ["c", "c2"], "y"),
    ]
    model = model_of([*nodes, *again], values)
    expected = run(model, images())
    assert passes.own_constants(model)
    one, two = (n for n in model.graph if n.op_type == "DequantizeLinear" and n.outputs[0].name.startswith("wd"))
    assert [a is b for a, b in zip(one.inputs, two.inputs, strict=True)] == [False, True, False]
    np.testing.assert_array_equal(run(model, images()), expected)
    assert not passes.own_constants(model)


@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize(
    ("largest", "dtype", "opset", "version"),
    [(0, "INT2", 25, 13), (1, "INT2", 25, 13), (2, "INT4", 21, 10), (7, "INT4", 21, 10), (8, "INT8", 20, 10)],
)
def test_weights_are_stored_at_the_least_width(largest, dtype, opset, version, cast):
    model = conv_of(largest)
    expected = run(model, images())
    assert passes.narrow_storage(model, cast=cast) == (dtype != "INT8")
    _, stored = weight_node(model)
    assert stored.dtype.name == dtype
    assert ("Cast" in kinds(model)) == (dtype == "INT2" or (cast and dtype == "INT4"))
    assert (model.graph.opset_imports[""], model.ir_version) == (opset, version)
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize(("opset", "dtype"), [(20, "INT8"), (21, "INT4"), (24, "INT4"), (25, "INT2")])
def test_the_targets_opset_decides_what_widths_there_are(opset, dtype):
    model = conv_of(1)
    expected = run(model, images())
    assert passes.narrow_storage(model, opset=opset) == (dtype != "INT8")
    assert weight_node(model)[1].dtype.name == dtype
    assert model.graph.opset_imports[""] <= opset
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize("largest", [1, 7])
def test_a_classifier_is_narrowed_too(largest, cast):
    """INT4 beside a zero point of INT8 would be no valid graph."""
    model, x = gemm_of(largest), images(channels=FEATURES)
    expected = run(model, x)
    assert passes.narrow_storage(model, cast=cast)
    np.testing.assert_array_equal(run(model, x), expected)


def test_biases_stay_int32():
    model = conv_of(7, bias=[1, 0, 1, 0, -1])
    passes.quantise_biases(model)
    assert passes.narrow_storage(model)
    assert constant(of_kind(model, "Conv").inputs[2].producer().inputs[0]).dtype == np.int32


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("cast", [True, False])
@pytest.mark.parametrize("largest", [1, 7, 100])
def test_integer_weights_become_floats_by_arithmetic(largest, cast, per_channel):
    """However they are stored."""
    model = conv_of(largest, per_channel=per_channel)
    passes.narrow_storage(model, cast=cast)
    _, stored = weight_node(model)
    expected = run(model, images())
    assert passes.weights_as_arithmetic(model)
    assert of_kind(model, "Mul").outputs[0] is of_kind(model, "Conv").inputs[1]
    assert stored in model.graph.initializers.values()
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_and_biases_become_floats(per_channel):
    model = conv_of(7, per_channel=per_channel, bias=[1, 0, 1, 0, -1])
    passes.quantise_biases(model)
    expected = run(model, images())
    assert passes.weights_as_floats(model)
    assert kinds(model) == ["QuantizeLinear", "DequantizeLinear", "Conv"]
    assert all(value.dtype == ir.DataType.FLOAT for value in of_kind(model, "Conv").inputs[1:])
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize(
    "step", [passes.own_constants, passes.narrow_storage, passes.weights_as_arithmetic, passes.weights_as_floats]
)
def test_float_weights_stay(step):
    assert not step(model_of(*float_conv(True, output="y")))
