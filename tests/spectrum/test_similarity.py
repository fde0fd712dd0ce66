"""Alignment against centring matrices written out, its invariances, and networks with hooks."""

import math

import pytest
import torch
from torch import nn

from qrobust.errors import DataError, ModelError
from qrobust.spectrum import Alignment, layer_names, linear_cka, network_cka
from qrobust.spectrum.similarity import gram


def some(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related(n=40, seed=0):
    """Two sets of activations that share a part."""
    x = some(n, 6, 2, 2, seed=seed)
    y = torch.cat([x.flatten(1)[:, :8], some(n, 9, seed=seed + 1)], dim=1)
    return 2 * x + 1, y


def hsic(x, y):
    """The U-statistic of its definition, term by term, with K and L that are not centred."""
    k, m = (z.double().flatten(1) @ z.double().flatten(1).T for z in (x, y))
    n, ones = len(k), torch.ones(len(k), dtype=torch.float64)
    for matrix in (k, m):
        matrix.fill_diagonal_(0)
    both = ones @ k @ m @ ones
    return ((k @ m).trace() + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (
        n * (n - 3)
    )


def biased(x, y):
    """‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖) of centred features (Kornblith et al.)."""
    x, y = (z.double().flatten(1) - z.double().flatten(1).mean(0) for z in (x, y))
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def by_batches(x, y, size):
    alignment = Alignment()
    for a, b in zip(x.split(size), y.split(size), strict=True):
        alignment.update([gram(a)], [gram(b)])
    return float(alignment.value())


def test_a_batch_is_the_definition():
    x, y = related()
    expected = hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()
    assert float(linear_cka(x, y)) == pytest.approx(float(expected), rel=1e-5)
    assert 0.1 < expected < 0.9


def test_batches_are_the_definition_summed():
    x, y = related()
    parts = list(zip(x.split(12), y.split(12), strict=True))  # the last has 4
    both, first, second = (sum(hsic(*p) for p in pairs) for pairs in (parts, [(a, a) for a, _ in parts],
                                                                      [(b, b) for _, b in parts]))  # fmt: skip
    assert by_batches(x, y, 12) == pytest.approx(float(both / (first * second).sqrt()), rel=1e-5)


@pytest.mark.parametrize("size", [pytest.param(4, marks=pytest.mark.slow), 8, 64])
def test_small_batches_give_what_all_images_give(size):
    """An estimate from batches of 4 is not shifted; a biased one would come out near 1."""
    x, y = related(n=16384)
    assert by_batches(x, y, size) == pytest.approx(float(biased(x, y)), abs=0.03)
    assert biased(x[:4], y[:4]) > biased(x, y) + 0.3


def test_the_biased_estimate_is_that_of_centred_features():
    """Of one batch the formula as first published; of several, its numerators and norms summed."""
    x, y = related()
    assert float(linear_cka(x, y, biased=True)) == pytest.approx(float(biased(x, y)), rel=1e-5)
    assert float(linear_cka(x, y)) < float(biased(x, y)) - 0.05
    n, centring = 20, torch.eye(20, dtype=torch.float64) - 1 / 20
    alignment, sums = Alignment(), [0.0, 0.0, 0.0]
    for a, b in zip(x.split(n), y.split(n), strict=True):
        alignment.update([gram(a)], [gram(b)])
        k, m = (centring @ z @ centring for z in (z.double().flatten(1) @ z.double().flatten(1).T for z in (a, b)))
        for index, (one, two) in enumerate(((k, m), (k, k), (m, m))):
            sums[index] += float((one @ two).trace()) / (n - 1) ** 2
    assert float(alignment.value(biased=True)) == pytest.approx(sums[0] / math.sqrt(sums[1] * sums[2]), rel=1e-5)


def test_the_same_activations_align_fully():
    x, _ = related()
    assert float(linear_cka(x, x)) == pytest.approx(1)
    assert by_batches(x, x, 8) == pytest.approx(1)


def test_rotation_scale_and_shift_change_nothing_but_a_stretch_does():
    x, y = related()
    rotation = torch.linalg.qr(some(24, 24, seed=5))[0]
    turned = 3 * x.flatten(1) @ rotation - 7
    assert float(linear_cka(turned, x)) == pytest.approx(1, abs=1e-5)
    assert float(linear_cka(turned, y)) == pytest.approx(float(linear_cka(x, y)), abs=1e-5)
    stretched = x.flatten(1) * torch.logspace(0, 2, 24)
    assert linear_cka(stretched, x) < 0.9


def test_independent_activations_do_not_align():
    assert abs(linear_cka(some(500, 20), some(500, 30, seed=9))) < 0.02


def test_a_layer_that_says_nothing_aligns_with_nothing():
    assert linear_cka(torch.ones(8, 5), some(8, 5)) == 0


def test_large_means_cost_no_precision():
    x, y = related()
    assert float(linear_cka(x + 1e3, y)) == pytest.approx(float(linear_cka(x, y)), abs=1e-3)


# networks


def some_net(width=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 5, 3), nn.Flatten(), nn.Linear(80, 4)
    ).eval()


IMAGES = torch.rand(26, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_layers_of_one_network():
    model = some_net()
    found = network_cka(model, model, IMAGES.split(8))  # the last batch has two: left out
    assert layer_names(model) == ["0", "2", "4"]
    assert found.shape == (3, 3)
    torch.testing.assert_close(found.diagonal(), torch.ones(3))
    torch.testing.assert_close(found, found.T)
    first, last = model[0](IMAGES[:24]).detach(), model(IMAGES[:24]).detach()
    assert float(found[0, 2]) == pytest.approx(by_batches(first, last, 8), abs=1e-5)


def test_two_different_networks_and_chosen_layers():
    first, second = some_net(), some_net(width=7, seed=1)
    found = network_cka(first, second, IMAGES.split(13), layers=(["0", "1"], ["4"]))
    expected = by_batches(first[:2](IMAGES).detach(), second(IMAGES).detach(), 13)
    assert found.shape == (2, 1)
    assert float(found[1, 0]) == pytest.approx(expected, abs=1e-5)
    assert not math.isclose(float(found[1, 0]), float(found[0, 0]))


def test_a_pass_a_network_and_batch_and_no_hook_left():
    model, passes, steps = some_net(), [], []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    network_cka(model, model, IMAGES.split(13), on_step=steps.append)
    handle.remove()
    assert len(passes) == 2
    assert steps == [13, 13]
    assert not any(module._forward_hooks for module in model.modules())


def test_bad_input_is_refused():
    model = some_net()
    with pytest.raises(DataError, match=r"^expected a batch of at least 4 images to compare on, got none"):
        network_cka(model, model, IMAGES.split(3))
    with pytest.raises(ModelError, match=r"^expected a layer, got '6'"):
        network_cka(model, model, [IMAGES], layers=(["6"], ["0"]))
    with pytest.raises(ModelError, match=r"^expected a network in eval mode"):
        network_cka(model, some_net().train(), [IMAGES])
    model.spare = nn.Linear(4, 4)
    model.forward = lambda x: model[4](model[3](model[2](model[0](x))))
    with pytest.raises(ModelError, match=r"^expected layers that run, got 'spare', which does not; leave it out$"):
        network_cka(model, model, [IMAGES])
