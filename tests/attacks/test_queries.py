"""Square asks for logits and nothing else."""

import numpy as np
import torch
from torch import nn

from qrobust.attacks import pgd, square
from qrobust.runtime import square_attack
from qrobust.threat import Threat

from .helpers import L2, LINF, batch, copy_of, digits, digits_net, is_unchanged, seeded, smooth_net


class Detached(nn.Module):
    """A network without gradients."""

    def __init__(self, model):
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x):
        self.asked.append(len(x))
        return self.model(x.detach()).detach()


def test_inside_the_ball():
    x, y = batch()
    x_adv = square(smooth_net(), x, y, threat=LINF, queries=30, generator=seeded())
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert LINF.distance(x_adv, x).max() <= LINF.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_it_breaks_what_gradients_cannot():
    _, (x, y) = digits()
    model, wide = Detached(digits_net()), Threat("linf", 0.15)
    lost = pgd(model, x, y, threat=wide, generator=seeded())
    found = square(model, x, y, threat=wide, queries=100, generator=seeded())
    by_gradient, by_queries = ((model(x_adv).argmax(1) == y).float().mean() for x_adv in (lost, found))
    assert by_queries < by_gradient - 0.3


def test_a_gradient_changes_nothing():
    x, y = batch()
    with_one, without = (
        square(model, x, y, threat=LINF, queries=20, generator=seeded())
        for model in (smooth_net(), Detached(smooth_net()))
    )
    assert torch.equal(with_one, without)


def test_never_more_queries_than_allowed():
    model, (x, y) = Detached(smooth_net().eval()), batch()
    y = model(x).argmax(1)
    model.asked.clear()
    square(model, x, y, threat=LINF, queries=7)
    assert len(model.asked) <= 1 + 7  # one look at the clean images


def test_what_is_wrong_already_stays():
    model, x = smooth_net().eval(), batch()[0]
    wrong = (model(x).argmax(1) + 1) % 3
    assert torch.equal(square(model, x, wrong, threat=LINF, queries=9), x)


def test_the_same_as_on_an_artifact():
    model, (x, y) = smooth_net().eval(), batch()
    seed = int(torch.randint(2**31, (1,), generator=seeded()))

    def logits(images: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(images)).detach().numpy()

    expected, _, _ = square_attack(logits, x.numpy(), y.numpy(), LINF.eps, 25, seed)
    found = square(model, x, y, threat=LINF, queries=25, generator=seeded())
    assert np.array_equal(found.numpy(), expected)


def test_the_generator_decides():
    model, (x, y) = smooth_net().eval(), batch()
    y = model(x).argmax(1)
    first, again, other = (square(model, x, y, threat=LINF, queries=5, generator=seeded(k)) for k in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_network_is_left_alone():
    model, (x, y) = smooth_net().train(), batch()
    before, images = copy_of(model), x.clone()
    square(model, x, y, threat=LINF, queries=3)
    assert is_unchanged(model, before)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(x, images)


def test_it_stays_in_the_l2_ball_and_breaks_what_noise_of_that_length_does_not():
    model, (x, y) = smooth_net(), batch()
    y = model(x).argmax(1)
    x_adv = square(model, x, y, threat=L2, queries=200, generator=torch.Generator().manual_seed(0))
    assert (x_adv - x).flatten(1).norm(dim=1).max() <= L2.eps * (1 + 1e-5)
    assert 0 <= x_adv.min() <= x_adv.max() <= 1
    noisy = L2.project(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), x)
    assert (model(x_adv).argmax(1) == y).sum() < (model(noisy).argmax(1) == y).sum()
