"""An attack leaves a network as it found it, also when it fails."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from qrobust.models.inference import Computing, computed_once, frozen

from ..attacks.helpers import smooth_net


class Scaled(nn.Module):
    """Computes a factor from its parameter, and counts how often."""

    computed = None

    def __init__(self):
        super().__init__()
        self.exponent, self.calls = nn.Parameter(torch.tensor(0.5)), 0

    def compute(self):
        self.calls += 1
        return self.exponent.exp()

    def forward(self, x):
        return x * (self.compute() if self.computed is None else self.computed)


class Doubled(nn.Module):
    """Counts how often a weight is computed."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return 2 * weight


def mixed_net():
    """A network in train mode, one layer of it in eval mode and another frozen."""
    model = nn.Sequential(*smooth_net(), Scaled())
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def state_of(model):
    modes = [module.training for module in model.modules()]
    return modes, [parameter.requires_grad for parameter in model.parameters()]


@pytest.mark.parametrize("training", [False, True])
def test_inside_one_mode_and_no_gradients(training):
    model = mixed_net()
    with frozen(model, training=training):
        modes, asking = state_of(model)
        assert set(modes) == {training}
        assert set(asking) == {False}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_all_is_restored(training, error):
    model = mixed_net()
    before = state_of(model)
    try:
        with frozen(model, training=training):
            assert model[-1].computed is not None
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert state_of(model) == before
    assert model[-1].computed is None


def test_one_inside_another():
    model = mixed_net()
    before = state_of(model)
    with frozen(model, training=True):
        inside = state_of(model)
        with frozen(model):
            pass
        assert state_of(model) == inside
    assert state_of(model) == before


def test_a_weight_is_computed_once():
    layer, doubled = nn.Linear(2, 2), Doubled()
    parametrize.register_parametrization(layer, "weight", doubled)
    x, before = torch.rand(1, 2), doubled.calls
    with frozen(layer):
        torch.testing.assert_close(layer(x), layer(x))
        assert doubled.calls == before + 1
    layer(x), layer(x)
    assert doubled.calls == before + 3


def test_a_new_weight_is_seen_by_the_next_attack():
    layer = nn.Linear(2, 2, bias=False)
    parametrize.register_parametrization(layer, "weight", Doubled())
    x = torch.rand(1, 2)
    with frozen(layer):
        layer(x)
    with torch.no_grad():
        layer.parametrizations.weight.original.fill_(1.0)
    with frozen(layer):
        torch.testing.assert_close(layer(x), 2 * x.sum().expand(1, 2))


def test_what_a_layer_computes_is_computed_once_and_anew_the_next_time():
    layer, x = Scaled(), torch.ones(1)
    for exponent in (0.5, 1.0):
        nn.init.constant_(layer.exponent, exponent)
        before = layer.calls
        with frozen(layer):
            for _ in range(2):
                torch.testing.assert_close(layer(x), layer.exponent.exp()[None])
        assert layer.calls == before + 1


def test_gradients_of_what_is_computed_once_pass_as_ever():
    layer = Scaled()
    with computed_once(layer):
        (layer(torch.ones(1)) + layer(torch.ones(1))).backward()
    torch.testing.assert_close(layer.exponent.grad, 2 * layer.exponent.exp().detach())
    assert layer.computed is None


def test_one_kind_alone_is_computed():
    layer = Scaled()
    with computed_once(layer, nn.Conv2d):
        assert layer.computed is None


def test_what_computes_is_recognised():
    assert isinstance(Scaled(), Computing)
    assert not isinstance(nn.Linear(1, 1), Computing)
