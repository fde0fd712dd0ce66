"""Every method's loss against its formula, and what is attacked for it."""

from typing import get_args

import pytest
import torch
from torch import nn

from qrobust import devices, recipe
from qrobust.attacks import PgdConfig, pgd
from qrobust.errors import DataError, RecipeError
from qrobust.objectives import spectral_distance
from qrobust.recipe import TrainingAttack, schema
from qrobust.threat import Threat
from qrobust.train import METHODS, methods
from qrobust.train.methods import ATTACK_KINDS, Views, aligned, class_weights, draw_start, perturb

from .helpers import are_equal, network, some_batch, weights_of

LINF, L2 = Threat("linf", 8 / 255), Threat("l2", 0.5)


def settings(method="at", **more):
    """As a recipe's, and as `Run` has them for a method that [quant] alone may ask for."""
    return recipe.Training.model_validate({"epochs": 1, **more}).model_copy(update={"method": method})


def some_views(y=None):
    """A batch and another in swapped colours, seen by a network in eval mode whose logits differ on the two, as do
    its teacher's.
    """
    model, (x, labels) = network().eval(), some_batch()
    with torch.no_grad():
        model[-1].weight *= 30
    taught = torch.randn(12, 3, generator=torch.Generator().manual_seed(2)).to(devices.device())
    return Views(model, x, labels if y is None else y, x.flip(1), taught)


def shares():
    """Mixed labels: rows that sum to one."""
    return torch.rand(12, 3, generator=torch.Generator().manual_seed(1)).softmax(1).to(devices.device())


# Losses, written out in double precision


def log_p(logits):
    logits = logits.detach().double()
    return logits - logits.exp().sum(1, keepdim=True).log()


def crossed(logits, targets, smoothing=0.0):
    if targets.dim() == 1:
        targets = torch.eye(3, dtype=torch.float64, device=targets.device)[targets]
    targets = (1 - smoothing) * targets.double() + smoothing / 3
    return -(targets * log_p(logits)).sum(1).mean()


def kl(first, second, t=1.0):
    return (log_p(first / t).exp() * (log_p(first / t) - log_p(second / t))).sum(1)


def diverging(v):
    return kl(v.clean, v.adversarial)


def boosted(v, weights=torch.ones(3)):
    p = log_p(v.adversarial).exp()
    rows = torch.arange(len(p))
    rival = p.clone()
    rival[rows, v.y] = -1
    return (weights.to(p)[v.y] * (-p[rows, v.y].log() - (1 - rival.amax(1)).log())).mean()


def asked(logits, targets):
    p = 1 / (1 + (-logits.detach().double()).exp())
    return -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()


def unsure(v):
    return 1 - log_p(v.clean).exp()[torch.arange(len(v.y)), v.y]


LOSSES = {
    "natural": ({}, lambda v: crossed(v.clean, v.y)),
    "natural, smoothed": ({"smoothing": 0.2}, lambda v: crossed(v.clean, v.y, 0.2)),
    "at": ({}, lambda v: crossed(v.adversarial, v.y)),
    "at, smoothed": ({"smoothing": 0.2}, lambda v: crossed(v.adversarial, v.y, 0.2)),
    "trades": ({"beta": 3}, lambda v: crossed(v.clean, v.y) + 3 * diverging(v).mean()),
    "trades, smoothed": (
        {"beta": 3, "smoothing": 0.2},
        lambda v: crossed(v.clean, v.y, 0.2) + 3 * diverging(v).mean(),
    ),
    "mart": ({"beta": 3}, lambda v: boosted(v) + 3 * (diverging(v) * unsure(v)).mean()),
    "ard": (
        {"temperature": 4, "share": 0.3},
        lambda v: 0.3 * 16 * kl(v.taught, v.adversarial, 4).mean() + 0.7 * crossed(v.clean, v.y),
    ),
    "rslad": (
        {"share": 0.3},
        lambda v: 0.3 * kl(v.taught, v.adversarial).mean() + 0.7 * kl(v.taught, v.clean).mean(),
    ),
}
W = torch.tensor([0.5, 1.0, 4.0])


