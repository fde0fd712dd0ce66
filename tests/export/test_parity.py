"""Differences counted in steps: none where the file is right, and the layer named where it is not."""

import copy
import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from qrobust.errors import ExportError
from qrobust.export.parity import LEVELS, Difference, Parity, judge, parity
from qrobust.export.target import load_target
from qrobust.export.write import lower
from qrobust.quant import quantize, quantizers, round_biases

from ..conftest import evidence
from ..quant.helpers import Plain, images
from .helpers import lowered, network, torch_logits

X = images(20, seed=5)
RUNTIMES = ("all", "disable", "reference")
QUANTISER = {"conv": "act", "layer2.0.conv2": "layer2_0_bn2_quant", "layer2.0.shortcut.0": "layer2_0_shortcut_1_quant"}
INPUTS = ("float32-nchw", "uint8-nhwc")


@functools.cache
def camera(bits=4, target="ort-cpu"):
    return lower(network(bits), X[:1], load_target(target), input="uint8-nhwc")


def changed(data, name, change):
    """The file with one initialiser changed."""
    proto = onnx.load_from_string(data)
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return proto.SerializeToString()


def with_one_integer_changed(layer):
    """To the other end of its range, in the filter of the largest scale: others may be next to nothing."""
    data = lowered(4, target="ort-cpu-int8")
    constants = {t.name: t for t in onnx.load_from_string(data).graph.initializer}
    filter = numpy_helper.to_array(constants[f"{layer}.weight.scale"]).argmax()

    def moved(array):
        array = array.copy()
        array[filter].flat[1] = -7 if array[filter].flat[1] > 0 else 7
        return array

    return changed(data, f"{layer}.weight", moved)


def one_scale(array):
    return (array * 1.2).astype(array.dtype)


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("target", ["ort-cpu", "ort-cpu-float", "tensorrt", "compact"])
def test_a_right_file_agrees_in_every_step(target, runtime, input):
    data = lowered(4, target=target) if input == INPUTS[0] else camera(4, target)
    found = parity(network(4), data, X if runtime == "all" else X[:4], runtime=runtime)
    assert (found.flips, found.share, found.first) == (0, 0, None)
    assert found.logits < 0.5
    assert len(found.layers) == len([q for q in quantizers(network(4)) if q.masked or q.fixed]) - (input != INPUTS[0])
    assert all(layer.elements and layer.largest == 0 for layer in found.layers)
    steps = {(q.bits, q.scale().item()) for q in quantizers(network(4)) if q.masked or q.fixed}
    assert {(layer.bits, layer.step) for layer in found.layers} <= steps
    assert len({layer.step for layer in found.layers}) > 5


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layer", ["conv", "layer2.0.conv2", "layer2.0.shortcut.0"])
def test_one_wrong_weight_is_found_and_its_layer_named(layer, runtime, forced):
    found = parity(network(4), with_one_integer_changed(layer), X[:4], runtime=runtime, forced=forced)
    assert found.first == QUANTISER[layer]
    wrong = [each.name for each in found.layers if each.share]
    assert (len(wrong) == 1) == forced  # unforced, all layers behind it differ too
    assert max(each.largest for each in found.layers) > 1


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_wrong_scale_is_found_and_its_layer_named(runtime, input):
    data = lowered(4) if input == INPUTS[0] else camera()
    found = parity(network(4), changed(data, "layer2.0.conv1.q.scale", one_scale), X[:4], runtime=runtime)
    assert found.first == "layer2.0.act1"
    assert found.share > 0.01


def test_a_wrong_classifier_shows_in_the_logits():
    data = changed(lowered(4, target="ort-cpu-int8"), "fc.bias", lambda bias: bias + np.int32([900] + [0] * 9))
    found = parity(network(4), data, X)
    assert found.first is None
    assert found.logits == pytest.approx(900 * accumulator_ratio(), rel=0.05)
    data = changed(lowered(4, target="ort-cpu-int8"), "fc.weight", lambda weight: -weight)
    assert parity(network(4), data, X).flips > 0.5


def accumulator_ratio():
    """Of the first class's step to the smallest, in which logits are told."""
    scale = next(quantizers(network(4).fc)).scale().detach().flatten()
    return float(scale[0] / scale.min())


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("input", INPUTS)
def test_a_float_network_has_no_steps(input, runtime):
    data = lowered(32) if input == INPUTS[0] else camera(32)
    found = parity(network(32), data, X, runtime=runtime)
    assert (found.flips, found.layers, found.share, found.first) == (0, (), 0, None)
    assert found.logits < 1e-4
    wrong = changed(data, "fc.bias", lambda bias: bias + np.float32(0.5))
    assert parity(network(32), wrong, X).logits == pytest.approx(0.5, rel=1e-3)


