"""Brevitas layers around our quantisers, and the folding of FAT."""

import copy
import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qrobust.models.inference import computed_once, frozen
from qrobust.quant import BITS, FAT, QuantConfig, Quantizer, fold_fat, quantize, quantizers
from qrobust.quant.layers import (
    QuantizedConv2d,
    quantized_activation,
    quantized_conv,
    quantized_linear,
)
from qrobust.quant.quantizer import calibrating, fake_quantize
from qrobust.spectrum import FAT_FORMS, fat, fat_transform
from qrobust.spectrum.fat import TransformedConv2d, transformed_conv

from .helpers import images, resnet

KINDS = QuantizedConv2d, TransformedConv2d  # of a quantised and of a float network
PAIRS = [
    pytest.param(form, bits, marks=[] if i % len(FAT_FORMS) == j and i < 4 else pytest.mark.slow)
    for j, form in enumerate(FAT_FORMS)
    for i, bits in enumerate(BITS)
]


def some_conv(bias=True, groups=1):
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=bias, groups=groups)


def some_inputs():
    return torch.rand(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def expected_weight(weight, layer):
    quantizer = next(m for m in quantizers(layer) if not m.masked)
    return fake_quantize(weight, quantizer.effective_clip(), quantizer.low, quantizer.high).detach()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("bias", "groups"), [(True, 1), (False, 2)])
def test_quantized_conv_is_a_convolution_with_quantised_weights(per_channel, bias, groups):
    conv = some_conv(bias, groups)
    layer = quantized_conv(conv, 3, per_channel=per_channel, inner=True, fat=None)
    with calibrating(layer):
        layer(some_inputs())
    weight = expected_weight(conv.weight, layer)
    expected = nn.functional.conv2d(some_inputs(), weight, conv.bias, stride=2, padding=1, groups=groups)
    torch.testing.assert_close(layer(some_inputs()), expected)
    (quantizer,) = quantizers(layer)
    assert quantizer.clip.numel() == (6 if per_channel else 1)


def test_quantized_linear_is_a_linear_layer_with_quantised_weights():
    torch.manual_seed(0)
    linear, x = nn.Linear(7, 3), torch.rand(5, 7)
    layer = quantized_linear(linear, 4, per_channel=True, inner=False)
    with calibrating(layer):
        layer(x)
    expected = nn.functional.linear(x, expected_weight(linear.weight, layer), linear.bias)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("form", FAT_FORMS)
def test_fat_stands_before_the_quantiser(form):
    conv = some_conv()
    layer = quantized_conv(conv, 3, per_channel=True, inner=True, fat=FAT(6, form))
    with calibrating(layer):
        layer(some_inputs())
    transformed = fat_transform(conv.weight, torch.full((6, 6), 1 / 6), form)
    expected = nn.functional.conv2d(some_inputs(), expected_weight(transformed, layer), conv.bias, 2, 1)
    torch.testing.assert_close(layer(some_inputs()), expected)


def test_rescale_gives_the_standard_deviation_back():
    weight = some_conv().weight.detach()
    plain, scaled = FAT(6, "paper")(weight), FAT(6, "paper", rescale=True)(weight)
    torch.testing.assert_close(scaled, plain * weight.std())


def test_unsigned_activation_is_relu_with_a_ceiling_and_signed_is_hardtanh():
    x = torch.linspace(-2, 2, 4001)
    step = 1 / 255
    unsigned = quantized_activation(8, signed=False)
    assert (unsigned(x) - x.clamp(0, 1)).abs().max() <= step / 2 + 1e-6
    signed = quantized_activation(8, signed=True, inner=True)
    assert (signed(x) - x.clamp(-1, 1)).abs().max() <= 0.5 / 127 + 1e-6


def test_loading_a_state_keeps_what_was_learned():
    model = quantize(resnet(), 3, calibration=[images()]).eval()
    fresh = quantize(resnet(seed=1), 3, calibration=[images(seed=1)]).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(images()), model(images()))


