"""What a network costs, against numbers worked out by hand and by torch's own counter."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.quant import FAT, QuantConfig, bits_per_layer, fold_fat, quantize, quantizers
from qrobust.quant.costs import LayerCost, cost
from qrobust.quant.quantizer import fake_quantize
from qrobust.spectrum import fat_transform

from .helpers import Branched, Dense, Functional, Plain, Squeezed, images, input_bits, resnet

EXAMPLE = images(1)  # one image of one channel, 8 by 8
WEIGHTS = {"first": 6 * 9, "second": 8 * 6 * 9, "third": 8 * 8 * 9, "fc": 4 * 8}
MACS = {"first": 64 * 54, "second": 16 * 432, "third": 16 * 576, "fc": 32}  # a pool halves height and width
BIASES = 6 + 8 + 8 + 4


def plain(bits=None, **options):
    torch.manual_seed(0)
    model = Plain()
    return model if bits is None else quantize(model, QuantConfig(bits, **options), calibration=[images()])


def test_a_float_network_by_hand():
    found = cost(plain(), EXAMPLE)
    assert {name: layer.macs for name, layer in found.layers.items()} == MACS
    assert {name: layer.weights for name, layer in found.layers.items()} == WEIGHTS
    assert {(layer.weight_bits, layer.activation_bits) for layer in found.layers.values()} == {(32, 32)}
    assert found.size_bytes == 4 * (sum(WEIGHTS.values()) + BIASES)
    assert found.macs == sum(MACS.values())
    assert found.bops == 1024 * found.macs
    assert found.zero_share is None


@pytest.mark.parametrize(("per_channel", "weight_scales"), [(True, BIASES), (False, 4)])
def test_a_quantised_network_by_hand(per_channel, weight_scales):
    found = cost(plain(3, per_channel=per_channel), EXAMPLE)
    widths = {name: (layer.weight_bits, layer.activation_bits) for name, layer in found.layers.items()}
    assert widths == {"first": (8, 8), "second": (3, 3), "third": (3, 3), "fc": (8, 8)}
    assert found.macs == sum(MACS.values())
    assert found.bops == 64 * (MACS["first"] + MACS["fc"]) + 9 * (MACS["second"] + MACS["third"])
    assert found.scales == weight_scales + 5  # pixels, two activations, what the pool reads and what it gives
    assert found.size_bytes == 54 + 432 * 3 // 8 + 576 * 3 // 8 + 32 + 4 * (BIASES + found.scales)


def test_float_edges_count_32_bits():
    found = cost(plain(2, edge_layers="float"), EXAMPLE)
    widths = {name: (layer.weight_bits, layer.activation_bits) for name, layer in found.layers.items()}
    assert widths == {"first": (32, 32), "second": (2, 2), "third": (2, 2), "fc": (32, 32)}
    quantised = [found.layers["second"], found.layers["third"]]
    assert found.zero_share == sum(layer.zeros for layer in quantised) / (432 + 576)


def test_weights_and_activations_may_differ_in_width():
    found = cost(plain({"*": 4, "third": 2}, activation_bits={"*": 5, "second": 3}), EXAMPLE)
    widths = {name: (layer.weight_bits, layer.activation_bits) for name, layer in found.layers.items()}
    assert widths == {"first": (8, 8), "second": (4, 3), "third": (2, 5), "fc": (8, 8)}
    assert found.layers["third"].bops == 10 * MACS["third"]
    assert found.layers["third"].size_bytes == 576 // 4


@pytest.mark.parametrize("network", [Functional, Dense, Squeezed, Branched])
def test_widths_are_followed_through_every_reshaping(network):
    torch.manual_seed(0)
    model = quantize(network(), 3, calibration=[images()])
    found = cost(model, EXAMPLE)
    assert {name: layer.activation_bits for name, layer in found.layers.items()} == input_bits(model)
    assert {name: layer.weight_bits for name, layer in found.layers.items()} == bits_per_layer(model)
    assert found.macs == cost(network(), EXAMPLE).macs


def depthwise(relu=None):
    """Stride, groups and an odd number of weights; batch-norm behind a convolution and behind relu."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), relu or nn.ReLU(),
        nn.Conv2d(3, 3, 3, stride=2, padding=1, groups=3), relu or nn.ReLU(), nn.BatchNorm2d(3),
        nn.Flatten(), nn.Linear(48, 2, bias=False),
    )  # fmt: skip


def test_a_depthwise_convolution_by_hand():
    found = cost(quantize(depthwise(), 3, calibration=[images()]), EXAMPLE)
    assert found.layers["3"].macs == 16 * 3 * 9
    assert (found.layers["3"].weight_bits, found.layers["3"].activation_bits) == (3, 3)
    assert found.layers["3"].size_bytes == 11  # 27 weights of 3 bits
    assert found.layers["7"].macs == 48 * 2


