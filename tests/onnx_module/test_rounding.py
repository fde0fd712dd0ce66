"""Rounding forward, and each form backward against its formula."""

import math

import pytest
import torch

from qrobust.errors import ModelError
from qrobust.onnx_module.node import FORMS, MARGIN, Backward, Grid, on_grid

SCALE = 0.25
GRID = Grid(torch.tensor(SCALE), -3.0, 4.0)


def gradient(x, form, grid=GRID, values=True):
    x = x.clone().requires_grad_(True)
    weights = torch.arange(1.0, x.numel() + 1).view_as(x)
    (on_grid(x, grid, Backward(form), values=values) * weights).sum().backward()
    return x.grad / weights


def test_forward_rounds_half_to_even_and_saturates():
    x = torch.tensor([-9, -0.375, -0.125, 0.0, 0.125, 0.374, 0.375, 0.625, 1.0, 9])
    steps = on_grid(x, GRID, Backward(), values=False)
    assert steps.tolist() == [-3, -2, 0, 0, 0, 1, 2, 2, 4, 4]
    assert torch.equal(on_grid(x, GRID, Backward(), values=True), steps * SCALE)


@pytest.mark.parametrize("form", FORMS)
def test_forward_is_the_same_in_all_forms(form):
    x = torch.randn(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(on_grid(x, GRID, Backward(form), values=True), on_grid(x, GRID, Backward(), values=True))


def test_identity_passes_everything():
    assert gradient(torch.linspace(-9, 9, 50), "identity").eq(1).all()


def test_clipped_passes_the_range_and_its_ends_alone():
    x = torch.tensor([-0.76, -0.75, 0.1, 1.0, 1.01])
    assert gradient(x, "clipped").tolist() == [0, 1, 1, 1, 0]


def test_black_and_white_pixels_are_inside_whatever_float_makes_of_the_scale():
    for scale in (1 / 255, 0.003921568, 0.0039215689):
        grid = Grid(torch.tensor(scale), 0.0, 255.0)
        assert gradient(torch.tensor([0.0, 1.0]), "clipped", grid).tolist() == [1, 1]


def smooth(x):
    u = x / SCALE
    return SCALE * (u - 0.9 * torch.sin(2 * math.pi * u) / (2 * math.pi))


def test_soft_is_the_slope_of_a_smooth_staircase():
    x = torch.linspace(-0.74, 0.99, 101, dtype=torch.float64)
    h = 1e-6
    slope = (smooth(x + h) - smooth(x - h)) / (2 * h)
    torch.testing.assert_close(gradient(x, "soft"), slope, atol=1e-6, rtol=1e-6)
    assert gradient(torch.tensor([-0.8, 1.1]), "soft").eq(0).all()
    assert float(slope.max()) > 1.8
    assert float(slope.min()) < 0.2


@pytest.mark.parametrize("form", FORMS)
def test_integers_have_the_gradient_of_values_over_the_scale(form):
    x = torch.linspace(-2, 2, 41)
    torch.testing.assert_close(gradient(x, form, values=False), gradient(x, form) / SCALE)


@pytest.mark.parametrize("form", FORMS)
def test_channels_have_their_own_range(form):
    x = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) * 4 - 2
    scale, low = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([-3.0, -4.0, 0.0])
    grid = Grid(scale.view(1, 3, 1), low.view(1, 3, 1), torch.tensor(5.0))
    weights = torch.arange(1.0, x.numel() + 1).view_as(x)
    whole = gradient(x, form, grid) * weights
    for channel in range(3):
        one = Grid(scale[channel], float(low[channel]), 5.0)
        alone = gradient(x[:, channel], form, one)
        torch.testing.assert_close(whole[:, channel] / weights[:, channel], alone, atol=1e-5, rtol=1e-4)


def test_the_margin_is_far_below_a_step():
    assert 0 < MARGIN < 0.01


def test_a_form_that_is_none_is_told():
    with pytest.raises(ModelError, match="did you mean 'clipped'"):
        Backward().choose("cliped")
