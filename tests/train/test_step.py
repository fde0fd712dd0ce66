"""One step: in which order things happen, and when."""

import collections
import copy

import pytest
import torch
from torch import nn

from qrobust.data import MIXES
from qrobust.quant import QuantConfig, kurtosis, lipschitz, quantize, quantizers
from qrobust.recipe import Average as Settings
from qrobust.recipe import Schedule
from qrobust.spectrum import low_pass
from qrobust.train import learning_rate, trainer
from qrobust.train import step as step_module
from qrobust.train.step import Average, Stepper

from .helpers import are_equal, distilling, job, network, some_batch, some_data, stepper, vit, weights_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def stepped(task, *, epoch=0, average=None, model=None):
    """The weights after one step, and what was counted."""
    model = model or network()
    counted = stepper(model, task, average).step(model, *some_batch(), epoch, seeded())
    return weights_of(model), counted


# Passes in train mode: for the loss, and in AWP for its direction.
PASSES = {
    "natural": ({"method": "natural"}, {}, 1),
    "at": ({}, {}, 1),
    "at, sar": ({}, {"sar": {"start": 0}}, 2),
    "at, sarwa": ({}, {"sar": {"start": 0, "reference": "average"}, "average": {"start": 0}}, 1),
    "trades": ({"method": "trades"}, {}, 2),
    "trades, sar": ({"method": "trades"}, {"sar": {"start": 0}}, 2),
    "mart, sar": ({"method": "mart"}, {"sar": {"start": 0}}, 2),
    "trades, sar, awp": ({"method": "trades"}, {"sar": {"start": 0}, "awp": {}}, 4),
    "trades, sar and awp to come": ({"method": "trades"}, {"sar": {"start": 1}, "awp": {"start": 1}}, 2),
}


@pytest.mark.parametrize(("training", "schedule", "passes"), PASSES.values(), ids=PASSES)
def test_every_view_is_passed_once(tmp_path, training, schedule, passes):
    task, model, seen = job(tmp_path, schedule=schedule, **training), network(), []
    model.register_forward_hook(lambda module, args, output: seen.append(module.training))
    average = Average(model, Settings()) if "average" in schedule else None
    if average is not None:
        average.module._forward_hooks.clear()
    stepped(task, model=model, average=average)
    assert sum(seen) == passes


def test_what_is_counted(tmp_path):
    task, model, (x, y) = job(tmp_path, method="natural"), network().train(), some_batch()
    with torch.no_grad():
        logits = network().train()(x)
    losses, right, seen = stepped(task, model=model)[1].tolist()
    assert losses == pytest.approx(12 * float(torch.nn.functional.cross_entropy(logits, y)), rel=1e-5)
    assert (right, seen) == (int((logits.argmax(1) == y).sum()), 12)


