"""Terms of losses against loops."""

import math

import pytest
import torch

from qrobust.objectives import cross_entropy, margin, sar


def logits_and_labels(n=6, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, classes, generator=generator), torch.arange(n) % classes


def test_cross_entropy_against_a_loop():
    logits, y = logits_and_labels()
    rows = [math.log(sum(map(math.exp, row))) - row[k] for row, k in zip(logits.tolist(), y.tolist(), strict=True)]
    assert cross_entropy(logits, y).item() == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_margin_against_a_loop():
    logits, y = logits_and_labels()
    expected = [
        max(value for k, value in enumerate(row) if k != label) - row[label]
        for row, label in zip(logits.tolist(), y.tolist(), strict=True)
    ]
    torch.testing.assert_close(margin(logits, y), torch.tensor(expected))


def test_margin_is_positive_where_the_label_is_lost():
    logits, y = logits_and_labels(n=100)
    assert torch.equal(margin(logits, y) > 0, logits.argmax(1) != y)


def test_margin_has_a_gradient_at_two_logits():
    logits, y = logits_and_labels()
    logits.requires_grad_(True)
    (gradient,) = torch.autograd.grad(margin(logits, y).sum(), logits)
    assert torch.equal(gradient.gather(1, y[:, None]), -torch.ones(len(y), 1))
    assert torch.equal(gradient.sum(1), torch.zeros(len(y)))
    assert torch.equal(gradient.abs().sum(1), torch.full((len(y),), 2.0))


FORMS = pytest.mark.parametrize("form", ["batch", "sample"])
DISTANCES = pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])


@FORMS
@DISTANCES
def test_sar_is_zero_for_equal_logits_alone(form, distance):
    logits, _ = logits_and_labels()
    other, _ = logits_and_labels(seed=1)
    assert sar(logits, logits.clone(), form=form, distance=distance).item() == pytest.approx(0, abs=1e-6)
    assert sar(logits, other, form=form, distance=distance) > 0.1


@FORMS
@DISTANCES
def test_sar_has_gradients_on_both_sides(form, distance):
    clean, adversarial = (logits_and_labels(seed=seed)[0].requires_grad_(True) for seed in (0, 1))
    gradients = torch.autograd.grad(sar(clean, adversarial, form=form, distance=distance), (clean, adversarial))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_sar_is_by_default_the_published_code():
    clean, adversarial = (logits_and_labels(seed=seed)[0] for seed in (0, 1))
    difference = torch.fft.fft2(clean) - torch.fft.fft2(adversarial)
    expected = (difference.real.abs().mean() + difference.imag.abs().mean()) / 2
    torch.testing.assert_close(sar(clean, adversarial), expected)
