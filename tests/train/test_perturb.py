"""Weights are moved uphill by an exact length, and come back to the bit."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.models import build
from qrobust.quant import QuantConfig, latent_weights, quantize
from qrobust.quant.quantizer import quantizers
from qrobust.train import fit
from qrobust.train.step import fixed_statistics, perturbed

from .helpers import are_equal, job, network, some_batch, some_data, stepper, weights_of


def gradients_of(model, weights):
    x, y = some_batch()
    return torch.autograd.grad(F.cross_entropy(model(x), y), weights)


def lengths(after, before):
    return {name: float((after[name] - before[name]).norm()) for name in before if after[name].is_floating_point()}


@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_every_weight_moves_by_its_share_along_the_gradient(gamma):
    model = network().eval()
    weights = latent_weights(model)
    before = [weight.detach().clone() for weight in weights]
    gradients = gradients_of(model, weights)
    with perturbed(weights, gradients, gamma):
        for weight, old, gradient in zip(weights, before, gradients, strict=True):
            moved = weight.detach() - old
            assert float(moved.norm()) == pytest.approx(gamma * float(old.norm()), rel=1e-4)
            assert float(F.cosine_similarity(moved.flatten(), gradient.flatten(), dim=0)) == pytest.approx(1, abs=1e-5)


def test_only_weights_of_several_dimensions_are_latent():
    model = network()
    assert [id(weight) for weight in latent_weights(model)] == [id(model[0].weight), id(model[5].weight)]


def test_a_weight_without_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    with perturbed([weight], [torch.zeros(2, 2)], 0.5):
        assert torch.equal(weight.detach(), torch.ones(2, 2))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_weights_are_restored_to_the_bit(error):
    model = network().eval()
    before, weights = weights_of(model), latent_weights(model)
    gradients = gradients_of(model, weights)
    try:
        with perturbed(weights, gradients, 0.3):
            assert not are_equal(weights_of(model), before)
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert are_equal(weights_of(model), before)
    assert all(weight.requires_grad and weight.is_leaf for weight in weights)


def test_weights_are_restored_where_moving_them_fails():
    model = network().eval()
    before, weights = weights_of(model), latent_weights(model)
    with pytest.raises(ValueError, match="shorter"), perturbed(weights, gradients_of(model, weights)[:1], 0.3):
        pass
    assert are_equal(weights_of(model), before)


def test_the_loss_is_higher_at_the_moved_weights(tmp_path):
    model = network()
    fit(model, some_data(), job(tmp_path, method="natural", schedule={"lr": 0.3, "milestones": []}))
    (x, y), weights = some_batch(), latent_weights(model.eval())
    before, gradients = float(F.cross_entropy(model(x), y).detach()), gradients_of(model, weights)
    rises = []
    for gamma in (0.01, 0.03, 0.1):
        with perturbed(weights, gradients, gamma), torch.no_grad():
            rises.append(float(F.cross_entropy(model(x), y)) - before)
    assert 0 < rises[0] < rises[1] < rises[2]


# Batch-norm


def test_fixed_statistics_stay_and_normalise_by_the_batch():
    model, (x, _) = network().train(), some_batch()
    before = weights_of(model)
    with fixed_statistics(model):
        inside = model(x)
        assert are_equal(weights_of(model), before)
    outside = model(x)
    assert torch.equal(inside, outside)  # the batch's own statistics in both
    assert not are_equal(weights_of(model), before)


def test_statistics_follow_again_after_an_error():
    model = network()
    frozen = nn.BatchNorm2d(3, track_running_stats=False)
    model.append(frozen)
    with pytest.raises(RuntimeError), fixed_statistics(model):
        raise RuntimeError
    assert model[1].track_running_stats
    assert not frozen.track_running_stats


def test_a_step_with_perturbation_moves_statistics_once(tmp_path):
    """By the moved weights' pass, not by that for the direction."""
    model = network()
    task = job(tmp_path, schedule={"awp": {"gamma": 0.1}})
    stepper(model, task).step(model, *some_batch(), 0, torch.Generator().manual_seed(0))
    assert int(model[1].num_batches_tracked) == 1


def test_a_weight_that_nothing_uses_stays(tmp_path):
    model = network()
    model.spare = nn.Linear(3, 3)
    model.forward = nn.Sequential(*model[:-1]).forward
    before, steps = (
        weights_of(model),
        stepper(model, job(tmp_path, schedule={"awp": {"gamma": 0.1}, "weight_decay": 0})),
    )
    steps.step(model, *some_batch(), 0, torch.Generator().manual_seed(0))
    assert torch.equal(model.spare.weight, before["spare.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])


# Quantised networks


def quantised():
    torch.manual_seed(0)
    model = build("resnet8", in_channels=3, classes=3)
    return quantize(model, QuantConfig(4, fat="normalised"), calibration=[some_batch()[0]])


def test_of_a_quantised_network_latent_weights_move_alone():
    """Neither clips nor FAT's mixing, nor what batch-norm holds."""
    model = quantised().train()
    weights, before = latent_weights(model), weights_of(model)
    with fixed_statistics(model):
        gradients = gradients_of(model, weights)
    with perturbed(weights, gradients, 0.1):
        moves = lengths(weights_of(model), before)
    moved = {name for name, length in moves.items() if length}
    originals = {name for name, p in model.named_parameters() if any(p is weight for weight in weights)}
    assert moved == originals
    assert sum(name.endswith("parametrizations.weight.original") for name in moved) == 8  # all but the edge layers
    assert any(name.endswith("mixing") for name in set(moves) - moved)
    clips = {id(quantizer.clip) for quantizer in quantizers(model)}
    assert not clips & {id(weight) for weight in weights}
    assert all(moves[name] == pytest.approx(0.1 * float(before[name].norm()), rel=1e-3) for name in moved)
    assert are_equal(weights_of(model), before)


def test_training_of_a_quantised_network_with_all_of_it(tmp_path):
    """Its own copy averages; clips, mixing and weights all learn."""
    model = quantised()
    before = weights_of(model)
    # At a rate at which every clip moves by more than the last digit of a float32.
    schedule = {"epochs": 1, "milestones": [0], "lr": 0.5, "awp": {}, "sar": {"reference": "average"}, "average": {}}
    state = fit(model, some_data(), job(tmp_path, schedule=schedule))
    after = weights_of(model)
    parameters = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name in parameters if torch.equal(after[name], before[name])]
    assert are_equal(
        {name: state.best_of("average")[name] for name in parameters}, {name: after[name] for name in parameters}
    )
