"""What flows between layers: equal results, in the form that a runtime wants."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from qrobust.errors import ExportError
from qrobust.export import passes
from qrobust.export.passes.graph import constant, nodes
from qrobust.export.sessions import open_session

from .helpers import (
    FEATURES,
    activation,
    classifier,
    data_of,
    images,
    integer_conv,
    integer_weight,
    kinds,
    model_of,
    node,
    of_kind,
    pixels,
    quantised_input,
    random,
    run,
    small_network,
)

SIGNED = (images() - 0.5) * 8


def of_activation(bits, **settings):
    more, values = activation("x", "y", bits, **settings)
    return model_of(more, values)


def optimised(tmp_path, model):
    """Operators of the graph that onnxruntime executes."""
    written = tmp_path / "optimised.onnx"
    open_session(data_of(model), "all", "CPUExecutionProvider", written)
    return [node.op_type for node in onnx.load(str(written)).graph.node]


@pytest.mark.parametrize("bits", [4, 8])
def test_signed_activations_become_unsigned_and_outputs_stay(bits):
    more, values = activation("x", "d1", bits, signed=True)
    again = node("DequantizeLinear", [*more[-1].input], "d2")
    model = model_of([*more, again, node("Add", ["d1", "d2"], "y")], values)
    expected = run(model, SIGNED)
    assert expected.min() < 0 < expected.max()
    assert passes.unsigned_activations(model)
    assert constant(model.graph[0].inputs[2]).dtype == np.uint8
    np.testing.assert_array_equal(run(model, SIGNED), expected)


def pooled_classifier():
    """A feature map's average, in integers, through Flatten to a Gemm."""
    first, values = quantised_input()
    more, others = activation("p", "t", 8)
    last, third = classifier("t")
    pool = node("GlobalAveragePool", ["xd"], "p")
    return model_of([*first, pool, *more, *last], values | others | third, ("batch", FEATURES, 6, 6), rank=2)


def test_integers_flow_through_shapes_and_the_classifier_becomes_an_integer_one(tmp_path):
    model, x = pooled_classifier(), images(channels=FEATURES)
    expected = run(model, x)
    assert passes.integers_through_shapes(model)
    assert of_kind(model, "Flatten").inputs[0].producer().op_type == "QuantizeLinear"
    assert of_kind(model, "Gemm").inputs[0].producer().op_type == "DequantizeLinear"
    np.testing.assert_array_equal(run(model, x), expected)
    assert "QGemm" not in optimised(tmp_path, model)  # its bias is a float
    passes.quantise_biases(model)
    assert "QGemm" in optimised(tmp_path, model)
    assert np.abs(run(model, x) - expected).max() <= 0.02 * 0.1 / 2  # half a step of the bias


def test_integers_flow_through_a_row_of_shapes():
    first, values = quantised_input()
    row = [
        node("Transpose", ["xd"], "t", perm=[0, 2, 3, 1]),
        node("Flatten", ["t"], "f"),
        node("Reshape", ["f", "s"], "r"),
        node("Relu", ["r"], "y"),
    ]
    model = model_of([*first, *row], values | {"s": np.array([-1, 6, 24], np.int64)}, rank=3)
    expected = run(model, images())
    assert passes.integers_through_shapes(model)
    assert kinds(model) == ["QuantizeLinear", "Transpose", "Flatten", "Reshape", "DequantizeLinear", "Relu"]
    np.testing.assert_array_equal(run(model, images()), expected)


def test_floats_that_others_read_too_stay():
    first, values = quantised_input()
    model = model_of([*first, node("Identity", ["xd"], "i"), node("Add", ["i", "xd"], "y")], values)
    assert not passes.integers_through_shapes(model)
    model = model_of([node("Flatten", ["x"], "y")], {}, rank=2)
    assert not passes.integers_through_shapes(model)


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize(("channels", "wider"), [(1, 4), (3, 4), (6, 8)])
def test_an_images_channels_are_aligned_and_no_bit_changes(channels, wider, camera):
    more, values = integer_conv(channels=channels, bias=random(7).normal(size=FEATURES), output="y")
    model, x = model_of(more, values, ("batch", channels, 6, 6)), images(channels=channels)
    expected = run(model, x)
    if camera:
        passes.byte_input(model)
        x = pixels(channels=channels)
    assert passes.align_channels(model)
    integers = constant(of_kind(model, "Conv").inputs[1].producer().inputs[0])
    assert integers.shape == (FEATURES, wider, 3, 3)
    assert not integers[:, channels:].any()
    np.testing.assert_array_equal(run(model, x), expected)


def test_aligned_and_grouped_convolutions_and_inner_ones_stay_as_they_are():
    assert not passes.align_channels(model_of(*integer_conv(output="y")))
    depthwise = integer_conv(channels=FEATURES, group=FEATURES, output="y")
    assert not passes.align_channels(model_of(*depthwise, ("batch", FEATURES, 6, 6)))
    assert not passes.align_channels(small_network())  # its second convolution reads five channels


def test_an_image_that_others_read_too_is_not_aligned():
    more, values = integer_conv(channels=3)
    last = [node("ReduceMax", ["c"], "m"), node("Add", ["m", "xd"], "y")]
    assert not passes.align_channels(model_of([*more, *last], values, ("batch", 3, 6, 6)))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(("bits", "signed"), [(2, False), (7, False), (2, True), (7, True), (8, True)])