def test_a_step_is_that_of_sgd(tmp_path):
    model, (x, y), before = network().train(), some_batch(), weights_of(network())
    torch.nn.functional.cross_entropy(model(x), y).backward()
    after, _ = stepped(job(tmp_path, method="natural"))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(after[name], before[name] - 0.05 * parameter.grad.cpu(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize(("training", "schedule", "passes"), PASSES.values(), ids=PASSES)
def test_every_method_trains_a_transformer(tmp_path, training, schedule, passes):
    """Every parameter moves, by AdamW, and its counts are finite."""
    task, model = job(tmp_path, schedule={"optimizer": "adamw", "lr": 0.01} | schedule, **training), vit()
    average = Average(model, Settings()) if "average" in schedule else None
    optimizer = trainer.optimizer(model, task.schedule)
    before = weights_of(model)
    counted = Stepper(model, optimizer, average, task, 3).step(model, *some_batch(), 0, seeded())
    assert counted.isfinite().all()
    assert [name for name, value in weights_of(model).items() if torch.equal(value, before[name])] == []


@pytest.fixture(scope="module")
def quantised_vit():
    return quantize(vit(), QuantConfig(4, fat="none"), calibration=[some_batch()[0]])


@pytest.mark.parametrize(("method", "schedule"), [("trades", {"sar": {"start": 0}}), ("rslad", {"awp": {}})])
def test_a_quantised_transformer_computes_its_weights_once_for_all_passes(tmp_path, quantised_vit, method, schedule):
    """For the attack's three steps, for both views of the loss, and for the direction of the weights' perturbation."""
    model = copy.deepcopy(quantised_vit)
    attack = {"attack": {"steps": 3}}
    task = distilling(job(tmp_path, schedule={"optimizer": "adamw", "lr": 0.01, **schedule}), method, **attack)
    before, passes = weights_of(model), collections.Counter()
    weights = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    for layer in weights:
        next(quantizers(layer)).register_forward_hook(lambda module, *_: passes.update([module]))
    optimizer = trainer.optimizer(model, task.schedule)
    teacher = vit() if method == "rslad" else None
    counted = Stepper(model, optimizer, None, task, 3, teacher).step(model, *some_batch(), 0, seeded())
    assert counted.isfinite().all()
    assert list(passes.values()) == [3 if schedule.get("awp") is not None else 2] * len(weights)
    trained = {name: p.detach().cpu() for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, value in trained.items() if torch.equal(value, before[name])] == []


@pytest.mark.parametrize("attack", [{"step_size": 4 / 255}, {"kind": "n-fgsm"}, {"kind": "fgsm-rs"}])
def test_eps_and_step_rise_with_the_epochs_of_a_warm_up(tmp_path, attack):
    """In a third of the way every pixel moves by a third as far, from a third of the same start."""
    task = job(tmp_path, attack={"steps": 1, "warmup": 2, **attack})
    x, y = some_batch()
    x = x / 2 + 0.25  # nothing is cut
    moved = [stepper(network(), task).prepare(x, y, epoch, seeded()).x_adv - x for epoch in range(4)]
    assert moved[3].equal(moved[2])
    for epoch in (0, 1):
        assert float((moved[epoch] / moved[2]).median()) == pytest.approx((epoch + 1) / 3, rel=1e-3)
    assert float(moved[0].abs().max()) == pytest.approx(float(moved[2].abs().max()) / 3, rel=1e-3)


def test_gradients_are_clipped_together(tmp_path):
    before = weights_of(network())
    free, _ = stepped(job(tmp_path, method="natural"))
    clipped, _ = stepped(job(tmp_path, method="natural", schedule={"gradient_clip": 0.01}))
    names = [name for name, _ in network().named_parameters()]
    moves = [torch.cat([(after[name] - before[name]).flatten() for name in names]) for after in (free, clipped)]
    assert float(moves[1].norm()) == pytest.approx(0.05 * 0.01, rel=1e-3)
    torch.testing.assert_close(moves[1] / moves[1].norm(), moves[0] / moves[0].norm(), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("part", "table"),
    [("sar", {"start": 2}), ("awp", {"start": 2, "gamma": 0.1}), ("sar", {}), ("awp", {"start": "first-drop"})],
)
def test_a_part_begins_at_its_epoch(tmp_path, part, table):
    plain, with_it = job(tmp_path), job(tmp_path, schedule={part: table})
    same = [are_equal(stepped(plain, epoch=e)[0], stepped(with_it, epoch=e)[0]) for e in range(4)]
    assert same == [True, True, False, False]


def test_without_gamma_weights_are_not_perturbed(tmp_path):
    plain = stepped(job(tmp_path))[0]
    assert are_equal(stepped(job(tmp_path, schedule={"awp": {"gamma": 0}}))[0], plain)
    assert not are_equal(stepped(job(tmp_path, schedule={"awp": {"gamma": 0.1}}))[0], plain)


def test_perturbation_is_outside_of_the_update(tmp_path):
    """The gradient is taken at the moved weights, the step made from the old ones, with statistics moved once."""
    before = weights_of(network())
    after, _ = stepped(job(tmp_path, schedule={"awp": {"gamma": 0.5}, "lr": 1e-12}))
    for name, _ in network().named_parameters():
        torch.testing.assert_close(after[name], before[name], atol=1e-9, rtol=0)
    assert int(after["1.num_batches_tracked"]) == 1


# Images


def prepared(tmp_path, **training):
    task = job(tmp_path, **training)
    return stepper(network(), task).prepare(*some_batch(), 0, seeded())


def test_natural_training_sees_the_images(tmp_path):
    batch, (x, y) = prepared(tmp_path, method="natural"), some_batch()
    assert batch.x_adv is None
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, y)


def test_low_passed_images(tmp_path):
    batch, (x, _) = prepared(tmp_path, method="natural", low_pass=3), some_batch()
    torch.testing.assert_close(batch.x, low_pass(x, 3).clamp(0, 1))
    assert not torch.allclose(batch.x, x, atol=0.01)


@pytest.mark.parametrize("kind", MIXES)
def test_clean_images_are_mixed_before_the_attack(tmp_path, kind):
    batch, (x, y) = prepared(tmp_path, mix={"kind": kind, "alpha": 0.5}), some_batch()
    expected, targets = MIXES[kind](x, y, classes=3, alpha=0.5, generator=seeded())
    assert torch.equal(batch.x, expected)
    assert torch.equal(batch.y, targets)
    assert (batch.x_adv - batch.x).abs().max() <= 8 / 255 + 1e-6


def test_patches_lie_where_the_recipe_says(tmp_path):
    x, y = some_batch()
    for border in ("clip", "inside"):
        batch = prepared(tmp_path, mix={"kind": "cutmix", "border": border})
        expected, _ = MIXES["cutmix"](x, y, classes=3, alpha=1.0, generator=seeded(), border=border)
        assert torch.equal(batch.x, expected)


@pytest.mark.parametrize("kind", MIXES)
def test_adversarial_images_are_mixed_after_it(tmp_path, monkeypatch, kind):
    """The clean ones stay; cut or mixed, images are further from them than the threat allows."""
    seen, original = [], step_module.perturb

    def attack(model, x, y, *rest):
        seen.append((y, original(model, x, y, *rest)))
        return seen[-1][1]

    monkeypatch.setattr(step_module, "perturb", attack)
    batch, (x, y) = prepared(tmp_path, mix={"kind": kind, "on": "adversarial"}), some_batch()
    assert torch.equal(batch.x, x)
    assert torch.equal(seen[0][0], y)
    assert batch.y.shape == (12, 3)
    assert (batch.x_adv - seen[0][1]).abs().max() > 8 / 255


# Learning from a teacher


def knowing(seed=7):
    """A teacher in eval mode whose logits differ from image to image."""
    model = network(width=5, seed=seed).eval()
    with torch.no_grad():
        model[-1].weight *= 30
    return model


def one_step_up(model, x, start, goal, step):
    """By hand: up along the sign of the gradient of KL(goal ‖ softmax), then back within 8/255 and the pixel range."""
    moved = start.clone().requires_grad_()
    log_q = model(moved).log_softmax(1)
    (torch.xlogy(goal, goal) - goal * log_q).sum().backward()
    moved = start + step * moved.grad.sign()
    return torch.maximum(torch.minimum(moved, x + 8 / 255), x - 8 / 255).clamp(0, 1)


@pytest.mark.parametrize("method", ["rslad", "ard"])
def test_whom_the_attack_leaves(tmp_path, method):
    """RSLAD's flees what the teacher says of the clean images; ARD's flees the labels, as one-hot rows."""
    task = distilling(job(tmp_path, attack={"steps": 1, "step_size": 2 / 255, "random_start": False}), method)
    model, teacher, (x, y) = network(), knowing(), some_batch()
    batch = stepper(model, task, teacher=teacher).prepare(x, y, 0, seeded())
    with torch.no_grad():
        said = teacher(x)
    assert torch.equal(batch.taught, said)
    goals = {"rslad": said.softmax(1), "ard": torch.eye(3, device=x.device)[y]}
    moved = {name: one_step_up(model.eval(), x, x, goal, 2 / 255) for name, goal in goals.items()}
    agreeing = {name: float((image - batch.x_adv).abs().lt(1e-6).float().mean()) for name, image in moved.items()}
    assert agreeing[method] > 0.999
    assert min(agreeing.values()) < 0.9


@pytest.mark.parametrize("method", ["rslad", "ard"])
def test_a_teacher_is_only_asked(tmp_path, method):
    """Once a step, in eval mode, of the clean images; its weights, statistics and gradients stay as they are."""
    teacher, modes = knowing(), []
    teacher.register_forward_hook(lambda module, args, output: modes.append((module.training, output.requires_grad)))
    before, task = weights_of(teacher), distilling(job(tmp_path), method)
    model = network()
    stepper(model, task, teacher=teacher).step(model, *some_batch(), 0, seeded())
    assert modes == [(False, False)]
    assert are_equal(weights_of(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not are_equal(weights_of(model), weights_of(network()))


def test_the_teacher_decides(tmp_path):
    task, found = distilling(job(tmp_path), "rslad"), []
    for seed in (7, 7, 8):
        model = network()
        stepper(model, task, teacher=knowing(seed)).step(model, *some_batch(), 0, seeded())
        found.append(weights_of(model))
    assert are_equal(found[0], found[1])
    assert not are_equal(found[0], found[2])


# Terms of the weights


@pytest.mark.parametrize("term", [kurtosis, lipschitz])
def test_a_term_of_the_weights_is_added_when_weighted(tmp_path, term):
    """With SGD's first step, the difference of weights is -lr · weight · its gradient."""
    name, model = term.__name__, network().train()
    plain = stepped(job(tmp_path))[0]
    assert are_equal(stepped(job(tmp_path, schedule={name: 0.0}))[0], plain)
    found = stepped(job(tmp_path, schedule={name: 0.5}))[0]
    term(model).backward()
    for key, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        moved = (found[key] - plain[key]).to(gradient.device)
        torch.testing.assert_close(moved, -0.05 * 0.5 * gradient, atol=1e-6, rtol=1e-3)
    assert any(not torch.equal(found[key], plain[key]) for key in found)


# Batch-norm's statistics

STATISTICS = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("more", [{}, {"sar": {"start": 0}, "awp": {"gamma": 0.1}}], ids=["at", "at, sar, awp"])
def test_statistics_stand_still_from_their_epoch_on(tmp_path, mode, more):
    """An attack in train mode does not move them either; weights and the norm's own parameters go on."""
    task = job(tmp_path, schedule={"freeze_statistics": 2, **more}, attack={"steps": 1, "mode": mode})
    for epoch in range(4):
        before, model = weights_of(network()), network()
        after, _ = stepped(task, epoch=epoch, model=model)
        still = {name for name in before if torch.equal(before[name], after[name])}
        assert still == (set() if epoch < 2 else STATISTICS)
        assert model[1].track_running_stats


def test_frozen_statistics_are_what_the_loss_is_computed_with(tmp_path):
    task, model, (x, y) = job(tmp_path, method="natural", schedule={"freeze_statistics": 0}), network(), some_batch()
    with torch.no_grad():
        expected = 12 * float(torch.nn.functional.cross_entropy(network().eval()(x), y))
    assert float(stepped(task, model=model)[1][0]) == pytest.approx(expected, rel=1e-5)


# Rates within an epoch


def test_nesterov_and_decay_of_matrices_alone():
    """v ← μ·v + g, w ← w - lr·(g + μ·v), with decay in the g of convolution and classifier, not of norm and biases."""
    model, schedule = network(), {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2, "nesterov": True}
    optimizer = trainer.optimizer(model, Schedule(epochs=1, decay="matrices", **schedule))
    before = weights_of(model)
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    for name, parameter in model.named_parameters():
        value, velocity = before[name], 0
        for _ in range(3):
            gradient = 1 + (0.2 * value if name in ("0.weight", "5.weight") else 0)
            velocity = 0.5 * velocity + gradient
            value = value - 0.1 * (gradient + 0.5 * velocity)
        torch.testing.assert_close(parameter.detach().cpu(), value)


@pytest.mark.parametrize(
    "schedule", [{"shape": "cosine", "milestones": []}, {"shape": "cyclic", "milestones": []}, {"milestones": [2]}]
)
def test_the_rate_moves_with_every_batch(tmp_path, monkeypatch, schedule):
    rates, original = [], torch.optim.SGD.step

    def recording(optimizer, *rest):
        rates.append(optimizer.param_groups[0]["lr"])
        return original(optimizer, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", recording)
    task = job(tmp_path, method="natural", schedule=schedule)
    trainer.fit(network(), some_data(), task)
    assert rates == pytest.approx([learning_rate(task.schedule, step / 3) for step in range(12)])
