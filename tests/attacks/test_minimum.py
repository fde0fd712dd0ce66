"""The smallest perturbation, which on a linear network is known."""

import pytest
import torch

from qrobust.attacks import PgdConfig, cw, pgd
from qrobust.threat import Threat

from .helpers import L2, batch, copy_of, digits, digits_net, is_unchanged, linear_net, smooth_net


def centred(n=8, side=6):
    """Images away from black and white, and the labels that a linear network gives them."""
    model = linear_net(side)
    x = 0.35 + 0.3 * torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


def smallest(model, x):
    """Distance to the boundary of two classes, |z_0 - z_1| / ‖w_0 - w_1‖₂."""
    z, w = model(x).detach(), model[1].weight.detach()
    return (z[:, 0] - z[:, 1]).abs() / (w[0] - w[1]).norm()


def test_misclassified_or_untouched():
    model, (_, (x, y)) = digits_net(), digits()
    right = model(x).argmax(1) == y
    found = cw(model, x, y, steps=30, c=0.5, lr=0.05)
    wrong = model(found).argmax(1) != y
    untouched = (found == x).flatten(1).all(1)
    assert (wrong | untouched).all()
    assert not (wrong & untouched).any()
    assert untouched.any()
    assert (wrong & right).any()  # it breaks some, not only those that were wrong before
    assert (wrong | right).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


def test_what_is_wrong_already_does_not_move():
    model, x, y = centred()
    assert L2.distance(cw(model, x, 1 - y, steps=20), x).max() < 1e-4


def test_the_closed_form_on_a_linear_network_is_approached():
    model, x, y = centred()
    found = cw(model, x, y, steps=400, c=20.0, lr=0.002)
    ratio = L2.distance(found, x) / smallest(model, x)
    assert (model(found).argmax(1) != y).all()
    assert ratio.min() > 1 - 1e-4  # nothing is nearer
    assert ratio.max() < 1.05


def test_more_steps_come_nearer():
    model, x, y = centred()
    few, many = (L2.distance(cw(model, x, y, steps=steps, c=20.0, lr=0.01), x) for steps in (30, 300))
    assert (few > 0).all()
    assert (many <= few).all()
    assert many.mean() < few.mean()


def test_nearer_than_a_large_ball():
    model, x, y = centred()
    wide = pgd(model, x, y, threat=Threat("l2", 1.0), config=PgdConfig(step_size=0.25))
    found = cw(model, x, y, steps=200, c=20.0)
    assert (model(wide).argmax(1) != y).all()
    assert (model(found).argmax(1) != y).all()
    assert (L2.distance(found, x) < 0.7 * L2.distance(wide, x)).all()


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_kappa_is_the_margin_that_is_asked_for(kappa):
    """Between the boundary and the margin, distance alone decides at 0, and the loss pushes on with κ."""
    model, x, y = centred()
    last = []
    model.register_forward_hook(lambda module, args, output: last.append(output.detach()))
    cw(model, x, y, steps=300, c=50.0, kappa=kappa, lr=0.002)
    margins = (last[-1].gather(1, 1 - y[:, None]) - last[-1].gather(1, y[:, None]))[:, 0]
    assert margins.mean().item() == pytest.approx(kappa, abs=0.05)


def test_black_and_white_pixels_are_finite():
    model, (x, y) = smooth_net(), batch()
    assert (x == 0).any()
    assert (x == 1).any()
    assert torch.isfinite(cw(model, x.round(), y, c=100.0)).all()


def test_the_network_is_left_alone():
    model, (x, y) = smooth_net().train(), batch()
    before, images = copy_of(model), x.clone()
    cw(model, x, y, steps=3)
    assert is_unchanged(model, before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert torch.equal(x, images)


def test_no_image_knows_of_the_others():
    model, x, y = centred()
    together, alone = (cw(model, x[:k], y[:k], c=20.0) for k in (8, 1))
    assert L2.distance(alone, x[:1]) > 0
    torch.testing.assert_close(together[:1], alone)