def test_symmetric_levels_are_the_same_ones(bits, signed, dtype):
    """Bounds are floats in front of the quantiser; int8 holds -128 too."""
    more, values = activation("x", "a", bits, signed=signed, narrow=signed and bits < 8)
    weight, others = integer_weight("w", (FEATURES, 4, 1, 1))
    model = model_of([*more, *weight, node("Conv", ["a", "wd"], "y")], values | others)
    x = SIGNED.astype(np.float32)
    expected = run(model, x)
    if dtype == np.uint8:
        passes.unsigned_activations(model)
    assert passes.symmetric_activations(model) == (bits < 8 or dtype == np.uint8)
    quantiser = of_kind(model, "QuantizeLinear")
    assert constant(quantiser.inputs[2]).dtype == np.int8
    assert not constant(quantiser.inputs[2]).any()
    assert {reader.op_type for reader in quantiser.outputs[0].consumers()} == {"DequantizeLinear"}
    np.testing.assert_array_equal(run(model, x), expected)


def test_unsigned_levels_of_eight_bits_are_floats_beside_symmetric_ones():
    model = small_network(bits=7)
    expected = run(model, images())
    assert passes.symmetric_activations(model)
    left = [n for n in nodes(model, "QuantizeLinear", "DequantizeLinear") if len(n.inputs) > 2]
    assert {constant(n.inputs[2]).dtype for n in left} == {np.dtype(np.int8)}
    assert kinds(model).count("Round") == 1  # the image's
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize("camera", [False, True])
def test_a_network_without_a_symmetric_layer_is_refused(camera):
    model = model_of(*integer_conv(output="y"))
    if camera:
        passes.byte_input(model)
        passes.pixels_as_floats(model)
    with pytest.raises(ExportError, match=r"expected activations of 7 bits or fewer.*got 8; quantise to 7 bits"):
        passes.symmetric_activations(model)


def test_a_float_network_is_symmetric_already():
    assert not passes.symmetric_activations(model_of([node("Relu", ["x"], "y")], {}))


@pytest.mark.parametrize(("bits", "signed"), [(2, False), (8, False), (3, True), (8, True)])
def test_arithmetic_gives_the_same_levels(bits, signed):
    model = of_activation(bits, signed=signed)
    expected = run(model, SIGNED)
    assert passes.activations_as_arithmetic(model)
    assert kinds(model) == ["Div", "Round", "Clip", "Mul"]
    np.testing.assert_array_equal(run(model, SIGNED), expected)


def test_arithmetic_of_shifted_levels_takes_the_zero_point_off():
    model = of_activation(4, signed=True)
    expected = run(model, SIGNED)
    passes.unsigned_activations(model)
    assert passes.activations_as_arithmetic(model)
    np.testing.assert_array_equal(run(model, SIGNED), expected)


def as_arithmetic(model):
    for step in (passes.weights_as_arithmetic, passes.activations_as_arithmetic):
        step(model)
    return model


def test_half_precision_computes_in_float16_between_floats():
    model = small_network()
    expected = run(model, images())
    assert passes.half_precision(as_arithmetic(model))
    passes.share_constants(model)
    scales = {n.inputs[1] for n in model.graph if n.op_type == "Mul" and n.inputs[0].producer().op_type == "Cast"}
    assert {v.dtype for v in scales} == {ir.DataType.FLOAT}
    others = {v.dtype for v in model.graph.initializers.values() if v not in scales}
    assert others == {ir.DataType.FLOAT16, ir.DataType.INT8}
    assert not passes.half_precision(model)
    assert [v.dtype for v in (*model.graph.inputs, *model.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in model.graph.outputs] == ["y"]
    got = run(model, images())
    assert 0 < np.abs(got - expected).max() < 0.05 * expected.std()


@pytest.mark.parametrize(("name", "value"), [("w_scale", 1e5), ("c_s", 1e6), ("c_s", 1e-9)])
def test_numbers_out_of_the_range_of_float16_are_refused(name, value):
    """A weight's scale may vanish; what activations are divided by may not."""
    more, values = integer_conv(per_channel=False)
    last, others = activation("c", "y", 8)
    values |= {("c_s" if key == "y_s" else key): array for key, array in others.items()}
    for n in last:
        n.input[:] = ["c_s" if key == "y_s" else key for key in n.input]
    model = model_of([*more, *last], values | {name: np.float32(value)})
    with pytest.raises(ExportError, match=r"expected weights and scales in the range of float16, got"):
        passes.half_precision(as_arithmetic(model))


def test_a_weight_that_vanishes_in_float16_is_zero():
    """By ONNX's own evaluator; onnxruntime on a CPU leaves out a Cast to float16 and back."""
    more, values = integer_conv(output="y")
    values["w_scale"][1] = 1e-12
    model = model_of(more, values)
    assert passes.half_precision(as_arithmetic(model))
    (result,) = ReferenceEvaluator(onnx.load_from_string(data_of(model))).run(None, {"x": images()})
    assert result.any()
    assert not result[:, 1].any()
