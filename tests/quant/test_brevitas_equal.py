"""Our layers beside Brevitas' stock ones with learned scales: the same numbers, and the same gradients where both
define them alike.

Two definitions differ. Brevitas clamps after rounding, so gradients stop half a step beyond the clip, and ours at the
clip: inputs in that half step are moved out of it. And the gradient to a weight passes ours unmasked while its clip's
does not; of Brevitas' two clamps one masks both and the other neither, so each is compared where it agrees.
"""

import pytest
import torch
from brevitas.core.function_wrapper import TensorClamp, TensorClampSte
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv2d, QuantIdentity
from brevitas.quant import (
    Int8ActPerTensorFloatMinMaxInit,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Uint8ActPerTensorFloatMaxInit,
)
from torch import nn
from torch.nn import functional as F

from qrobust.quant import quantizers
from qrobust.quant.layers import quantized_activation, quantized_conv
from qrobust.quant.quantizer import calibrating

WIDTHS = range(2, 9)
KINDS = {"unsigned": (False, False), "signed": (True, False), "signed, narrow": (True, True)}  # signed, narrow


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_conv():
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3, stride=2, padding=1)


def with_ties(x, quantizer):
    """x, every other number of it on a half step, where the way of rounding and the last bit decide."""
    half = quantizer.scale().detach() / 2
    return torch.where(torch.arange(x.numel()).view_as(x) % 2 == 0, (x / half).round() * half, x)


def clear(x, quantizer):
    """x without values in the half step beyond the clip; the moved ones lie far outside."""
    clip = quantizer.effective_clip().detach()
    u, step = x / clip, 1 / quantizer.high
    over = (u >= 1) & (u < 1 + step)
    under = (u <= quantizer.low * step) & (u > (quantizer.low - 1) * step)
    return x + clip * (over.float() - under.float())


def set_scale(layer, quantizer):
    """Brevitas' parameter, which is a threshold over an integer, so that its scale is ours to the bit."""
    steps = 2 ** (quantizer.bits - 1) if quantizer.low < -quantizer.high else quantizer.high
    clip = quantizer.effective_clip() if steps == quantizer.high else quantizer.scale() * steps
    parameter = layer.scaling_impl.value
    parameter.data = clip.detach().clone().view_as(parameter)
    return parameter, steps


def activations(bits, kind):
    """Ours and Brevitas', at the same clip."""
    signed, narrow = KINDS[kind]
    ours = quantized_activation(bits, signed=signed, inner=narrow)
    (quantizer,) = quantizers(ours)
    quantizer.clip.data.fill_(1.37)
    stock = QuantIdentity(
        act_quant=Int8ActPerTensorFloatMinMaxInit if signed else Uint8ActPerTensorFloatMaxInit,
        bit_width=bits, narrow_range=narrow, min_val=-1.0 if signed else 0.0, max_val=1.0,
    )  # fmt: skip
    return ours, quantizer, stock, *set_scale(stock.act_quant.fused_activation_quant_proxy.tensor_quant, quantizer)


