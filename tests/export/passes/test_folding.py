"""Constants fold into weights and biases."""

import numpy as np
import pytest

from qrobust.export import passes
from qrobust.export.passes.graph import constant

from .helpers import FEATURES, float_conv, images, integer_conv, kinds, model_of, node, of_kind, random, run

GAMMAS = [[0.5, 1.2, 2.0, 0.1, 1.0], [-0.5, 1.2, -2.0, 0.0, 1.0]]
NORM = node("BatchNormalization", ["c", "gamma", "beta", "mean", "variance"], "y", epsilon=1e-3)
BIAS = [0.5, -1.0, 0.0, 3.0, 0.01]


def norm_values(gamma, seed=1):
    r = random(seed)
    return {
        "gamma": np.asarray(gamma, np.float32),
        "beta": r.normal(size=FEATURES).astype(np.float32),
        "mean": r.normal(size=FEATURES).astype(np.float32),
        "variance": r.uniform(0.2, 3, FEATURES).astype(np.float32),
    }


def test_weight_clips_are_folded_and_others_stay():
    nodes, values = integer_conv(largest=9, output="y")
    values |= {"low": np.int8(-7), "high": np.int8(7), "low8": np.uint8(0), "high8": np.uint8(15)}
    nodes[1:1] = [node("Clip", ["xq", "low8", "high8"], "xc")]
    nodes[2].input[0] = "xc"
    nodes.insert(3, node("Clip", ["w", "low", "high"], "wc"))
    nodes[4].input[0] = "wc"
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.fold_weight_clips(model)
    assert kinds(model).count("Clip") == 1
    np.testing.assert_array_equal(run(model, images()), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batch_norm_folds_into_a_float_convolution(gamma, bias):
    nodes, values = float_conv(bias)
    model = model_of([*nodes, NORM], values | norm_values(gamma))
    expected = run(model, images())
    assert passes.fold_batch_norm(model)
    assert kinds(model) == ["Conv"]
    np.testing.assert_allclose(run(model, images()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_batch_norm_folds_into_an_integer_convolution(gamma, per_channel):
    nodes, values = integer_conv(per_channel)
    model = model_of([*nodes, NORM], values | norm_values(gamma))
    expected = run(model, images())
    assert passes.fold_batch_norm(model)
    assert "BatchNormalization" not in kinds(model)
    np.testing.assert_allclose(run(model, images()), expected, rtol=1e-5, atol=1e-5)
    weight = of_kind(model, "Conv").inputs[1].producer()
    integers = constant(weight.inputs[0])
    assert integers.dtype == np.int8
    np.testing.assert_array_equal(integers, values["w"] * np.sign(np.int8(np.sign(gamma))).reshape(-1, 1, 1, 1))
    assert (constant(weight.inputs[1]) > 0).all()


def test_a_convolution_with_two_readers_keeps_its_batch_norm():
    nodes, values = float_conv(False)
    norm = node("BatchNormalization", NORM.input, "n", epsilon=1e-3)
    model = model_of([*nodes, norm, node("Add", ["n", "c"], "y")], values | norm_values(GAMMAS[0]))
    assert not passes.fold_batch_norm(model)


def test_biases_become_int32_on_the_accumulators_grid():
    nodes, values = integer_conv(bias=BIAS, output="y")
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.quantise_biases(model)
    bias = of_kind(model, "Conv").inputs[2].producer()
    integers, scale = constant(bias.inputs[0]), constant(bias.inputs[1])
    assert (integers.dtype, scale.dtype) == (np.int32, np.float32)
    np.testing.assert_allclose(scale, values["x_scale"] * values["w_scale"], rtol=1e-6)
    assert np.abs(integers * scale.astype(float) - values["bias"]).max() <= scale.max() / 2
    assert np.abs(run(model, images()) - expected).max() <= scale.max()


@pytest.mark.parametrize("scale", [1e-12, 1e-30])
def test_a_scale_too_small_for_its_bias_grows(scale):
    nodes, values = integer_conv(bias=BIAS, output="y")
    values["w_scale"][1] = scale
    model = model_of(nodes, values)
    expected = run(model, images())
    assert passes.fit_biases(model)
    np.testing.assert_allclose(run(model, images()), expected, atol=1e-3)  # float biases stay as they are
    assert not passes.fit_biases(model)
    assert passes.quantise_biases(model)
    conv = of_kind(model, "Conv")
    weight, bias = conv.inputs[1].producer(), conv.inputs[2].producer()
    np.testing.assert_array_equal(np.delete(constant(weight.inputs[0]), 1, 0), np.delete(values["w"], 1, 0))
    assert constant(weight.inputs[1])[1] > scale
    assert (constant(weight.inputs[0])[1] == 0).all()  # less than half a step of the new scale
    assert constant(bias.inputs[0])[1] == pytest.approx(-(2**30), rel=1e-5)
    got = run(model, images())
    np.testing.assert_allclose(got[:, 1], expected[:, 1], rtol=1e-5)
    assert np.abs(got - expected).max() <= 0.001


def test_biases_of_float_layers_stay():
    assert not passes.quantise_biases(model_of(*float_conv(True, output="y")))
