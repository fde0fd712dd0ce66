"""Rounded biases, against steps worked out from the modules."""

import copy

import numpy as np
import pytest
import torch
from torch import fx, nn

from qrobust.quant import QuantConfig, calibrate, quantize, quantizers, round_biases
from qrobust.quant._brevitas import QuantConv2d, QuantIdentity
from qrobust.quant.layers import TIED, _averaged, avoid_ties, first_unrounded

from .helpers import Does, Plain, images, resnet

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


def calibrated(model, bits, **settings):
    """As training leaves it: clips placed, biases between steps."""
    model = quantize(model, QuantConfig(bits, **settings), calibration=None).eval()
    calibrate(model, [images()], estimate_statistics=True)
    return model


def networks(bits):
    torch.manual_seed(0)
    return [(calibrated(resnet(), bits), RESNET), (calibrated(Plain(), bits), PLAIN)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_bias_is_a_whole_number_of_steps(bits):
    for model, layers in networks(bits):
        avoid_ties(model)  # which moves the grids themselves
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
    model = calibrated(resnet(), 2, edge_layers="float")
    before = copy.deepcopy(model.state_dict())
    round_biases(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    norms = {f"{RESNET[layer][0]}.bias" for layer in RESNET if layer not in ("conv", "fc")}
    assert changed == norms


def test_a_channel_switched_off_keeps_its_bias():
    model = calibrated(resnet(), 2)
    nn.init.zeros_(model.bn.weight)
    before = model.bn.bias.detach().clone()
    assert round_biases(model) <= 0.5
    assert torch.equal(model.bn.bias, before)


def test_outputs_hardly_change():
    model = calibrated(resnet(), 8)
    before = model(images())
    round_biases(model)
    spread = (before - before.mean(0)).norm()
    assert 0 < (model(images()) - before).norm() < 0.05 * spread


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_quantize_returns_is_rounded_and_what_calibration_leaves_is_not(bits):
    """The first layer between steps is named; float32 holds biases of many steps only so well."""
    for model, layers in networks(bits):
        assert first_unrounded(model) == next(iter(layers))
        round_biases(model)
        assert first_unrounded(model) is None
    assert first_unrounded(quantize(resnet(), bits, calibration=[images()])) is None
    assert first_unrounded(resnet()) is None


def test_a_batch_norm_without_weights_gets_a_place_for_its_rounded_bias():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Conv2d(4, 2, 3))
    made = quantize(model.eval(), QuantConfig(8, fat="none"), calibration=[images()]).eval()
    assert first_unrounded(made) is None
    norm = made.get_submodule("1")
    assert (norm.bias != 0).any()
    assert not any(parameter.requires_grad for parameter in norm.parameters())
    assert model[1].bias is None
    torch.testing.assert_close(made(images()), model(images()), atol=0.02, rtol=0)


class Two(nn.Module):
    """A function of what relu leaves of two convolutions, and a classifier."""

    def __init__(self, function):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3)
        self.relu, self.other = nn.ReLU(), nn.ReLU()
        self.both = Does(lambda both: function(*both))
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.last(self.both((self.relu(self.one(x)), self.other(self.two(x))))).mean((2, 3))


# Of integers a and b with scales p and q, over the scale s behind: in the order that torch computes it, and another.
ARITHMETIC = {
    "sum": (lambda a, b: a + b, lambda a, b, p, q, s: a * (p / s) + b * (q / s)),
    "difference": (lambda a, b: a - b, lambda a, b, p, q, s: a * (p / s) - b * (q / s)),
    "product": (lambda a, b: a * b, lambda a, b, p, q, s: a * b * (p * q / s)),
}


def set_scale(model, path, scale):
    (quantizer,) = quantizers(model.get_submodule(path))
    with torch.no_grad():
        quantizer.clip.fill_(scale * quantizer.high)


def scale32(model, path):
    return np.float32(next(quantizers(model.get_submodule(path))).scale().item())


def rounded_otherwise(function, other, p, q, s):
    """Share of pairs of integers, small ones taken as more frequent, that the two orders round to other integers."""
    a, b = np.arange(256, dtype=np.float32)[:, None], np.arange(256, dtype=np.float32)
    one, two = (np.clip(np.rint(u), -128, 255) for u in (function(a * p, b * q) / s, other(a, b, p, q, s)))
    weight = 1 / ((1.0 + a) * (1.0 + b))
    return float((weight * (one != two)).sum() / weight.sum())