def convolutions(bits, per_channel, clamp=TensorClamp):
    """Ours, calibrated, and Brevitas' with the same weights and clips."""
    conv = some_conv()
    ours = quantized_conv(conv, bits, per_channel=per_channel, inner=True, fat=None)
    (quantizer,) = quantizers(ours)
    with calibrating(ours):
        ours(normal(2, 4, 8, 8, seed=1))
    quantizer.clip.data.mul_(0.7)  # some weights beyond it, at 8 bits too
    stock = QuantConv2d(
        4, 6, 3, stride=2, padding=1, weight_bit_width=bits, weight_tensor_clamp_impl=clamp,
        weight_quant=Int8WeightPerChannelFloat if per_channel else Int8WeightPerTensorFloat,
        weight_scaling_impl_type=ScalingImplType.PARAMETER, weight_scaling_init=1.0,
    )  # fmt: skip
    weight = clear(conv.weight.detach(), quantizer)
    for layer in (ours, stock):
        layer.weight.data, layer.bias.data = weight.clone(), conv.bias.detach().clone()
    return ours, quantizer, stock, *set_scale(stock.weight_quant.tensor_quant, quantizer)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_activation_is_brevitas_own_with_its_gradients(bits, kind):
    ours, quantizer, stock, parameter, steps = activations(bits, kind)
    raw = 1.5 * normal(5000, seed=2)
    ties = with_ties(raw, quantizer)
    assert torch.equal(ours(ties), stock(ties))
    x, g = clear(raw, quantizer), normal(5000, seed=3)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    for layer, leaf in zip((ours, stock), inputs, strict=True):
        layer(leaf).backward(g)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-6, atol=0)  # theirs is scaled up and down
    assert torch.equal(inputs[0].grad == 0, inputs[1].grad == 0)
    assert 0.05 < (inputs[0].grad == 0).float().mean() < 0.95  # inside and outside
    # Each of ours is within 2^-12 of a step: 5000 of them, of either sign, within 60 of those.
    torch.testing.assert_close(quantizer.clip.grad * quantizer.high, parameter.grad * steps, rtol=1e-4, atol=0.015)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_convolution_is_brevitas_own(bits, per_channel):
    ours, quantizer, stock, *_ = convolutions(bits, per_channel)
    x = normal(3, 4, 8, 8, seed=2)
    for layer in (ours, stock):
        layer.weight.data = with_ties(layer.weight.data, quantizer)
    assert torch.equal(ours.compute()[0], stock.quant_weight().value)
    assert torch.equal(ours(x), stock(x))


def gradients(layer, scale):
    """Of the input, the weight and the clip."""
    x, g = normal(3, 4, 8, 8, seed=2).requires_grad_(), normal(3, 6, 4, 4, seed=3)
    layer(x).backward(g)
    return x.grad, layer.weight.grad, scale.grad


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_of_a_convolution_are_those_of_brevitas_clamps(bits, per_channel):
    """Input and weight as behind the clamp that passes all, the clip as behind the one that masks."""
    ours, quantizer, passing, parameter, _ = convolutions(bits, per_channel, TensorClampSte)
    dx, dweight, dclip = gradients(ours, quantizer.clip)
    stock_dx, stock_dweight, _ = gradients(passing, parameter)
    assert torch.equal(dx, stock_dx)
    torch.testing.assert_close(dweight, stock_dweight, rtol=1e-6, atol=0)
    _, quantizer, masking, parameter, _ = convolutions(bits, per_channel, TensorClamp)
    masked_dweight, masked_dclip = gradients(masking, parameter)[1:]
    assert 0.02 < (masked_dweight == 0).float().mean() < 0.9
    expected = masked_dclip.view_as(dclip) * quantizer.unit  # our parameter counts in standard deviations
    torch.testing.assert_close(dclip, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_of_a_convolution_are_those_of_the_formulas(bits, per_channel):
    """dw = g; dα = Σ g·(sign(u)·1[|u|>1] + (q - u)·1[|u|≤1]), u = w/α, with g of the quantised weight."""
    ours, quantizer, *_ = convolutions(bits, per_channel)
    _, dweight, dclip = gradients(ours, quantizer.clip)
    weight = ours.compute()[0].detach().requires_grad_()
    x, g = normal(3, 4, 8, 8, seed=2), normal(3, 6, 4, 4, seed=3)
    F.conv2d(x, weight, ours.bias, stride=2, padding=1).backward(g)
    clip, levels = quantizer.effective_clip().detach(), 2 ** (bits - 1) - 1
    u = ours.weight.detach() / clip
    q = (u * levels).round() / levels
    terms = weight.grad * torch.where(u.abs() > 1, u.sign(), q - u)
    assert torch.equal(dweight, weight.grad)
    torch.testing.assert_close(dclip, terms.sum_to_size(clip.shape) * quantizer.unit, rtol=1e-4, atol=1e-4)