def weighed(logits, targets, smoothing=0.0):
    """-Σ_i Σ_k w_k t_ik log p_ik / n."""
    if targets.dim() == 1:
        targets = torch.eye(3, dtype=torch.float64, device=targets.device)[targets]
    targets = (1 - smoothing) * targets.double() + smoothing / 3
    return -(targets * log_p(logits) * W.to(targets)).sum() / len(targets)


WEIGHED = {
    "natural": ({}, lambda v: weighed(v.clean, v.y)),
    "at": ({"smoothing": 0.2}, lambda v: weighed(v.adversarial, v.y, 0.2)),
    "trades": ({"beta": 3, "smoothing": 0.2}, lambda v: weighed(v.clean, v.y, 0.2) + 3 * diverging(v).mean()),
    "mart": ({"beta": 3}, lambda v: boosted(v, W) + 3 * (diverging(v) * unsure(v)).mean()),
    "ard": (
        {"temperature": 4, "share": 0.3},
        lambda v: 0.3 * 16 * kl(v.taught, v.adversarial, 4).mean() + 0.7 * weighed(v.clean, v.y),
    ),
}
MIXED = {
    ("natural", "ce"): lambda v: crossed(v.clean, v.y),
    ("natural", "bce"): lambda v: asked(v.clean, v.y),
    ("at", "ce"): lambda v: crossed(v.adversarial, v.y),
    ("at", "bce"): lambda v: asked(v.adversarial, v.y),
}


def close(loss, expected):
    return loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_is_its_formula(name):
    more, expected = LOSSES[name]
    method, views = name.partition(",")[0], some_views()
    assert close(METHODS[method].loss(views, settings(method, **more)), expected(views))


@pytest.mark.parametrize(("method", "loss"), MIXED)
def test_the_loss_of_mixed_labels(method, loss):
    views = some_views(shares())
    mixing = settings(method, mix={"kind": "mixup", "loss": loss})
    assert close(METHODS[method].loss(views, mixing), MIXED[method, loss](views))


def test_the_formulas_differ():
    views = some_views()
    values = [expected(views).item() for _, expected in LOSSES.values()]
    assert len({round(value, 3) for value in values}) == len(values)


def test_trades_without_its_second_term_is_natural_training():
    views = some_views()
    natural = METHODS["natural"].loss(views, settings("natural"))
    assert torch.equal(METHODS["trades"].loss(views, settings("trades", beta=0)), natural)


def test_the_methods_are_those_of_recipes():
    assert set(METHODS) == literals(recipe.Quantisation) == literals(recipe.Training)
    assert {name for name, method in METHODS.items() if method.teacher} == set(schema.DISTILLING)


def literals(table):
    """What a table's `method` may be."""
    annotation = table.model_fields["method"].annotation
    names = [get_args(part) or (part,) for part in get_args(annotation)]
    return {name for group in names for name in group if isinstance(name, str)}


@pytest.mark.parametrize("method", ["ard", "rslad"])
def test_a_lesson_has_no_gradient(method):
    views = some_views()
    views.taught.requires_grad_()
    METHODS[method].loss(views, settings(method)).backward()
    assert views.taught.grad is None


@pytest.mark.parametrize(("share", "passes"), [(0, "clean"), (1, "adversarial")])
def test_the_share_is_that_of_the_adversarial_term(share, passes):
    views = some_views()
    loss = METHODS["rslad"].loss(views, settings("rslad", share=share))
    assert close(loss, kl(views.taught, getattr(views, passes)).mean())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_flow_through_all_that_is_seen(method):
    """TRADES and MART through both views; each pass is made once, and only where it is needed."""
    views, passes = some_views(), []
    views.model.register_forward_hook(lambda module, args, output: passes.append(args[0]))
    METHODS[method].loss(views, settings(method)).backward()
    expected = {"natural": [views.x], "at": [views.x_adv]}.get(method, [views.x, views.x_adv])
    assert {id(x) for x in passes} == {id(x) for x in expected}
    assert len(passes) == len(expected)
    assert all(parameter.grad.abs().sum() > 0 for parameter in views.model.parameters())


# Spectral alignment


def test_alignment_to_the_network_itself():
    views, sar = some_views(), recipe.Sar(weight=0.3, form="sample", distance="l2")
    expected = 0.3 * spectral_distance(views.clean, views.adversarial, form="sample", distance="l2")
    torch.testing.assert_close(aligned(views, sar, None), expected)


