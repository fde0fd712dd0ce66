"""The spectral distance against sums written out in numpy."""

import numpy as np
import pytest
import torch

from qrobust.objectives import ALIGNMENT_DISTANCES, ALIGNMENT_FORMS, spectral_distance

EVERY = [(form, distance) for form in ALIGNMENT_FORMS for distance in ALIGNMENT_DISTANCES]


def logits(n=6, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.randn(n, classes, generator=generator)


def cosine(a, b):
    a, b = np.concatenate([a.real, a.imag]), np.concatenate([b.real, b.imag])
    return 1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b))


def explicit_sample(first, second, distance):
    total = 0.0
    for a, b in zip(first.double().numpy(), second.double().numpy(), strict=True):
        f, g = np.fft.fft(a), np.fft.fft(b)
        d = f - g
        if distance == "cosine":
            total += cosine(f, g)
        elif distance == "l1":
            total += sum(abs(z.real) + abs(z.imag) for z in d)
        else:
            total += sum(z.real**2 + z.imag**2 for z in d)
    return total / len(first)


def explicit_batch(first, second, distance):
    f, g = np.fft.fft2(first.double().numpy()), np.fft.fft2(second.double().numpy())
    if distance == "cosine":
        return cosine(f.ravel(), g.ravel())
    d = (f - g).ravel()
    if distance == "l1":
        return (np.abs(d.real) + np.abs(d.imag)).sum() / (2 * d.size)
    return (d.real**2 + d.imag**2).sum() / (2 * d.size)


@pytest.mark.parametrize("distance", ALIGNMENT_DISTANCES)
def test_sample_form_is_the_sum_of_the_paper(distance):
    first, second = logits()
    got = spectral_distance(first, second, form="sample", distance=distance)
    assert got.shape == ()
    assert float(got) == pytest.approx(explicit_sample(first, second, distance), rel=1e-5)


@pytest.mark.parametrize("distance", ALIGNMENT_DISTANCES)
def test_batch_form_is_the_published_code(distance):
    first, second = logits()
    got = spectral_distance(first, second, form="batch", distance=distance)
    assert float(got) == pytest.approx(explicit_batch(first, second, distance), rel=1e-5)


@pytest.mark.parametrize(("form", "distance"), EVERY)
def test_zero_for_equal_logits_and_symmetric(form, distance):
    first, second = logits()
    assert abs(spectral_distance(first, first, form=form, distance=distance)) < 1e-6
    there = spectral_distance(first, second, form=form, distance=distance)
    back = spectral_distance(second, first, form=form, distance=distance)
    torch.testing.assert_close(there, back)
    assert there > 0.01


@pytest.mark.parametrize(("form", "distance"), EVERY)
def test_gradient_reaches_both(form, distance):
    first, second = (z.requires_grad_() for z in logits())
    spectral_distance(first, second, form=form, distance=distance).backward()
    assert first.grad.abs().sum() > 0
    assert second.grad.abs().sum() > 0


def test_batch_form_grows_with_the_batch_and_sample_form_does_not():
    small, large = logits(n=32), logits(n=512)
    ratio = spectral_distance(*large, form="batch") / spectral_distance(*small, form="batch")
    assert float(ratio) == pytest.approx(4, rel=0.1)  # √(512 / 32)
    ratio = spectral_distance(*large, form="sample") / spectral_distance(*small, form="sample")
    assert float(ratio) == pytest.approx(1, rel=0.1)


def test_half_precision_is_computed_in_single():
    first, second = logits()
    got = spectral_distance(first.bfloat16(), second.bfloat16())
    assert got.dtype == torch.float32
