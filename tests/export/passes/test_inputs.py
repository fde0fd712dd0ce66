"""Images as a camera gives them."""

import numpy as np
import onnx_ir as ir
import pytest

from qrobust.export import passes

from .helpers import (
    FEATURES,
    float_conv,
    images,
    integer_conv,
    kinds,
    model_of,
    node,
    of_kind,
    pixels,
    run,
    side_by_side,
    small_network,
)


def every_pixel():
    """All 256 values, in both forms."""
    camera = np.arange(256, dtype=np.uint8).repeat(9).reshape(4, 12, 12, 4)
    return np.ascontiguousarray((camera.transpose(0, 3, 1, 2) / np.float32(255)).astype(np.float32)), camera


NETWORKS = {
    "quantised": lambda: (*integer_conv(bias=np.arange(FEATURES), output="y"),),
    "float": lambda: float_conv(True, output="y"),
    "normalised": lambda: ([node("Sub", ["x", "m"], "s"), node("Relu", ["s"], "y")], {"m": np.float32(0.4)}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_camera_gives_the_bits_that_floats_give(name):
    x, camera = every_pixel()
    model = model_of(*NETWORKS[name](), ("batch", 4, 12, 12))
    expected = run(model, x)
    assert passes.byte_input(model)
    (source,) = model.graph.inputs
    assert (source.name, source.dtype, list(source.shape)[1:]) == ("x", ir.DataType.UINT8, [12, 12, 4])
    assert str(source.shape[0]) == "batch"
    np.testing.assert_array_equal(run(model, camera), expected)


def test_the_quantiser_of_pixels_goes_and_another_one_stays():
    model = model_of(*integer_conv(output="y"))
    assert passes.byte_input(model)
    assert "QuantizeLinear" not in kinds(model)
    nodes, values = integer_conv(output="y")
    model = model_of(nodes, values | {"x_scale": np.float32(1 / 100)})
    expected = run(model, images())
    assert passes.byte_input(model)
    assert "QuantizeLinear" in kinds(model)
    np.testing.assert_array_equal(run(model, pixels()), expected)


def test_integers_and_floats_may_be_read_side_by_side():
    model = side_by_side()
    expected = run(model, images())
    assert passes.byte_input(model)
    assert kinds(model).count("Transpose") == 1
    np.testing.assert_array_equal(run(model, pixels()), expected)


def test_pixels_become_floats_where_nothing_else_reads_unsigned_integers():
    model = small_network()
    expected = run(model, images())
    assert not passes.pixels_as_floats(model)  # an image of floats has a quantiser
    passes.byte_input(model)
    assert passes.pixels_as_floats(model)
    assert of_kind(model, "Transpose").outputs[0].consumers()[0].op_type == "Cast"
    np.testing.assert_array_equal(run(model, pixels()), expected)