def test_batch_norm_is_a_bias_where_it_folds_and_two_numbers_where_not():
    found = cost(depthwise(), EXAMPLE)
    assert (found.biases, found.scales) == (3 + 3 + 3, 3)
    assert found.size_bytes == 4 * (27 + 27 + 96 + 9 + 3)
    quantised = cost(quantize(depthwise(), QuantConfig(3, per_channel=False), calibration=[images()]), EXAMPLE)
    # Weights: one scale per channel of the folded convolution, one for each other layer. Activations: four.
    assert (quantised.biases, quantised.scales) == (9, 3 + 1 + 1 + 4 + 3)


def test_work_in_place_before_a_batch_norm_is_seen():
    assert cost(depthwise(nn.ReLU(inplace=True)), EXAMPLE) == cost(depthwise(), EXAMPLE)


@pytest.mark.parametrize("name", ["resnet8", "preactresnet18", "mobilenet_v2"])
def test_macs_are_half_of_what_torch_counts(name):
    model = build(name, in_channels=1, classes=10).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images(1, side=32))
    assert 2 * cost(model, images(1, side=32)).macs == counter.get_total_flops()


@pytest.mark.parametrize("fat", ["normalised", "none"])
def test_widths_change_no_multiplication_and_follow_the_layers(fat):
    found = cost(quantize(resnet(), QuantConfig(4, fat=fat), calibration=[images()]), EXAMPLE)
    assert found.macs == cost(resnet(), EXAMPLE).macs
    for name, layer in found.layers.items():
        assert (layer.weight_bits, layer.activation_bits) == ((8, 8) if name in ("conv", "fc") else (4, 4))
        assert layer.bops == layer.macs * layer.weight_bits * layer.activation_bits


def zeros(layer):
    weight = layer.weight.detach()
    if hasattr(layer, "parametrizations"):
        (fat,) = layer.parametrizations.weight
        weight = fat_transform(layer.parametrizations.weight.original, fat.mixing, fat.form)
    (quantizer,) = quantizers(layer)
    return int((fake_quantize(weight, quantizer.effective_clip(), quantizer.low, quantizer.high) == 0).sum())


def test_zeros_are_those_behind_fat_and_quantiser():
    model = quantize(resnet(), QuantConfig(2, fat="normalised"), calibration=[images()])
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FAT):
                module.mixing.add_(torch.randn(module.mixing.shape))
    found = cost(model, EXAMPLE)
    assert {name: layer.zeros for name, layer in found.layers.items()} == {
        name: zeros(model.get_submodule(name)) for name in found.layers
    }
    assert found.zero_share == sum(v.zeros for v in found.layers.values()) / sum(
        v.weights for v in found.layers.values()
    )
    assert 0.2 < found.zero_share < 0.8
    assert cost(fold_fat(copy.deepcopy(model)), EXAMPLE) == found


def test_the_batch_does_not_count():
    model = plain(3)
    assert cost(model, images(5)) == cost(model, EXAMPLE)


def test_the_network_stays_as_it_was():
    model = quantize(resnet(), 3, calibration=[images()]).train()
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    cost(model, EXAMPLE)
    assert model.training
    assert not model.bn.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(getattr(module, "computed", None) is None for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_is_written_is_json_and_holds_every_number():
    written = json.loads(json.dumps(cost(plain(3), EXAMPLE).to_dict()))
    assert {
        "size_bytes",
        "macs",
        "other_macs",
        "integer_share",
        "bops",
        "zero_share",
        "biases",
        "scales",
        "layers",
    } == set(written)
    expected = {
        "weight_bits": 3,
        "activation_bits": 3,
        "macs": MACS["second"],
        "bops": 9 * MACS["second"],
        "weights": 432,
    }
    assert expected.items() <= written["layers"]["second"].items()
    assert written["layers"]["second"]["zero_share"] == written["layers"]["second"]["zeros"] / 432


def test_steps_are_those_of_each_filter_s_grid():
    model = plain(4)
    scales = {name: next(quantizers(model.get_submodule(name))).scale() for name in ("first", "second")}
    found = cost(model, EXAMPLE).layers
    assert {name: found[name].steps for name in scales} == {
        name: (scale.min().item(), scale.max().item()) for name, scale in scales.items()
    }
    assert found["second"].steps[0] < found["second"].steps[1]
    assert {layer.steps for layer in cost(resnet(), EXAMPLE).layers.values()} == {None}


def test_a_layer_packs_its_weights_to_whole_bytes():
    sizes = [LayerCost(bits, 8, 0, weights, 0).size_bytes for bits, weights in ((2, 4), (2, 5), (3, 1), (32, 7))]
    assert sizes == [1, 2, 1, 28]


def test_a_quantised_network_inside_another_module_is_refused():
    with pytest.raises(ModelError, match=r"0\.first: expected an input from a quantiser, got none; pass the network"):
        cost(nn.Sequential(plain(3)), EXAMPLE)