def test_alignment_to_an_average_that_is_the_network_gives_the_same_value():
    views = some_views()
    own = aligned(views, recipe.Sar(), None)
    averaged = aligned(views, recipe.Sar(reference="average"), views.model)
    assert torch.equal(own, averaged)
    assert own > 0.01


def test_alignment_to_an_average_asks_nothing_of_it():
    views, average = some_views(), network(seed=1).eval()
    aligned(views, recipe.Sar(reference="average"), average).backward()
    assert all(parameter.grad is None for parameter in average.parameters())
    assert "clean" not in vars(views)  # one pass of the network alone
    other = aligned(views, recipe.Sar(reference="average"), views.model)
    assert not torch.equal(aligned(views, recipe.Sar(reference="average"), average), other)


# Attacks

KINDS = {
    "at, pgd": ("at", {"kind": "pgd", "steps": 3}, 1),
    "at, fgsm-rs": ("at", {"kind": "fgsm-rs"}, 1),
    "at, n-fgsm": ("at", {"kind": "n-fgsm"}, 3),
    "mart, n-fgsm": ("mart", {"kind": "n-fgsm"}, 3),
    "trades": ("trades", {"steps": 3}, 1),
    "mart": ("mart", {"steps": 3, "random_start": False}, 1),
    "ard": ("ard", {"steps": 3}, 1),
    "rslad": ("rslad", {"steps": 3}, 1),
    "rslad, n-fgsm": ("rslad", {"kind": "n-fgsm"}, 3),
}


def attacked(training, threat=LINF, *, model=None, seed=0):
    x, y = some_batch()
    start = draw_start(x, training, threat, torch.Generator().manual_seed(seed))
    return perturb(model or network().train(), x, y, start, training, threat)


@pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
@pytest.mark.parametrize(("method", "attack", "factor"), KINDS.values(), ids=KINDS)
def test_examples_lie_within_the_threat_and_move(method, attack, factor, threat):
    (x, _), training = some_batch(), settings(method, attack=attack)
    x_adv = attacked(training, threat)
    distance = threat.distance(x_adv, x)
    assert distance.max() <= factor * threat.eps + 1e-6
    assert distance.min() > threat.eps / 4
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    if factor > 1:
        assert distance.max() > threat.eps + 1e-6  # not projected back


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(("method", "attack", "factor"), KINDS.values(), ids=KINDS)
def test_statistics_stay_where_an_attack_is_in_eval_mode(method, attack, factor, mode):
    model = network().train()
    before = weights_of(model)
    attacked(settings(method, attack={**attack, "mode": mode}), model=model)
    assert are_equal(weights_of(model), before) == (mode == "eval")
    assert model.training


def test_a_start_nearby_is_a_thousandth_of_a_normal_draw():
    """As MART's authors begin; in the ball it would be a hundredfold."""
    x = torch.full((40, 3, 16, 16), 0.5)
    training = settings("mart", attack={"start": "near"})
    near, ball = (
        draw_start(x, given, LINF, torch.Generator().manual_seed(0)) - x for given in (training, settings("mart"))
    )
    assert near.std().item() == pytest.approx(1e-3, rel=0.02)
    assert near.abs().max().item() > 3e-3  # a normal draw has tails
    assert ball.std().item() == pytest.approx(LINF.eps / 3**0.5, rel=0.02)
    assert torch.equal(near, draw_start(x, settings("trades"), LINF, torch.Generator().manual_seed(0)) - x)


def test_one_step_from_a_random_start_is_pgd_of_one_and_a_quarter_eps():
    (x, y), model = some_batch(), network().eval()
    start = LINF.random_start(x, torch.Generator().manual_seed(0))
    expected = pgd(model, x, y, threat=LINF, config=PgdConfig(steps=1, step_size=1.25 * LINF.eps), start=start)
    assert torch.equal(attacked(settings(attack={"kind": "fgsm-rs"}), model=model), expected)


def test_every_kind_of_a_recipe_is_in_the_table():
    kinds = get_args(TrainingAttack.model_fields["kind"].annotation)
    assert set(kinds) == set(ATTACK_KINDS) - {"kl"}


