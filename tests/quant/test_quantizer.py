"""Grids, rounding, gradients and clips of the learned-clip quantisers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.quant import (
    STRAIGHT_THROUGH,
    LearnedClip,
    Quantizer,
    best_clip,
    quantizers,
    set_straight_through,
    straight_through,
)
from qrobust.quant.quantizer import (
    SMALLEST_CLIP,
    WEIGHT,
    QuantizerConfig,
    calibrating,
    fake_quantize,
    integer_range,
)

WIDTHS = range(2, 9)
KINDS = [(True, True), (True, False), (False, False)]  # signed, narrow


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weight_quantizer(bits=4, channels=None):
    return Quantizer(bits, WEIGHT, channels=channels)


def activation_quantizer(bits=4, signed=False, **settings):
    return Quantizer(bits, QuantizerConfig(signed, narrow=signed, masked=True, **settings))


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (2, True, True, (-1, 1)),
        (4, True, True, (-7, 7)),
        (8, True, True, (-127, 127)),
        (8, True, False, (-128, 127)),
        (2, False, False, (0, 3)),
        (8, False, False, (0, 255)),
    ],
)
def test_integer_range(bits, signed, narrow, expected):
    assert integer_range(bits, signed=signed, narrow=narrow) == expected


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("signed", "narrow"), KINDS)
def test_values_lie_on_the_grid_and_use_all_of_it(bits, signed, narrow):
    low, high = integer_range(bits, signed=signed, narrow=narrow)
    x = torch.linspace(-3, 3, 20_001)
    steps = (fake_quantize(x, torch.tensor(1.7), low, high).double() / (1.7 / high)).numpy()
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
    assert set(np.rint(steps).astype(int)) == set(range(low, high + 1))


def test_rounds_half_to_even():
    halves = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5])
    rounded = fake_quantize(halves, torch.tensor(7.0), -7, 7)
    assert rounded.tolist() == [-2, -2, 0, 0, 2, 2, 4]


def passed(u, inside, backward, high):
    """Share of the gradient that a backward pass lets through, at u = x/α."""
    if backward == "soft":
        return (1 - 0.9 * math.cos(2 * math.pi * u * high)) if inside else 0.0
    return 1.0 if inside else {"clipped": 0.0, "leaky": 0.1, "identity": 1.0}[backward]


def explicit_gradients(x, clips, g, low, high, backward):
    """The formulas of the docstring, number by number; clips holds one number per row of x."""
    dx, dclip = np.zeros_like(x), np.zeros(len(x))
    for row in range(len(x)):
        alpha = clips[row]
        for k in range(x.shape[1]):
            u = x[row, k] / alpha
            q = min(max(round(u * high), low), high) * alpha / high  # round() goes half to even
            inside = low / high <= u <= 1
            dx[row, k] = g[row, k] * passed(u, inside, backward, high)
            dclip[row] += g[row, k] * (q / alpha - u if inside else 1 if u > 1 else low / high)
    return dx, dclip


@pytest.mark.parametrize("backward", ["clipped", *STRAIGHT_THROUGH])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-7, 7), (-128, 127), (0, 3), (0, 15)])
def test_gradients_are_those_of_the_docstring(low, high, per_channel, backward):
    x, g = normal(3, 40).double().requires_grad_(), normal(3, 40, seed=1).double()
    clip = torch.tensor([[0.6], [1.1], [1.9]], dtype=torch.float64) if per_channel else torch.tensor(0.9).double()
    clip.requires_grad_()
    LearnedClip.apply(x, clip, low, high, backward).backward(g)
    rows = clip.detach().expand(3, 1).flatten().numpy() if per_channel else np.full(3, clip.item())
    dx, dclip = explicit_gradients(x.detach().numpy(), rows, g.numpy(), low, high, backward)
    np.testing.assert_allclose(x.grad.numpy(), dx)
    expected = dclip.reshape(3, 1) if per_channel else dclip.sum()
    kept_in_half = g.abs().sum().item() * 2**-12 / high if backward == "clipped" else 0
    np.testing.assert_allclose(clip.grad.numpy(), expected, rtol=1e-9, atol=kept_in_half)


@pytest.mark.parametrize("signed", [True, False])
def test_an_activation_keeps_half_of_its_memory_while_its_clip_is_trained(signed):
    x, quantizer = normal(1000).requires_grad_(), activation_quantizer(signed=signed)
    for trained, kind in ((True, torch.float16), (False, torch.float32)):
        quantizer.clip.requires_grad_(trained)
        kept = quantizer(x)[0].grad_fn.saved_tensors[0]
        assert kept.dtype == kind
        assert kept.shape == x.shape


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_gradients_may_pass_twice(kind):
    x, clip = normal(100).to(kind).requires_grad_(), torch.tensor(0.9, dtype=kind, requires_grad=True)
    value = LearnedClip.apply(x, clip, 0, 15, "clipped").sum()
    first, second = (torch.autograd.grad(value, (x, clip), retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_gradient_of_the_parameter_passes_unit_and_sign():
    quantizer, x = weight_quantizer(), normal(200)
    quantizer.unit.fill_(0.5)
    quantizer.clip.data.fill_(-1.2)
    quantizer(x)[0].sum().backward()
    _, dclip = explicit_gradients(x[None].double().numpy(), [0.6], np.ones((1, 200)), -7, 7, "identity")
    assert quantizer.clip.grad.item() == pytest.approx(-0.5 * dclip[0], rel=1e-4)


def test_a_clip_of_zero_gives_finite_numbers():
    quantizer = weight_quantizer()
    quantizer.clip.data.zero_()
    value, scale, *_ = quantizer(normal(10))
    assert torch.isfinite(value).all()
    assert scale > 0
    assert quantizer.effective_clip() == torch.tensor(SMALLEST_CLIP)


def squared_error(x, clip, low, high):
    steps = np.clip(np.rint(x / (clip / high)), low, high)
    return ((steps * clip / high - x) ** 2).mean()


@pytest.mark.parametrize(("low", "high"), [(-1, 1), (-7, 7), (-127, 127), (0, 3), (0, 15)])
def test_best_clip_is_the_minimum_of_its_grid(low, high):
    x = normal(3000)
    values = x.double().numpy()
    top = np.abs(values).max() if low < 0 else values.max()
    errors = [squared_error(values, top * k / 80, low, high) for k in range(1, 81)]
    got = squared_error(values, float(best_clip(x, low, high)), low, high)
    assert got == pytest.approx(min(errors), rel=1e-5)


def test_best_clip_beats_three_sigma_on_normal_weights():
    x = normal(20_000)
    best, three = float(best_clip(x, -1, 1)), 3 * float(x.std())
    values = x.double().numpy()
    assert squared_error(values, best, -1, 1) < 0.5 * squared_error(values, three, -1, 1)
    share = [float((fake_quantize(x, torch.tensor(c), -1, 1) == 0).float().mean()) for c in (best, three)]
    assert share[0] < 0.5 < 0.8 < share[1]


def test_best_clip_per_channel_is_that_of_every_channel():
    x = normal(4, 3, 3, 3) * torch.tensor([0.1, 1, 5, 20]).view(4, 1, 1, 1)
    clips = best_clip(x, -7, 7, per_channel=True)
    torch.testing.assert_close(clips, torch.stack([best_clip(row, -7, 7) for row in x]))


def test_best_clip_of_many_numbers_and_of_none_but_zeros():
    many = normal(2**19 + 1)
    assert float(best_clip(many, -7, 7)) == pytest.approx(float(best_clip(many[::2], -7, 7)), rel=0.1)
    assert 0 < float(best_clip(torch.zeros(10), 0, 15)) <= SMALLEST_CLIP


def test_calibrating_places_the_clip_at_the_mean_of_the_best():
    quantizer, batches = activation_quantizer(), [normal(500, seed=s, scale=1 + s).relu() for s in range(3)]
    with calibrating(quantizer):
        for batch in batches:
            quantizer(batch)
    expected = torch.stack([best_clip(batch, 0, 15) for batch in batches]).mean()
    torch.testing.assert_close(quantizer.effective_clip(), expected)
    quantizer(100 * batches[0])  # outside, nothing moves
    torch.testing.assert_close(quantizer.effective_clip(), expected)


@pytest.mark.parametrize("channels", [None, 4])
def test_a_weight_clip_counts_in_standard_deviations(channels):
    quantizer, weight = weight_quantizer(channels=channels), normal(4, 3, 3, 3, scale=0.02)
    with calibrating(quantizer):
        quantizer(weight)
    torch.testing.assert_close(quantizer.unit, weight.std())
    expected = best_clip(weight, -7, 7, per_channel=channels is not None)
    torch.testing.assert_close(quantizer.effective_clip().flatten(), expected.flatten())


def test_calibration_starts_at_most_at_the_ceiling():
    quantizer = activation_quantizer(8, signed=True, ceiling=1.0)
    with calibrating(quantizer):
        value = quantizer(normal(1000, scale=3))[0]
    assert quantizer.effective_clip().item() == pytest.approx(1)
    assert value.abs().max() <= 1 + 1e-6


def test_a_fixed_clip_never_moves():
    quantizer = activation_quantizer(8, fixed=True)
    with calibrating(quantizer):
        quantizer(100 * normal(50))
    assert quantizer.effective_clip() == 1
    assert not quantizer.clip.requires_grad
    pixels = torch.arange(256) / 255
    assert torch.equal((quantizer(pixels)[0] * 255).round(), torch.arange(256.0))
    torch.testing.assert_close(quantizer(pixels)[0], pixels)


def test_calibrating_ends_after_an_error():
    quantizer = activation_quantizer()

    def fail():
        with calibrating(quantizer):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert quantizer.observed is None


def test_set_bits_changes_range_and_width():
    quantizer = weight_quantizer(4)
    quantizer.set_bits(2)
    assert (quantizer.low, quantizer.high, float(quantizer.bit_width)) == (-1, 1, 2)


def test_quantizers_finds_all():
    model = nn.Sequential(weight_quantizer(), nn.Sequential(activation_quantizer()), nn.ReLU())
    assert list(quantizers(model)) == [model[0], model[1][0]]


def input_gradient(quantizer, x):
    x = x.clone().requires_grad_()
    quantizer(x)[0].sum().backward()
    return x.grad


@pytest.mark.parametrize("form", STRAIGHT_THROUGH)
@pytest.mark.parametrize("error", [None, RuntimeError])
def test_another_backward_pass_lasts_as_long_as_its_context(form, error):
    model = nn.ModuleList([activation_quantizer(signed=True), weight_quantizer()])
    x = normal(100)
    inside = x.abs() < 1
    before, values = input_gradient(model[0], x), model[0](x)[0].detach()
    try:
        with straight_through(model, form):
            share = torch.tensor([passed(float(u), abs(float(u)) < 1, form, model[0].high) for u in x])
            torch.testing.assert_close(input_gradient(model[0], x), share, rtol=1e-4, atol=1e-4)
            assert torch.equal(model[0](x)[0], values)  # only the way back is another
            assert torch.equal(input_gradient(model[1], x), torch.ones(100))
            if error:
                raise error
    except RuntimeError:
        assert error
    assert torch.equal(before, inside.float())
    assert torch.equal(input_gradient(model[0], x), before)


def test_an_unknown_backward_pass_is_refused():
    with pytest.raises(KeyError), straight_through(activation_quantizer(), "sign"):
        pass


@pytest.mark.parametrize("setting", ["clipped", "unclipped"])
def test_a_setting_of_training_lets_activations_gradients_pass_or_not(setting):
    """Outside the clip; values, gradients of the clip and weights are as they were."""
    model = nn.ModuleList([activation_quantizer(signed=True), weight_quantizer(), activation_quantizer(fixed=True)])
    x, values = normal(100), model[0](normal(100))[0].detach()
    set_straight_through(model, setting)
    outside = x.abs() > 1
    assert 20 < outside.sum() < 50
    expected = torch.ones(100) if setting == "unclipped" else (~outside).float()
    assert torch.equal(input_gradient(model[0], x), expected)
    assert torch.equal(input_gradient(model[1], x), torch.ones(100))
    assert torch.equal(model[0](x)[0], values)
    _, dclip = explicit_gradients(x[None].double().numpy(), [1.0], np.ones((1, 100)), -7, 7, "clipped")
    assert model[0].clip.grad.item() == pytest.approx(dclip[0], rel=1e-4)


def test_a_setting_of_training_can_be_taken_back():
    quantizer, x = activation_quantizer(), normal(100)
    before = input_gradient(quantizer, x)
    for setting in ("unclipped", "clipped"):
        set_straight_through(quantizer, setting)
    assert torch.equal(input_gradient(quantizer, x), before)


@pytest.mark.parametrize("form", STRAIGHT_THROUGH)
def test_a_check_gives_back_the_setting_of_training(form):
    quantizer, x = activation_quantizer(signed=True), normal(100)
    set_straight_through(quantizer, "unclipped")
    with straight_through(quantizer, form):
        assert torch.equal(input_gradient(quantizer, x), torch.ones(100)) == (form == "identity")
    assert torch.equal(input_gradient(quantizer, x), torch.ones(100))


@pytest.mark.parametrize("setting", ["identity", "leaky", "soft", "sign"])
def test_what_only_a_check_uses_is_no_setting_of_training(setting):
    quantizer = activation_quantizer()
    with pytest.raises(KeyError):
        set_straight_through(quantizer, setting)
    assert quantizer.backward == "clipped"