def behind(model, name):
    """Path of the quantiser that alone reads a function."""
    (node,) = (node for node in model.graph.nodes if node.name == name)
    (user,) = node.users
    return user.target


@pytest.mark.parametrize("kind", ARITHMETIC)
def test_a_scale_that_puts_a_frequent_pair_on_a_tie_is_moved_and_no_other(kind):
    function, other = ARITHMETIC[kind]
    torch.manual_seed(0)
    model = quantize(Two(function).eval(), QuantConfig(8, fat="none"), calibration=[images()])
    name = {"sum": "add", "difference": "sub", "product": "mul"}[kind]
    path = behind(model, name)
    found = []
    for p, q in ((0.0361949, 0.0570475), (0.0371, 0.0123), (0.0413, 0.0517)):
        set_scale(model, "relu", p), set_scale(model, "other", q), set_scale(model, path, function(15 * p, 3 * q) / 7.5)
        before = scale32(model, path)
        scales = [scale32(model, each) for each in ("relu", "other")]
        found.append(rounded_otherwise(function, other, *scales, before))
        assert set(avoid_ties(model)) == {path}
        after = scale32(model, path)
        assert [scale32(model, each) for each in ("relu", "other")] == scales
        assert rounded_otherwise(function, other, *scales, after) <= TIED
        assert 0.99 < after / before < 1.01
        assert avoid_ties(model) == {}
    assert max(found) > 10 * TIED


def test_a_pool_that_means_put_on_ties_gets_another_scale():
    """Means of four integers at their own scale: every fourth lies in the middle of two."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 2, 3)).eval()
    model = quantize(net, QuantConfig(8, fat="none"), calibration=[images()])
    path = behind(model, "_2")
    set_scale(model, path, float(scale32(model, "1")))
    assert avoid_ties(model).keys() == {path}
    means, scales = np.arange(4 * 256) / 4, (scale32(model, "1"), scale32(model, path))
    steps = means * float(scales[0]) / float(scales[1])
    assert np.abs(steps - np.floor(steps) - 0.5)[means > 0].min() > 1e-5


@pytest.mark.parametrize(
    ("pool", "count"),
    [
        (nn.AvgPool2d(2), 4),
        (nn.AvgPool2d((2, 3)), 6),
        (nn.AdaptiveAvgPool2d(2), 9),
        (Does(lambda x: x.mean((2, 3), keepdim=True)), 36),
        (Does(lambda x: x.mean(1, keepdim=True)), 4),
        (nn.AdaptiveAvgPool2d(4), 0),  # of windows that differ
        (nn.MaxPool2d(2), 0),
    ],
)
def test_how_many_numbers_a_pool_takes_the_mean_of(pool, count):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), pool, nn.LazyConv2d(2, 1)).eval()
    net(images())
    model = quantize(net, QuantConfig(8, fat="none"), calibration=[images()])
    modules = dict(model.named_modules())
    pools = (node for node in model.graph.nodes if node.name in ("_2", "mean"))
    assert [_averaged(node, modules) for node in pools] == [count]


def test_rounding_biases_avoids_ties_first():
    torch.manual_seed(0)
    model = quantize(Two(lambda a, b: a + b).eval(), QuantConfig(8, fat="none"), calibration=[images()])
    path = behind(model, "add")
    set_scale(model, path, float(15 * scale32(model, "relu") + 3 * scale32(model, "other")) / 7.5)
    round_biases(model)
    assert avoid_ties(model) == {}
    assert first_unrounded(model) is None


def test_graphs_with_brevitas_own_quantisers_are_left_alone():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (QuantIdentity(return_quant_tensor=False) for _ in range(2))
            self.layer = QuantConv2d(1, 2, 3, bias=True)

        def forward(self, x):
            return self.layer(self.two(self.one(x) + self.one(x)))

    class Whole(fx.Tracer):
        def is_leaf_module(self, module, path):
            return path != ""

    model = Own().eval()
    graph = fx.GraphModule(model, Whole().trace(model))
    before = copy.deepcopy(graph.state_dict())
    assert round_biases(graph) == 0
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())