@pytest.mark.parametrize(
    ("method", "attack", "function", "factor"),
    [
        ("at", "pgd", "pgd", 0.25),
        ("at", "fgsm-rs", "pgd", 1.25),
        ("at", "n-fgsm", "n_fgsm", 1.0),
        ("trades", "pgd", "tpgd", 0.25),
    ],
)
def test_the_length_of_a_step(monkeypatch, method, attack, function, factor):
    """What its kind is published with, in units of eps; a recipe's own goes first."""
    lengths = []

    def recording(model, x, *labels, config=None, step_size=None, **more):
        lengths.append(config.step_size if config else step_size)

    monkeypatch.setattr(methods, function, recording)
    for given in (None, "2/255", 0):
        attacked(settings(method, attack={"kind": attack, "step_size": given}))
    assert lengths == [pytest.approx(factor * LINF.eps), 2 / 255, 0]


def test_trades_ascends_the_divergence_without_labels():
    training, model, (x, y) = settings("trades", attack={"steps": 2}), network(), some_batch()
    start = draw_start(x, training, LINF, torch.Generator().manual_seed(0))
    first, second = (perturb(model, x, labels, start, training, LINF) for labels in (y, (y + 1) % 3))
    assert torch.equal(first, second)


def test_the_loss_rises():
    """On the network that is attacked, for each objective."""
    (x, y), model = some_batch(), network().eval()
    for method in ("at", "trades", "mart"):
        training = settings(method, attack={"steps": 5})
        moved = Views(model, x, y, attacked(training, model=model))
        still = Views(model, x, y, x)
        assert METHODS[method].loss(moved, training) > METHODS[method].loss(still, training)


@pytest.mark.parametrize(("method", "attack", "factor"), KINDS.values(), ids=KINDS)
def test_starts_are_drawn_from_the_generator_alone(method, attack, factor):
    training, (x, _) = settings(method, attack=attack), some_batch()
    starts = []
    for seed, ambient in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(ambient)
        starts.append(draw_start(x, training, LINF, torch.Generator().manual_seed(seed)))
    assert torch.equal(starts[0], starts[1])
    assert torch.equal(starts[0], starts[2]) == (not training.attack.random_start)


def test_soft_labels_are_climbed():
    model, (x, _) = network().eval(), some_batch()
    training = settings(attack={"steps": 5}, mix={"kind": "mixup", "loss": "ce"})
    x_adv = perturb(model, x, shares(), x, training, LINF)
    before, after = (nn.functional.cross_entropy(model(images), shares()) for images in (x, x_adv))
    assert after > before


# Weights of classes


@pytest.mark.parametrize("name", WEIGHED)
def test_class_weights_are_of_the_classification_term(name):
    more, expected = WEIGHED[name]
    views = some_views()
    plain = METHODS[name].loss(views, settings(name, **more))
    views.class_weights = W.to(devices.device())
    loss = METHODS[name].loss(views, settings(name, **more))
    assert close(loss, expected(views))
    assert not close(plain, loss)


def test_class_weights_of_mixed_labels():
    views = some_views(shares())
    views.class_weights = W.to(devices.device())
    assert close(METHODS["natural"].loss(views, settings("natural")), weighed(views.clean, views.y))


def test_weights_of_ones_change_nothing():
    views = some_views()
    plain = METHODS["at"].loss(views, settings("at"))
    views.class_weights = torch.ones(3, device=devices.device())
    assert close(METHODS["at"].loss(views, settings("at")), plain)


def test_balanced_classes_weigh_the_same():
    y = torch.tensor([0] * 12 + [1] * 3 + [2])
    weights = class_weights(settings(class_weights="balanced"), y, 3)
    assert torch.allclose(weights, torch.tensor([16 / 36, 16 / 9, 16 / 3]))
    assert torch.allclose(weights * y.bincount(), torch.full((3,), 16 / 3))
    assert weights[y].mean().item() == pytest.approx(1)


def test_class_weights_as_they_are_said():
    y = torch.arange(3)
    assert class_weights(settings(), y, 3) is None
    assert class_weights(settings(class_weights=[1, 2.5, 3]), y, 3).tolist() == [1, 2.5, 3]
    with pytest.raises(RecipeError, match=r"expected a number a class, 3, in train\.class_weights, got 2; change it"):
        class_weights(settings(class_weights=[1, 2]), y, 3)
    with pytest.raises(DataError, match=r"expected training images of every class, got none of class 3"):
        class_weights(settings(class_weights="balanced"), y, 4)