def test_forcing_stops_an_echo():
    """float16 moves 5 in 1000 elements of a layer, each by one step; unforced they add up, layer by layer."""
    data = lowered(4, target="ort-cuda")
    alone, echoing = (parity(network(4), data, X, forced=forced) for forced in (True, False))
    assert 0 < alone.share < 0.02 < 0.05 < echoing.share
    assert max(layer.largest for layer in alone.layers) == 1


def test_batches_and_their_size_do_not_matter():
    data = changed(lowered(4), "layer2.0.conv1.q.scale", one_scale)
    whole, parts = (parity(network(4), data, X, batch_size=size) for size in (100, 7))
    assert whole.layers == parts.layers
    assert (whole.flips, whole.n) == (parts.flips, 20)


def test_a_shared_relu_and_biases_without_batch_norm():
    torch.manual_seed(0)
    model = quantize(Plain(), 3, calibration=[images()]).eval()
    round_biases(model)
    found = parity(model, lower(model, X[:1], load_target("ort-cpu")), X)
    assert found.share < 1e-4
    assert len(found.layers) > 4


def test_counts_by_hand():
    found = Parity("all", 10, 0.1, 2.0, ())
    assert (found.first, found.share) == (None, 0)
    layers = [("a", 4, 0.5, 100, 0.0, 0), ("b", 4, 0.5, 300, 0.5, 3), ("c", 8, 0.1, 100, 1.0, 1)]
    found = Parity("all", 10, 0.1, 2.0, tuple(Difference(*layer) for layer in layers))
    assert (found.first, found.share) == ("b", 0.5)
    said = found.to_dict()
    assert (said["first"], said["share"], said["layers"][1]["largest"], said["n"]) == ("b", 0.5, 3, 10)


def test_the_network_is_left_as_it_was():
    model = copy.deepcopy(network(4))
    parity(model, lowered(4), X[:2])
    assert not any(q._forward_hooks for q in quantizers(model))
    torch.testing.assert_close(torch_logits(model, X), torch_logits(network(4), X), rtol=0, atol=0)


def test_refuses_another_networks_file_and_unknown_runtimes():
    with pytest.raises(ExportError, match=r"^expected 14 quantised activations in the file, got 0; export again"):
        parity(network(4), lowered(32), X[:2])
    with pytest.raises(ExportError, match=r"^expected 0 quantised activations in the file, got 14"):
        parity(network(32), lowered(4), X[:2])
    with pytest.raises(ExportError, match=rf"^expected a runtime out of {', '.join(LEVELS)}, reference.*got 'fast'"):
        parity(network(4), lowered(4), X[:2], runtime="fast")


def test_openvino_is_a_second_judge():
    evidence("openvino")
    found = parity(network(4), lowered(4, target="openvino"), X, runtime="openvino")
    assert found.share < 1e-3
    assert found.flips == 0


def test_networks_with_brevitas_own_quantisers_are_compared_too():
    from brevitas import nn as brevitas

    torch.manual_seed(0)
    model = nn.Sequential(
        brevitas.QuantIdentity(return_quant_tensor=True), brevitas.QuantConv2d(1, 4, 3),
        brevitas.QuantReLU(bit_width=4, return_quant_tensor=False), nn.Flatten(), nn.Linear(144, 5),
    )  # fmt: skip
    model(X)
    found = parity(model.eval(), lower(model, X[:1], load_target("compact")), X, forced=True)
    assert [(layer.module, layer.bits) for layer in found.layers] == [("0", 8), ("2", 4)]
    assert max(layer.largest for layer in found.layers) <= 1
    assert found.share < 1e-3


def test_a_plain_module_is_a_float_network():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2)).eval()
    found = parity(model, lower(model, X[:1], load_target("ort-cpu")), X)
    assert (found.layers, found.logits < 1e-5) == ((), True)


def of_steps(largest):
    """A file of 100 images, in one layer of which elements differ by so many steps."""
    layers = (Difference("a", 4, 0.1, 1000, 0.0, 0, "first"), Difference("b", 4, 0.1, 1000, 0.01, largest, "second"))
    return Parity("all", 100, 0.0, 0.0, layers)


@pytest.mark.parametrize(("target", "most"), [("ort-cpu", 1), ("ort-cuda", 16)])
def test_a_layer_may_miss_torch_s_integers_by_so_many_steps(target, most):
    whole = Parity("all", 100, 0.0, 0.0, ())
    for steps in (most, most + 1):
        verdict = judge(whole, of_steps(steps), load_target(target))[0]
        assert (verdict.name, verdict.measured, verdict.limit) == ("steps", steps, most)
        assert verdict.passed == (steps == most)
    assert verdict.reason == f"second differs from torch's by {most + 1} steps"


@pytest.mark.parametrize(("flips", "held"), [(0.01, True), (0.03, False)])
def test_labels_may_flip_as_the_target_says(flips, held):
    target = load_target("ort-cpu")
    verdicts = judge(Parity("all", 100, flips, 0.0, ()), of_steps(0), target)
    assert [verdict.name for verdict in verdicts if not verdict.passed] == ([] if held else ["label_flips"])
