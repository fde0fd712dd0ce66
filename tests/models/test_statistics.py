"""Batch-norm statistics taken anew: plain means over what passes."""

import pytest
import torch
from torch import nn

from qrobust.models.inference import freeze_statistics, statistics_anew


def network(momentum=0.1):
    """Two batch-norms, with statistics of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, momentum=momentum), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    )
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.running_mean, 5)
        nn.init.uniform_(norm.running_var, 7, 9)
    return model


def batches(count=4, n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(n, 2, 3, 3, generator=generator) + number for number in range(count)]


def statistics_of(model):
    return [value.clone() for norm in (model[1], model[4]) for value in (norm.running_mean, norm.running_var)]


def test_they_are_means_over_the_batches():
    """All count alike, however many they are, and what was there before counts nothing."""
    model, data = network(), batches()
    with statistics_anew(model), torch.no_grad():
        for x in data:
            model(x)
    seen = [model[0](x).detach() for x in data]
    torch.testing.assert_close(model[1].running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert int(model[1].num_batches_tracked) == 4


def test_twice_gives_the_same():
    model, found = network(), []
    for _ in range(2):
        with statistics_anew(model), torch.no_grad():
            for x in batches():
                model(x)
        found.append(statistics_of(model))
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))


def test_the_order_does_not_matter():
    found = []
    for order in (1, -1):
        model = network()
        with statistics_anew(model), torch.no_grad():
            for x in batches()[::order]:
                model(x)
        found.append(statistics_of(model))
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_mode_and_momenta_are_left_as_they_were(training, error):
    model = network(momentum=0.3).train(training)
    try:
        with statistics_anew(model):
            assert all(module.training for module in model.modules())
            assert model[1].momentum is model[4].momentum is None
            if error:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    assert all(module.training == training for module in model.modules())


def test_statistics_move_as_before_afterwards():
    model = network(momentum=0.5)
    with statistics_anew(model), torch.no_grad():
        model(batches()[0])
    before, x = model[1].running_mean.clone(), batches(seed=1)[1]
    model.train()(x)
    expected = (before + model[0](x).detach().mean((0, 2, 3))) / 2
    torch.testing.assert_close(model[1].running_mean, expected)


def test_a_norm_that_keeps_no_statistics_is_no_trouble():
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2, affine=False))
    with statistics_anew(model), torch.no_grad():
        model(batches()[0])
    assert model[0].running_mean is None
    assert int(model[1].num_batches_tracked) == 1


def test_weights_stay():
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with statistics_anew(model), torch.no_grad():
        model(batches()[0])
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(3), (8, 3)), (nn.BatchNorm3d(3), (8, 3, 2, 2, 2))])
def test_every_kind_of_batch_norm_is_meant(norm, shape):
    x, model = 5 + torch.randn(shape, generator=torch.Generator().manual_seed(0)), nn.Sequential(norm)
    with statistics_anew(model), torch.no_grad():
        model(x)
    torch.testing.assert_close(norm.running_mean, x.transpose(0, 1).flatten(1).mean(1))
    freeze_statistics(model.train())
    assert not norm.training
