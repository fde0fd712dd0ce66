"""Rounded biases, against steps worked out from the modules."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.quant import quantize, quantizers, round_biases

from .helpers import Plain, images, resnet

# Path of every layer → its batch-norm and where its input was quantised, read off the network by hand.
RESNET = {
    "conv": ("bn", "x_quant"),
    "layer1.0.conv1": ("layer1.0.bn1", "act"),
    "layer1.0.conv2": ("layer1.0.bn2", "layer1.0.act1"),
    "layer2.0.conv1": ("layer2.0.bn1", "layer1.0.act2"),
    "layer2.0.conv2": ("layer2.0.bn2", "layer2.0.act1"),
    "layer2.0.shortcut.0": ("layer2.0.shortcut.1", "layer1.0.act2"),
    "layer3.0.conv1": ("layer3.0.bn1", "layer2.0.act2"),
    "layer3.0.conv2": ("layer3.0.bn2", "layer3.0.act1"),
    "layer3.0.shortcut.0": ("layer3.0.shortcut.1", "layer2.0.act2"),
    "fc": (None, "pool_quant"),
}
PLAIN = {
    "first": (None, "x_quant"),
    "second": (None, "relu"),
    "third": (None, "relu_2"),
    "fc": (None, "average_quant"),
}


def scale_of(module):
    (quantizer,) = quantizers(module)
    return quantizer.effective_clip().detach().double().numpy().reshape(-1) / quantizer.high


def number(tensor):
    return tensor.detach().double().numpy()


def units(model, layer, norm, source):
    """The folded bias of a layer in steps of its accumulator."""
    module = model.get_submodule(layer)
    step = scale_of(model.get_submodule(source)) * scale_of(module)
    bias = 0 if module.bias is None else number(module.bias)
    if norm is None:
        return bias / step
    bn = model.get_submodule(norm)
    factor = number(bn.weight) / np.sqrt(number(bn.running_var) + bn.eps)
    return (number(bn.bias) + factor * (bias - number(bn.running_mean))) / (step * np.abs(factor))


def networks(bits):
    torch.manual_seed(0)
    plain = quantize(Plain(), bits, calibration=[images()]).eval()
    return [(quantize(resnet(), bits, calibration=[images()]).eval(), RESNET), (plain, PLAIN)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_bias_is_a_whole_number_of_steps(bits):
    for model, layers in networks(bits):
        before = {layer: units(model, layer, *rest) for layer, rest in layers.items()}
        largest = round_biases(model)
        assert 0 < largest <= 0.5
        changes = []
        for layer, rest in layers.items():
            after = units(model, layer, *rest)
            np.testing.assert_allclose(after, np.rint(after), atol=0.02 + 1e-6 * np.abs(after).max(), err_msg=layer)
            np.testing.assert_allclose(np.rint(after), np.rint(before[layer]), atol=1)
            changes.append(np.abs(before[layer] - np.rint(before[layer])).max())
        assert largest == pytest.approx(max(changes), abs=0.01)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_second_call_changes_nothing(bits):
    for model, _ in networks(bits):
        round_biases(model)
        before = copy.deepcopy(model.state_dict())
        assert round_biases(model) < 0.05
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_float_edges_are_left_alone():
    model = quantize(resnet(), 2, edge_layers="float", calibration=[images()]).eval()
    before = copy.deepcopy(model.state_dict())
    round_biases(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    norms = {f"{RESNET[layer][0]}.bias" for layer in RESNET if layer not in ("conv", "fc")}
    assert changed == norms


def test_a_channel_switched_off_keeps_its_bias():
    model = quantize(resnet(), 2, calibration=[images()]).eval()
    nn.init.zeros_(model.bn.weight)
    before = model.bn.bias.detach().clone()
    assert round_biases(model) <= 0.5
    assert torch.equal(model.bn.bias, before)


def test_outputs_hardly_change():
    model = quantize(resnet(), 8, calibration=[images()]).eval()
    before = model(images())
    round_biases(model)
    spread = (before - before.mean(0)).norm()
    assert 0 < (model(images()) - before).norm() < 0.05 * spread
    assert all(q.held is None for q in quantizers(model))
