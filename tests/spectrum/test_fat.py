"""FAT against the transform written out with the full complex spectrum."""

import pytest
import torch

from qrobust.spectrum import FAT_FORMS, fat_mask, fat_transform
from qrobust.spectrum.fat import standardise

SHAPES = [(4, 3, 3, 3), (8, 16, 3, 3), (6, 4, 1, 1), (5, 2, 2, 2)]


def some_weight(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = 0.3 * torch.randn(shape, generator=generator) + 0.1
    return weight, torch.randn(shape[0], shape[0], generator=generator) / shape[0]


def explicit(weight, mixing, form):
    """DFT of every filter, mask from the whole spectrum, real part of the inverse; in double precision."""
    w = weight.double().numpy().reshape(len(weight), -1)
    w = torch.from_numpy((w - w.mean()) / w.std(ddof=1))
    spectrum = torch.fft.fft(w, dim=1)
    if form == "identity":
        mask = torch.ones(w.shape, dtype=torch.float64)
    elif form == "paper":
        mask = 1 / (1 + torch.exp(-(mixing.double() @ spectrum.abs())))
    else:
        half = spectrum[:, : w.shape[1] // 2 + 1].abs()
        mask = 2 / (1 + torch.exp(1 - mixing.double() @ (spectrum.abs() / half.mean())))
    back = torch.fft.ifft(spectrum * mask, dim=1)
    assert back.imag.abs().max() < 1e-10
    return back.real.view_as(weight)


@pytest.mark.parametrize("form", FAT_FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transform_equals_the_full_complex_calculation(shape, form):
    weight, mixing = some_weight(shape)
    transformed = fat_transform(weight, mixing, form)
    assert transformed.shape == weight.shape
    torch.testing.assert_close(transformed.double(), explicit(weight, mixing, form), rtol=1e-5, atol=1e-5)


def test_identity_is_standardisation():
    weight, mixing = some_weight((8, 16, 3, 3))
    transformed = fat_transform(weight, mixing, "identity")
    torch.testing.assert_close(transformed.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(transformed.std(), torch.tensor(1.0))
    torch.testing.assert_close(transformed, (weight - weight.mean()) / weight.std())


def test_standardisation_stops_the_gradient_of_mean_and_std():
    weight = some_weight((4, 3, 3, 3))[0].requires_grad_()
    standardise(weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 1 / weight.std().item()))


@pytest.mark.parametrize("form", FAT_FORMS)
def test_a_constant_weight_gives_zeros(form):
    transformed = fat_transform(torch.full((4, 2, 3, 3), 0.5), torch.full((4, 4), 0.25), form)
    assert (transformed == 0).all()


@pytest.mark.parametrize("form", FAT_FORMS)
def test_transform_ignores_scale_and_offset_of_the_weight(form):
    weight, mixing = some_weight((8, 16, 3, 3))
    expected = fat_transform(weight, mixing, form)
    torch.testing.assert_close(fat_transform(3 * weight - 1, mixing, form), expected, rtol=1e-4, atol=1e-4)


def starting_mask(form, channels=64, inputs=16):
    """The mask at the start of training on weights of unit variance, N = 9·inputs; and its gradient."""
    weight = torch.randn(channels, inputs, 3, 3, generator=torch.Generator().manual_seed(0))
    mixing = torch.full((channels, channels), 1 / channels, requires_grad=True)
    mask = fat_mask(torch.fft.rfft(standardise(weight).flatten(1), dim=1), mixing, form)
    gradient = torch.zeros(())
    if mask.requires_grad:
        (gradient,) = torch.autograd.grad(mask.sum(), mixing)
    return mask.detach(), gradient


def test_paper_mask_starts_as_the_identity():
    mask, _ = starting_mask("paper")  # N = 144
    assert mask.min() >= 0.9997
    mask, gradient = starting_mask("paper", inputs=512)
    assert (mask == 1).all()
    assert gradient.abs().max() == 0


def test_normalised_mask_starts_around_one_and_can_move():
    for inputs in (16, 512):
        mask, gradient = starting_mask("normalised", inputs=inputs)
        assert abs(mask.mean() - 1) < 0.05
        assert mask.min() < 1 < mask.max()
        assert gradient.abs().min() > 0


def test_identity_mask_has_no_gradient():
    mask, _ = starting_mask("identity")
    assert (mask == 1).all()