@pytest.mark.parametrize(("form", "bits"), PAIRS)
def test_folding_is_bit_equal_and_leaves_the_original_working(form, bits):
    model = quantize(resnet(), QuantConfig(bits, fat=form), calibration=[images(16)]).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, FAT):
                module.mixing.add_(0.1 * torch.randn(module.mixing.shape))
        expected = model(images())
        folded = fold_fat(copy.deepcopy(model))
        assert torch.equal(folded(images()), expected)
        assert torch.equal(model(images()), expected)
    assert not any(parametrize.is_parametrized(m) for m in folded.modules())
    assert sum(isinstance(m, FAT) for m in model.modules()) == 8  # 6 in blocks, 2 shortcuts
    model(images()).sum().backward()
    assert all(m.mixing.grad is not None for m in model.modules() if isinstance(m, FAT) and form != "identity")


@pytest.mark.parametrize(("bits", "form"), [*itertools.product((3, 32), FAT_FORMS[:2]), (3, "none")])
def test_weights_computed_first_change_no_gradient_and_computes_once(bits, form, monkeypatch):
    model, kind = quantize(resnet(), QuantConfig(bits, fat=form), calibration=[images(16)]).eval(), KINDS[bits == 32]

    def gradients():
        loss = model(images()).square().sum() + model(1 - images()).square().sum()
        return torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])

    expected, calls = gradients(), []
    compute = kind._weight
    monkeypatch.setattr(kind, "_weight", lambda layer: (calls.append(layer), compute(layer))[1])
    with computed_once(model, nn.Conv2d):
        found = gradients()
    convs = [module for module in model.modules() if isinstance(module, kind)]
    again = [conv for conv in convs if parametrize.is_parametrized(conv)]  # when gradients pass
    assert sorted(map(id, calls)) == sorted(map(id, convs + again))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert all(conv.computed is None for conv in convs)


@pytest.mark.parametrize("bits", [4, 32])
def test_what_fat_computes_on_its_way_is_not_kept(bits):
    """Between the passes a layer holds the weight that it convolves with, and no more."""
    layer, fat, kept = some_conv(), FAT(6, "normalised"), []
    if bits == 32:
        layer = transformed_conv(layer, fat)
    else:
        layer = quantized_conv(layer, bits, per_channel=True, inner=True, fat=fat)
        with calibrating(layer):
            layer(some_inputs())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        result = layer(some_inputs())
    fresh = [tensor for tensor in kept if tensor.shape == layer.weight.shape]
    assert len(fresh) == 1
    result.sum().backward()
    assert layer.parametrizations.weight[0].mixing.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", [4, 32])
def test_an_attack_computes_no_weight_again(bits, monkeypatch):
    model = quantize(resnet(), bits, calibration=[images(16)])
    monkeypatch.setattr(fat, "checkpoint", None)
    for training in (True, False):
        with frozen(model, training=training):
            model(images().requires_grad_()).sum().backward()


def test_attack_steps_fold_batch_norm_into_float_convolutions_behind_fat():
    model = quantize(resnet(), 32, calibration=[images(16)]).eval()
    expected, weights = model(images()), {name: conv.weight for name, conv in model.named_modules() if is_conv(conv)}
    with frozen(model):
        layers = map(model.get_submodule, weights)
        assert all(getattr(conv, "computed", None) or type(conv.weight) is torch.Tensor for conv in layers)
        torch.testing.assert_close(model(images()), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model(images()), expected)
    model(images()).sum().backward()
    assert all(m.mixing.grad is not None for m in model.modules() if isinstance(m, FAT))


def is_conv(module):
    return isinstance(module, nn.Conv2d)


@pytest.mark.parametrize("rescale", [True, False])
def test_fat_is_the_same_to_the_bit_under_autocast(rescale):
    weight, fat = some_conv().weight.detach(), FAT(6, "paper", rescale=rescale)
    expected, mask = fat(weight), fat.mask(weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fat(weight), expected)
        assert torch.equal(fat.mask(weight), mask)


def test_the_identity_asks_for_no_gradient():
    """Several processes would wait for it."""
    assert [FAT(6, form).mixing.requires_grad for form in FAT_FORMS] == [form != "identity" for form in FAT_FORMS]


def test_folding_a_float_network_changes_nothing():
    model = resnet()
    expected = model(images())
    assert torch.equal(fold_fat(model)(images()), expected)


def test_narrow_range_is_for_inner_layers():
    def lows(inner):
        return [m.low for m in quantized_activation(8, signed=True, inner=inner).modules() if isinstance(m, Quantizer)]

    assert (lows(True), lows(False)) == ([-127], [-128])


def test_brevitas_is_loaded_when_it_is_needed():
    program = "import sys, qrobust.runs.run; print('brevitas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr
