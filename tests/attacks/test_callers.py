"""Attacks attack, whoever calls them, and whatever the network's gradient or number format is."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

from qrobust.attacks import PgdConfig, Scene, named, pgd
from qrobust.attacks.gradient import last_and_best
from qrobust.errors import ModelError
from qrobust.models.inference import frozen, input_gradient
from qrobust.objectives import margin
from qrobust.threat import Threat

from .helpers import L2, batch, seeded, smooth_net

LINF = Threat("linf", 0.1)
pytestmark = pytest.mark.usefixtures("few_steps")
WITH_GRADIENTS = (
    "fgsm", "bim-3", "pgd-3", "pgd-3x2:keep=best", "cw-inf-3", "tpgd-3", "cw-20:c=50:lr=0.05", "transfer-3", "apgd-ce",
    "apgd-t", "autoattack", "strong:budget=40",
)  # fmt: skip
ATTACKS = (*WITH_GRADIENTS, "gn", "square-20")
CALLERS = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


def network(classes=4):
    return smooth_net(classes=classes).eval()


def attacked(name, model, x, y, threat=LINF):
    """x_adv, the network's own labels standing for the true ones."""
    return named(name, threat).perturb(Scene(model, threat, float_model=model), x, y, seeded())


def labels(model, x):
    with torch.no_grad():
        return model(x).argmax(1)


@pytest.mark.parametrize("caller", CALLERS.values(), ids=CALLERS)
@pytest.mark.parametrize("name", ATTACKS)
def test_a_caller_without_gradients_gets_the_same(name, caller):
    model, (x, _) = network(), batch()
    y = labels(model, x)
    expected = attacked(name, model, x, y)
    with caller():
        found = attacked(name, model, x.clone(), y.clone())  # tensors of inference mode
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)
    assert not torch.equal(found, x)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_a_network_made_in_inference_mode_is_attacked(name):
    x, _ = batch()
    expected = attacked(name, network(), x, labels(network(), x))
    with torch.inference_mode():
        model = network()
    assert torch.equal(attacked(name, model, x, labels(model, x)), expected)
    assert all(value.is_inference() for value in (*model.parameters(), *model.buffers()))


def test_starts_of_inference_mode():
    model, (x, y) = network(), batch()
    with torch.inference_mode():
        start = x.clone()
    expected = pgd(model, x, y, threat=LINF, config=PgdConfig(steps=2), start=x)
    assert torch.equal(pgd(model, x, y, threat=LINF, config=PgdConfig(steps=2), start=start), expected)


class Rooted(nn.Module):
    """Finite logits, and a gradient that is NaN at every pixel below 0.02: √z at z < 0 behind torch.where."""

    def __init__(self, classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(108, classes)

    def forward(self, x):
        z = x.flatten(1) - 0.02
        return self.last(torch.where(z > 0, z.sqrt(), 0.0))


@pytest.mark.parametrize("threat", [Threat("linf", 0.3), Threat("l2", 2.0)], ids=lambda threat: threat.norm)
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_pixels_whose_gradient_is_no_number_do_not_stop_the_others(name, threat):
    model, (x, _) = Rooted(), batch()
    y = labels(model, x)
    found = attacked(name, model, x, y, threat)
    assert found.isfinite().all()
    assert margin(model(found), y).sum() > margin(model(x), y).sum()


def test_infinite_gradients_lead_too():
    x = torch.zeros(1, 2, requires_grad=True)
    gradient = input_gradient((x * torch.tensor([torch.inf, torch.nan])).sum(), x)
    assert gradient.isfinite().all()
    assert L2.direction(gradient).tolist() == [[1.0, 0.0]]


class Blind(nn.Module):
    """Cuts the way back."""

    def forward(self, x):
        return x.detach().flatten(1)[:, :4]


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_a_network_without_gradients_is_no_crash(name):
    x, y = batch()
    assert attacked(name, Blind(), x, y).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ATTACKS)
def test_networks_of_another_precision(name, dtype):
    model, x = network().to(dtype), batch()[0].to(dtype)
    y = labels(model, x)
    found = attacked(name, model, x, y)
    assert found.dtype == dtype
    assert found.isfinite().all()
    assert not torch.equal(found, x)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_start_outside_is_projected(keep):
    model, (x, y) = network(), batch()
    found = pgd(model, x, y, threat=LINF, config=PgdConfig(steps=2, keep=keep), start=1 - x)
    assert LINF.distance(found, x).max() <= LINF.eps + 1e-6


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_one_logit_is_refused(name):
    x, y = batch(classes=1)
    with pytest.raises(ModelError, match=r"two classes or more, got 1; return one a class: torch.cat\(\[torch.zeros"):
        attacked(name, network(classes=1), x, y)


def test_last_and_best_are_those_of_pgd():
    model, (x, y) = network(), batch()
    config = PgdConfig(steps=4, step_size=0.08, loss="margin")
    found = last_and_best(model, x, y, threat=LINF, config=config, generator=seeded())
    for keep, x_adv in zip(("last", "best"), found, strict=True):
        alone = pgd(model, x, y, threat=LINF, config=replace(config, keep=keep), generator=seeded())
        assert torch.equal(x_adv, alone)
    assert not torch.equal(*found)


class Switched(nn.Module):
    """One convolution with two batch-norms, of which an attribute, or a buffer, chooses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.main, self.other = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        nn.init.normal_(self.main.weight)
        nn.init.normal_(self.other.weight)
        self.attribute = False
        self.register_buffer("buffer", torch.tensor(False))

    def forward(self, x):
        norm = self.other if self.attribute or self.buffer else self.main
        return norm(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize("switch", ["attribute", "buffer"])
def test_the_network_is_attacked_as_it_is_now(switch):
    model, (x, _) = Switched().eval(), batch()
    for on in (False, True, False):
        setattr(model, switch, on if switch == "attribute" else torch.tensor(on))
        with torch.no_grad():
            expected = model(x)
        with frozen(model):
            torch.testing.assert_close(model(x), expected)


class Shared(nn.Module):
    """A convolution before a batch-norm, and once more inside a module that holds none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again = nn.Sequential(self.conv, nn.Tanh())
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        return self.again(self.norm(self.conv(x))).mean((2, 3))


@pytest.mark.parametrize("caller", [nullcontext, torch.inference_mode])
def test_a_shared_convolution_is_not_folded(caller):
    model, (x, _) = Shared().eval(), batch()
    with caller():
        expected = model(x)
        with frozen(model):
            assert torch.equal(model(x), expected)
