"""Averages against numpy, their statistics against the data's, and that they are kept."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from qrobust import devices, recipe
from qrobust.data import to_unit
from qrobust.spectrum import low_pass
from qrobust.train import fit, listeners, trainer
from qrobust.train import step as average_module
from qrobust.train.checkpoint import load_state, part, save_state
from qrobust.train.step import Average

from .helpers import are_equal, deeper, job, network, some_batch, some_data, weights_of

DATA = some_data()
EQUAL = {"average": {"start": 1}}
EXPONENTIAL = {"average": {"start": 1, "kind": "exponential", "decay": 0.8}}
LEADERS = {"average": {"start": 0, "kind": "exponential", "decay": 0.3, "warmup": True, "statistics": "copied"}}


def followed(settings, networks):
    average = Average(networks[0], settings)
    for model in networks:
        average.update_parameters(model)
    return average


def weight(model):
    return model[5].weight.detach().cpu().double().numpy()


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_equal_mean(k):
    networks = [network(seed=seed) for seed in range(k)]
    average = followed(recipe.Average(start=0), networks)
    np.testing.assert_allclose(weight(average.module), np.mean([weight(m) for m in networks], axis=0), atol=1e-6)
    assert int(average.n_averaged) == k


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_exponential_mean(k):
    """decay^(k-1)·w_1 + Σ (1 - decay)·decay^(k-i)·w_i."""
    networks, decay = [network(seed=seed) for seed in range(k)], 0.8
    average = followed(recipe.Average(kind="exponential", decay=decay, start=0), networks)
    shares = [decay ** (k - 1)] + [(1 - decay) * decay ** (k - i) for i in range(2, k + 1)]
    assert sum(shares) == pytest.approx(1)
    expected = sum(share * weight(model) for share, model in zip(shares, networks, strict=True))
    np.testing.assert_allclose(weight(average.module), expected, atol=1e-6)


def test_the_exponential_mean_with_warmup():
    """decay at step t is min(tau, (1 + t)/(10 + t)): a tenth of the start's weights is left by the first step."""
    networks, tau = [network(seed=seed) for seed in range(9)], 0.4
    average = Average(networks[0], recipe.Average(kind="exponential", decay=tau, warmup=True, start=0))
    average.begin(networks[0])
    expected = weight(networks[0])
    for t, model in enumerate(networks[1:]):
        average.update_parameters(model)
        decay = min(tau, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * weight(model)
        np.testing.assert_allclose(weight(average.module), expected, atol=1e-6)
    assert decay == tau  # reached within these steps, not from the first
    average = Average(networks[0].double(), recipe.Average(kind="exponential", warmup=True, start=0))
    average.begin(networks[0])
    average.update_parameters(networks[1].double())
    assert weight(average.module) == pytest.approx(weight(networks[0]) / 10 + weight(networks[1]) * 9 / 10)


def test_it_is_frozen_and_a_copy():
    model = network().train()
    average = Average(model, recipe.Average(start=0))
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert not any(module.training for module in average.module.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = weights_of(average.module)
    with torch.no_grad():
        model[0].weight.zero_()
    assert are_equal(weights_of(average.module), before)
    x, _ = some_batch()
    assert torch.equal(average(x), average.module(x))


def test_statistics_are_copied_not_averaged():
    first, second = network(), network()
    second(some_batch()[0])  # in train mode
    average = followed(recipe.Average(start=0), [first, second])
    assert torch.equal(average.module[1].running_mean, second[1].running_mean)
    assert torch.equal(average.module[1].num_batches_tracked, second[1].num_batches_tracked)


def test_it_begins_where_the_network_stands():
    average, other = Average(network(), recipe.Average()), network(seed=1)
    average.begin(other)
    assert are_equal(weights_of(average.module), weights_of(other))
    assert int(average.n_averaged) == 0


# Statistics anew


def test_estimated_statistics_are_those_of_the_data():
    """Over batches of one size: the mean of what the first convolution gives, and of the batches' variances."""
    average = followed(recipe.Average(start=0), [network(seed=1), network(seed=2)])
    batches = [some_batch(seed=seed)[0] for seed in range(3)]
    average.estimate(batches)
    seen = [average.module[0](x) for x in batches]
    norm = average.module[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert not any(module.training for module in average.module.modules())
    assert (norm.momentum, int(norm.num_batches_tracked)) == (0.1, 3)


def estimated_on(monkeypatch, folder, **settings):
    """The batches of every estimate in a training, and its state."""
    seen, original = [], Average.estimate

    def estimate(average, batches):
        seen.append(list(batches))
        original(average, seen[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Average, "estimate", estimate)
        return seen, fit(network(), DATA, job(folder, **settings))


def rows(x):
    """The distinct images of a batch, in an order that does not depend on theirs."""
    return x.flatten(1).unique(dim=0)


@pytest.mark.parametrize("width", [None, 3])
def test_plain_statistics_are_of_the_images_themselves(tmp_path, monkeypatch, width):
    """In another order than theirs, filtered where training filters; the best average is kept with these statistics."""
    schedule = {"average": {"start": 1, "statistics": "plain"}}
    seen, state = estimated_on(monkeypatch, tmp_path, method="natural", low_pass=width, schedule=schedule)
    x = to_unit(DATA.train.x, devices.device())
    expected = x if width is None else low_pass(x, width).clamp(0, 1)
    assert len(seen) == 3  # from the second epoch on
    for batches in seen:
        torch.testing.assert_close(rows(torch.cat(batches)), rows(expected))
        assert not torch.allclose(torch.cat(batches), expected)
    assert int(state.best_of("average")["1.num_batches_tracked"]) == 3


def test_statistics_are_usually_of_augmented_images(tmp_path, monkeypatch):
    """As the authors of averaging take them: cropped and flipped anew in every epoch."""
    seen, _ = estimated_on(monkeypatch, tmp_path, method="natural", schedule=EQUAL)
    again, _ = estimated_on(monkeypatch, tmp_path / "again", method="natural", schedule=EQUAL)
    first, second, _ = (torch.cat(batches) for batches in seen)
    plain = {tuple(row.tolist()) for row in to_unit(DATA.train.x, "cpu").flatten(1)}
    as_they_are = sum(tuple(row.tolist()) in plain for row in first.cpu().flatten(1))
    assert len(first) == len(DATA.train)
    assert as_they_are < len(first) / 2  # one crop of nine, one flip of two
    assert not torch.equal(rows(first), rows(second))
    assert torch.equal(first, torch.cat(again[0]))


def test_the_key_of_a_run_without_the_setting_is_what_it_was():
    usual, plain = recipe.Average(), recipe.Average(statistics="plain", kind="exponential", warmup=True)
    assert usual.model_dump() == {"kind": "equal", "decay": 0.999, "start": "first-drop", "deploy": False}
    assert plain.model_dump()["statistics"] == "plain"
    assert plain.model_dump()["warmup"] is True


def test_warmup_is_of_exponential_means():
    with pytest.raises(ValueError, match="expected kind = 'exponential' for warmup, got 'equal'; remove warmup"):
        recipe.Average(warmup=True)


# In training


def snapshots(monkeypatch, module, name, inspect):
    seen, original = [], getattr(module, name)

    def recording(first, *rest):
        result = original(first, *rest)
        seen.append(inspect(first, *rest))
        return result

    monkeypatch.setattr(module, name, recording)
    return seen


def test_the_equal_mean_of_a_training(tmp_path, monkeypatch):
    """Of the weights at the end of every epoch from the start on."""
    ends = snapshots(monkeypatch, trainer._Work, "_train", lambda work, *_: weights_of(work.model))
    fit(network(), DATA, job(tmp_path, schedule=EQUAL))
    last = load_state(tmp_path / "checkpoint" / "last.safetensors").tensors
    for name, _ in network().named_parameters():
        mean = np.mean([end[name].double().numpy() for end in ends[1:]], axis=0)
        np.testing.assert_allclose(last[f"average.module.{name}"].numpy(), mean, atol=1e-6)
    assert int(last["average.n_averaged"]) == 3


def test_the_exponential_mean_of_a_training(tmp_path, monkeypatch):
    """Of the weights after every step from the start on."""
    steps = snapshots(monkeypatch, Average, "update_parameters", lambda average, model: weights_of(model))
    fit(network(), DATA, job(tmp_path, schedule=EXPONENTIAL))
    assert len(steps) == 9
    last = load_state(tmp_path / "checkpoint" / "last.safetensors").tensors
    expected = steps[0]["0.weight"].double()
    for step in steps[1:]:
        expected = 0.8 * expected + 0.2 * step["0.weight"].double()
    torch.testing.assert_close(last["average.module.0.weight"].double(), expected, atol=1e-6, rtol=1e-5)
    assert int(last["average.n_averaged"]) == 9


def quantised():
    return deeper("normalised")


@pytest.mark.parametrize(("make", "data"), [(network, DATA), (quantised, some_data(validation=0))])
def test_the_leaders_average_of_a_training(tmp_path, monkeypatch, make, data):
    """From the start's weights on; statistics are the network's own; stopped and continued, it is the same to the bit;
    it is validated, and its best epoch is kept.
    """
    begun, tau = make(), 0.3
    start, schedule = weights_of(begun), LEADERS | {"epochs": 2, "milestones": [1]}
    steps = snapshots(monkeypatch, Average, "update_parameters", lambda average, model: weights_of(model))
    state = fit(copy.deepcopy(begun), data, job(tmp_path / "whole", schedule=schedule))
    last = load_state(tmp_path / "whole" / "checkpoint" / "last.safetensors").tensors
    parameters = dict(begun.named_parameters())
    for name in parameters:
        expected = start[name].double()
        for t, step in enumerate(steps):
            decay = min(tau, (1 + t) / (10 + t))
            expected = decay * expected + (1 - decay) * step[name].double()
        torch.testing.assert_close(last[f"average.module.{name}"].double(), expected, atol=1e-6, rtol=1e-5)
    for name in start.keys() - parameters.keys():
        assert torch.equal(last[f"average.module.{name}"], last[f"model.{name}"])
    if len(data.validation):
        found = [record["average_robust"] for record in state.history]
        assert state.best["average"]["average_robust"] == max(found)

    def stopping(*arguments):
        if (tmp_path / "cut" / "metrics.jsonl").exists():
            raise KeyboardInterrupt
        return write(*arguments)

    write = listeners.write_text
    with monkeypatch.context() as patch:
        patch.setattr(listeners, "write_text", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(copy.deepcopy(begun), data, job(tmp_path / "cut", schedule=schedule))
    fit(copy.deepcopy(begun), data, job(tmp_path / "cut", schedule=schedule))
    assert are_equal(load_state(tmp_path / "cut" / "checkpoint" / "last.safetensors").tensors, last)


def test_the_average_does_not_disturb_the_training(tmp_path):
    """Unless something is aligned to it: the network's own weights are the same bits."""
    found = []
    for name, schedule in {"none": {}, "equal": EQUAL, "exponential": EXPONENTIAL, "warmup": LEADERS}.items():
        model = network()
        fit(model, DATA, job(tmp_path / name, schedule=schedule))
        found.append(weights_of(model))
    assert all(are_equal(found[0], other) for other in found[1:])


def test_the_best_average_is_kept_apart(tmp_path, monkeypatch):
    """Best epochs differ; each is judged by its own accuracies, the average only from its start on."""
    robust = {"model": [0.1, 0.4, 0.2, 0.3], "average": [None, 0.2, 0.6, 0.5]}
    seen = {"model": [], "average": [None]}

    def accuracies(model, images, task):
        name = "model" if any(p.requires_grad for p in model.parameters()) else "average"
        seen[name].append(weights_of(model))
        return 0.9, robust[name][len(seen[name]) - 1]

    monkeypatch.setattr(trainer, "accuracies", accuracies)
    for model in (network(), network(seed=1)):  # trained, and taken from the checkpoint
        state = fit(model, DATA, job(tmp_path, schedule=EQUAL))
        assert {name: record["epoch"] for name, record in state.best.items()} == {"model": 2, "average": 3}
        assert are_equal(state.best_of("model"), seen["model"][1])
        assert are_equal(state.best_of("average"), seen["average"][2])
        assert are_equal(weights_of(model), seen["model"][1])
    assert "average_robust" not in state.history[0]
    assert state.history[2]["average_robust"] == 0.6


def test_without_a_validation_split_the_last_average_is_kept(tmp_path):
    state = fit(network(), some_data(validation=0), job(tmp_path, schedule=EQUAL))
    last = load_state(tmp_path / "checkpoint" / "last.safetensors")
    assert state.best["average"]["epoch"] == 4
    assert are_equal(state.best_of("average"), part(last.tensors, "average.module."))


def test_the_count_survives_a_checkpoint_of_an_older_version(tmp_path, monkeypatch):
    counts = snapshots(monkeypatch, Average, "update_parameters", lambda average, model: int(average.n_averaged))
    original, calls = listeners.write_text, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(listeners, "write_text", stopping)
        with pytest.raises(KeyboardInterrupt):
            fit(network(), DATA, job(tmp_path, schedule=EQUAL))
    path = tmp_path / "checkpoint" / "last.safetensors"
    state = load_state(path)
    old = {"average.n_averaged": "average.count"}  # names of version 0.1
    state.tensors = {
        old.get(name, name.replace("average.module.", "average.network.")): value
        for name, value in state.tensors.items()
    }
    save_state(path, state)
    fit(network(seed=1), DATA, job(tmp_path, schedule=EQUAL))
    assert counts == [1, 2, 3]


def test_what_is_aligned_to_an_average_is_aligned_to_a_trained_one(tmp_path, monkeypatch):
    """In its first epoch there is no mean yet: the weights at its start stand for it, not those of the beginning."""
    seen = []
    monkeypatch.setattr(
        average_module.Average,
        "forward",
        lambda average, x: seen.append(weights_of(average.module)) or average.module(x),
    )
    ends = snapshots(monkeypatch, trainer._Work, "_train", lambda work, *_: weights_of(work.model))
    fit(network(), DATA, job(tmp_path, schedule={**EQUAL, "sar": {"start": 1, "reference": "average"}}))
    assert len(seen) == 9
    for reference in seen[:3]:
        assert are_equal(reference, ends[0])
    for name, _ in network().named_parameters():
        assert torch.equal(seen[3][name], ends[1][name])


def test_a_network_without_batch_norm_averages_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    average = Average(model, recipe.Average(start=0))
    average.update_parameters(model)
    average.estimate([torch.rand(3, 1, 2, 2)])
    assert are_equal(weights_of(average.module), weights_of(model))
