"""Regularisers of weights against loops and closed forms."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.errors import ModelError
from qrobust.quant import QuantConfig, latent_weights, quantize
from qrobust.quant.training import kurtosis, latent, lipschitz

from .helpers import Plain, images, resnet

TERMS = pytest.mark.parametrize("term", [kurtosis, lipschitz])


def linear(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight)
    return layer


def network(dtype=torch.float64):
    """A convolution, a depthwise one, a wide and a tall linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(6, 3), nn.Linear(2, 5)]
    return nn.Sequential(*layers).to(dtype)


def weights_of(model):
    return [m.weight.detach().numpy() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


# target 0 leaves K², of which the root is K.
@pytest.mark.parametrize(
    ("quantiles", "expected"),
    [(lambda u: 3 * u - 1, 1.8), (lambda u: 5 + torch.special.ndtri(u) / 50, 3.0), (lambda u: (u > 0.5).double(), 1.0)],
    ids=["uniform", "normal", "two points"],
)
def test_kurtosis_of_known_distributions(quantiles, expected):
    weight = quantiles((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)
    assert kurtosis(linear(weight.view(100, -1)), target=0).sqrt().item() == pytest.approx(expected, rel=1e-3)


def test_kurtosis_against_a_loop():
    model, terms = network(), []
    for weight in weights_of(model):
        centred = weight - weight.mean()
        terms.append(((centred**4).mean() / (centred**2).mean() ** 2 - 1.8) ** 2)
    assert kurtosis(model).item() == pytest.approx(sum(terms) / 4)
    assert kurtosis(model, target=3).item() != pytest.approx(sum(terms) / 4)


def test_kurtosis_knows_neither_scale_nor_mean():
    model = network()
    before = kurtosis(model).item()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1e-12).add_(3e-12)
    assert kurtosis(model).item() == pytest.approx(before, rel=1e-6)


def test_kurtosis_of_equal_weights_has_no_gradient():
    layer = linear(torch.zeros(2, 3))
    (gradient,) = torch.autograd.grad(kurtosis(layer), layer.weight)
    assert torch.equal(gradient, torch.zeros(2, 3))


def test_lipschitz_against_a_loop():
    model = network()
    first, depthwise, wide, tall = (weight.reshape(len(weight), -1) for weight in weights_of(model))
    matrices = [first, wide, tall.T, *(row[None] for row in depthwise)]
    terms = [0.5 * np.linalg.norm(matrix @ matrix.T - np.eye(len(matrix))) ** 2 for matrix in matrices]
    assert lipschitz(model).item() == pytest.approx(sum(terms))


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_the_larger_gram_matrix_differs_by_a_constant(shape):
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    larger = weight @ weight.T if shape[0] > shape[1] else weight.T @ weight
    expected = (larger - torch.eye(8)).square().sum() / 2
    layer = linear(weight.detach())
    assert expected.item() - lipschitz(layer).item() == pytest.approx((8 - 3) / 2)
    (gradient,) = torch.autograd.grad(lipschitz(layer), layer.weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0])


def test_orthonormal_rows_cost_nothing_and_longer_ones_do():
    convolution = nn.Conv2d(3, 5, 3)
    nn.init.orthogonal_(convolution.weight)
    assert lipschitz(convolution).item() == pytest.approx(0, abs=1e-9)
    tall = nn.Linear(3, 7)
    nn.init.orthogonal_(tall.weight)
    assert lipschitz(tall).item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        tall.weight.mul_(2)
    assert lipschitz(tall).item() == pytest.approx(3 * (4 - 1) ** 2 / 2, rel=1e-5)


@TERMS
def test_gradients_are_those_of_differences(term):
    model = network()
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    values = tuple(model.get_parameter(name).detach().requires_grad_(True) for name in names)

    class Term(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return term(self.model)

    def of(*weights):
        replaced = {f"model.{name}": weight for name, weight in zip(names, weights, strict=True)}
        return torch.func.functional_call(Term(), replaced)

    assert torch.autograd.gradcheck(of, values)


@TERMS
def test_small_steps_lower_the_term(term):
    model = network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    values = []
    for _ in range(20):
        loss = term(model)
        values.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert all(after < before for before, after in itertools.pairwise(values))


@TERMS
@pytest.mark.parametrize("fat", ["normalised", "none"])
def test_gradients_of_a_quantised_network_reach_the_latent_weights_alone(term, fat):
    model = quantize(resnet(), QuantConfig(3, fat=fat), calibration=[images(8)])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    term(model).backward()
    reached = {id(p) for p in model.parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {id(p) for p in latent_weights(model)}
    assert all(p.grad is None for p in model.parameters() if id(p) not in reached)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@TERMS
def test_latent_weights_are_those_of_the_float_network(term):
    model = resnet()
    assert term(quantize(model, 2, calibration=[images(8)])).item() == pytest.approx(term(model).item())
    quantised = quantize(Plain(), 2, calibration=[images(8)])
    assert latent(quantised.second) is quantised.second.parametrizations.weight.original
    assert latent(quantised.fc) is quantised.fc.weight


@TERMS
def test_a_network_without_weights_is_refused(term):
    with pytest.raises(ModelError, match=r"expected a network with a convolution or a linear layer, got none"):
        term(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)))
