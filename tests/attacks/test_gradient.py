"""One table of attacks, one body a property; on a linear network the optimum is known."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.attacks import PgdConfig, bim, far_off, fgsm, n_fgsm, nearby, pgd, tpgd
from qrobust.attacks.gradient import LOSSES
from qrobust.errors import RecipeError
from qrobust.objectives import margin
from qrobust.threat import Threat

from .helpers import L2, LINF, batch, copy_of, is_unchanged, linear_net, seeded, smooth_net

SETTINGS = {
    "fgsm": (fgsm, {}),
    "bim": (bim, {"config": PgdConfig(steps=4)}),
    "pgd": (pgd, {"config": PgdConfig(steps=4)}),
    "pgd-margin": (pgd, {"config": PgdConfig(steps=4, loss="margin")}),
    "pgd-restarts": (pgd, {"config": PgdConfig(steps=4, restarts=3)}),
    "pgd-best": (pgd, {"config": PgdConfig(steps=4, keep="best")}),
    "pgd-far": (pgd, {"config": PgdConfig(steps=3, step_size=1.0)}),
    "tpgd": (tpgd, {"config": PgdConfig(steps=4)}),
}
LABELLED = {name: both for name, both in SETTINGS.items() if name != "tpgd"}  # which climbs another loss
ATTACKS = pytest.mark.parametrize(("attack", "options"), SETTINGS.values(), ids=SETTINGS)
THREATS = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)


def loss_at(model, x, y):
    model.eval()
    return F.cross_entropy(model(x), y, reduction="none").detach()


@ATTACKS
@THREATS
def test_inside_the_threat(attack, options, threat):
    x, y = batch()
    x_adv = attack(smooth_net(), x, y, threat=threat, **options)
    assert x_adv.shape == x.shape
    assert threat.distance(x_adv, x).max() <= threat.eps + 1e-6
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad


@pytest.mark.parametrize(("attack", "options"), LABELLED.values(), ids=LABELLED)
@THREATS
def test_the_loss_rises(attack, options, threat):
    model, (x, y) = smooth_net().eval(), batch()
    if "config" in options and options["config"].step_size == PgdConfig().step_size:
        options = {"config": replace(options["config"], step_size=threat.eps / 2)}
    x_adv = attack(model, x, y, threat=threat, **options)
    assert (loss_at(model, x_adv, y) > loss_at(model, x, y)).all()


@THREATS
def test_the_best_of_all_points_is_kept(threat):
    """With steps so long that the last point is rarely the best."""
    model, (x, y) = smooth_net().eval(), batch()

    def lead(steps, keep):
        config = PgdConfig(steps, threat.eps, keep=keep)
        x_adv = pgd(model, x, y, threat=threat, config=config, generator=seeded())
        return margin(model(x_adv), y).detach()

    passed = torch.stack([lead(steps, "last") for steps in range(1, 7)])
    found = lead(6, "best")
    assert (found >= passed.amax(0) - 1e-5).all()
    assert (found > passed[-1] + 1e-5).any()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep": "bets"}, r"expected a keep, got 'bets'; did you mean 'best'\?"),
        ({"loss": "margn"}, r"expected a loss, got 'margn'; did you mean 'margin'\?"),
        ({"steps": 0}, "expected steps of 1 or more, got 0; else it is no attack"),
        ({"restarts": 0}, "expected restarts of 1 or more, got 0"),
        ({"step_size": -0.1}, r"expected step_size of 0 or more, got -0\.1"),
        ({"step_size": float("nan")}, "expected step_size of 0 or more, got nan"),
    ],
)
def test_what_is_no_setting_is_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        PgdConfig(**settings)


@pytest.mark.parametrize("settings", [{"restarts": 2}, {"random_start": False}, {"loss": "margin"}, {"keep": "best"}])
def test_tpgd_refuses_settings_that_it_has_not(settings):
    with pytest.raises(RecipeError, match="expected steps, step_size and training alone for tpgd, got PgdConfig"):
        tpgd(smooth_net(), batch()[0], threat=LINF, config=PgdConfig(steps=3, **settings))


@ATTACKS
def test_the_network_is_left_alone(attack, options):
    model, (x, y) = smooth_net().train(), batch()
    before, images = copy_of(model), x.clone()
    attack(model, x, y, threat=LINF, **options)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert is_unchanged(model, before)  # running statistics of batch-norm among them
    assert torch.equal(x, images)


def test_an_attack_in_train_mode_moves_the_statistics_and_changes_the_attack():
    model, (x, y) = smooth_net().train(), batch()
    before = copy_of(model)
    x_eval = pgd(model, x, y, threat=LINF, config=PgdConfig(random_start=False))
    x_train = pgd(model, x, y, threat=LINF, config=PgdConfig(random_start=False, training=True))
    assert not torch.equal(x_eval, x_train)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_failing_network_is_left_alone_too():
    class Failing(nn.Sequential):
        def forward(self, x):
            raise RuntimeError("no memory")

    model, (x, y) = Failing(*smooth_net()).train(), batch()
    with pytest.raises(RuntimeError, match="no memory"):
        pgd(model, x, y, threat=LINF)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("attack", [fgsm, bim, pgd])
@pytest.mark.parametrize(("threat", "p"), [(LINF, 1), (L2, 2)], ids=["linf", "l2"])
def test_the_exact_optimum_on_a_linear_network(attack, threat, p):
    """The margin moves by eps times the dual norm of the weights' difference."""
    model, y = linear_net(), torch.arange(8) % 2
    x = 0.4 + 0.2 * torch.rand(8, 3, 6, 6, generator=seeded())  # further than eps from the ends of the range
    options = {} if attack is fgsm else {"config": PgdConfig(steps=20, step_size=threat.eps / 2)}
    x_adv = attack(model, x, y, threat=threat, **options)
    w = model[1].weight.detach()
    optimum = threat.eps * (w[1] - w[0]).norm(p=p)
    rise = (margin(model(x_adv), y) - margin(model(x), y)).detach()
    torch.testing.assert_close(rise, optimum.expand(8), rtol=1e-3, atol=1e-5)


@THREATS
def test_many_steps_beat_one(threat):
    model, (x, y) = smooth_net().eval(), batch(n=30)
    one, many, restarted = (
        loss_at(model, x_adv, y).sum()
        for x_adv in (
            fgsm(model, x, y, threat=threat),
            bim(model, x, y, threat=threat, config=PgdConfig(steps=20, step_size=threat.eps / 4)),
            pgd(model, x, y, threat=threat, config=PgdConfig(steps=20, step_size=threat.eps / 4), generator=seeded()),
        )
    )
    assert many >= one
    assert restarted >= one


def kinked_net():
    """A network whose gradients lead astray, so that the start matters."""
    torch.manual_seed(0)
    layers = [nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, std=0.5)
    return nn.Sequential(nn.Flatten(), *layers)


def test_restarts_are_never_worse_than_one_start():
    model = kinked_net()
    x = torch.rand(200, 3, 2, 2, generator=seeded())
    y = model(x).argmax(1)
    broken = []
    for restarts in (1, 2, 8):
        config = PgdConfig(steps=1, step_size=0.05, restarts=restarts)
        x_adv = pgd(model, x, y, threat=Threat("linf", 0.05), config=config, generator=seeded())
        broken.append(model(x_adv).argmax(1) != y)
    for fewer, more in itertools.pairwise(broken):
        assert not (fewer & ~more).any()
    assert broken[2].sum() > broken[0].sum() > 0


def test_broken_images_leave_the_next_restart():
    model, sizes = kinked_net(), []
    x = torch.rand(50, 3, 2, 2, generator=seeded())
    y = model(x).argmax(1)
    y[:20] = (y[:20] + 1) % 3  # wrong before any attack
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    config = PgdConfig(steps=1, step_size=1e-4, restarts=3)
    pgd(model, x, y, threat=Threat("linf", 1e-4), config=config, generator=seeded())
    assert sizes[:2] == [50, 50]
    assert all(size == 30 for size in sizes[2:])
    wrong = (model(x).argmax(1) + 1) % 3
    sizes.clear()
    config = PgdConfig(steps=2, step_size=1e-6, restarts=9)
    pgd(model, x, wrong, threat=Threat("linf", 1e-6), config=config, generator=seeded())
    assert sizes == [50, 50, 50]  # two steps and one look, then nothing is left


def test_bim_is_deterministic():
    model, (x, y) = smooth_net(), batch()
    first, again = (bim(model, x, y, threat=LINF, config=PgdConfig(steps=3)) for _ in range(2))
    assert torch.equal(first, again)


@THREATS
def test_the_generator_decides(threat):
    model, (x, y) = smooth_net(), batch()
    options = {"threat": threat, "config": PgdConfig(steps=2)}
    first, again, other = (pgd(model, x, y, generator=seeded(seed), **options) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_steps_and_step_size():
    """From x itself, k steps of s move no pixel further than k·s, and some exactly so."""
    model, (x, y) = linear_net(), batch(classes=2)
    x_adv = bim(model, x, y, threat=Threat("linf", 0.5), config=PgdConfig(steps=3, step_size=0.01))
    assert (x_adv - x).abs().max().item() == pytest.approx(0.03, abs=1e-6)


def test_the_margin_loss_is_climbed():
    model, (x, y) = smooth_net(), batch(n=60)
    settings = {"step_size": 0.05, "random_start": False}
    ce, cw = (pgd(model, x, y, threat=L2, config=PgdConfig(loss=loss, **settings)) for loss in ("ce", "margin"))
    assert not torch.equal(ce, cw)
    model.eval()
    assert margin(model(cw), y).mean() >= margin(model(ce), y).mean() - 1e-4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_no_image_knows_of_the_others(loss):
    """Sums, not means: the gradient of an image does not depend on the size of its batch."""
    model, (x, y) = smooth_net().eval(), batch()
    x.requires_grad_(True)
    (together,) = torch.autograd.grad(loss(model(x), y), x)
    (alone,) = torch.autograd.grad(loss(model(x[:1]), y[:1]), x)
    torch.testing.assert_close(together[:1], alone[:1])


def test_no_images_are_no_trouble():
    x, y = batch()
    assert pgd(smooth_net(), x[:0], y[:0], threat=LINF, config=PgdConfig(restarts=2, steps=2)).shape == x[:0].shape


def divergence(model, x, x_adv):
    """KL(f(x) ‖ f(x')) of each image."""
    model.eval()
    with torch.no_grad():
        clean, attacked = F.log_softmax(model(x), dim=1), F.log_softmax(model(x_adv), dim=1)
    return (clean.exp() * (clean - attacked)).sum(dim=1)


@THREATS
def test_tpgd_moves_the_output_further_than_noise(threat):
    model, (x, _) = smooth_net(), batch(n=40)
    x_adv = tpgd(model, x, threat=threat, config=PgdConfig(step_size=threat.eps / 4), generator=seeded())
    noise = max(divergence(model, x, threat.random_start(x, seeded(seed))).mean() for seed in range(5))
    assert divergence(model, x, x_adv).mean() > 3 * noise
    few, many = (tpgd(model, x, threat=threat, config=PgdConfig(k, threat.eps / 9), generator=seeded()) for k in (1, 9))
    assert divergence(model, x, many).mean() > divergence(model, x, few).mean()


def test_tpgd_uses_no_labels():
    model, (x, y) = smooth_net(), batch()
    without, given, others = (
        tpgd(model, x, *labels, threat=LINF, generator=seeded()) for labels in ((), (y,), (2 - y,))
    )
    assert torch.equal(without, given)
    assert torch.equal(without, others)


def test_tpgd_draws_from_the_generator():
    model, (x, _) = smooth_net(), batch()
    options = {"threat": L2, "config": PgdConfig(steps=1)}
    first, again, other = (tpgd(model, x, generator=seeded(seed), **options) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# Starts that are given


@THREATS
def test_a_start_that_is_given_is_the_draw(threat):
    model, (x, y) = smooth_net(), batch()
    config = PgdConfig(steps=3, step_size=threat.eps / 4)
    options, still = {"threat": threat, "config": config}, replace(config, random_start=False)
    drawn, drawn_kl = pgd(model, x, y, generator=seeded(), **options), tpgd(model, x, generator=seeded(), **options)
    assert torch.equal(pgd(model, x, y, start=threat.random_start(x, seeded()), **options), drawn)
    assert torch.equal(tpgd(model, x, start=nearby(x, threat, seeded()), **options), drawn_kl)
    assert torch.equal(pgd(model, x, y, start=x, **options), pgd(model, x, y, threat=threat, config=still))
    one = n_fgsm(model, x, y, threat=threat, generator=seeded())
    assert torch.equal(n_fgsm(model, x, y, threat=threat, start=far_off(x, threat, seeded())), one)


def test_parts_of_a_batch_from_their_parts_of_a_start():
    """So several processes attack what one would."""
    model, (x, y) = smooth_net().eval(), batch()
    start = LINF.random_start(x, seeded())
    whole = pgd(model, x, y, threat=LINF, config=PgdConfig(steps=3), start=start)
    parts = [pgd(model, x[k::2], y[k::2], threat=LINF, config=PgdConfig(steps=3), start=start[k::2]) for k in (0, 1)]
    for k, part in enumerate(parts):
        torch.testing.assert_close(part, whole[k::2])


def test_a_start_serves_the_first_restart_alone():
    model, draws, original = kinked_net(), [], Threat.random_start

    class Counting(Threat):
        def random_start(self, x, generator=None):
            draws.append(len(x))
            return original(self, x, generator)

    x = torch.rand(50, 3, 2, 2, generator=seeded())
    y = model(x).argmax(1)
    options, once = {"threat": Counting("linf", 1e-5), "generator": seeded()}, PgdConfig(steps=1, step_size=1e-5)
    pgd(model, x, y, start=x, config=once, **options)
    assert draws == []
    pgd(model, x, y, start=x, config=replace(once, restarts=3), **options)
    assert draws == [50, 50]
    start = x.clone()
    pgd(model, x, y, start=start, config=once, **options)
    assert torch.equal(start, x)  # not changed in place


@THREATS
def test_near_and_far(threat):
    x = 0.4 + 0.2 * torch.rand(8, 3, 6, 6, generator=seeded())
    near, far = nearby(x, threat, seeded()) - x, far_off(x, threat, seeded()) - x
    assert near.std() == pytest.approx(1e-3, rel=0.1)
    distance = threat.distance(x + far, x)
    assert distance.max() <= 2 * threat.eps + 1e-6
    assert distance.max() > 1.5 * threat.eps
    for start in (nearby, far_off):
        first, again, other = (start(x, threat, seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@THREATS
@pytest.mark.parametrize("start", [nearby, far_off])
def test_starts_are_images(start, threat):
    x, _ = batch()
    drawn = start(x, threat, seeded())
    assert drawn.min() >= 0
    assert drawn.max() <= 1


def test_a_start_near_images_stays_within_a_tiny_threat():
    x, tiny = batch()[0], Threat("linf", 1e-4)
    assert tiny.distance(nearby(x, tiny, seeded()), x).max() <= 1e-4 + 1e-7


# One step from far off


@THREATS
def test_one_step_from_far_off_is_not_projected_on_the_threat(threat):
    (x, y), model = batch(), smooth_net().eval()
    x_adv = n_fgsm(model, x, y, threat=threat, generator=seeded())
    distance = threat.distance(x_adv, x)
    assert distance.max() <= 3 * threat.eps + 1e-6
    assert distance.max() > 1.5 * threat.eps
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    start = far_off(x, threat, seeded()).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y, reduction="sum"), start)
    expected = (start + threat.eps * threat.direction(gradient)).clamp(0, 1).detach()
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)


def test_one_step_from_far_off_of_another_length():
    (x, y), model = batch(), smooth_net().eval()
    start = far_off(x, LINF, seeded())
    short = n_fgsm(model, x, y, threat=LINF, step_size=0.001, start=start)
    assert LINF.distance(short, start).max() <= 0.001 + 1e-6
    assert not torch.equal(short, start)


def test_a_large_threat_ends_at_the_range_of_pixels():
    (x, y), large = batch(), Threat("linf", 0.6)
    x_adv = n_fgsm(smooth_net(), x, y, threat=large, generator=seeded())
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_one_step_from_far_off_leaves_the_network_alone():
    model, (x, y) = smooth_net().train(), batch()
    before = copy_of(model)
    n_fgsm(model, x, y, threat=LINF)
    assert is_unchanged(model, before)
    n_fgsm(model, x, y, threat=LINF, training=True)
    assert not is_unchanged(model, before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


# Mixed labels


def test_one_hot_shares_are_labels():
    model, (x, y) = smooth_net(), batch()
    for attack in (pgd, n_fgsm):
        start = LINF.random_start(x, seeded())
        labelled, shared = (attack(model, x, t, threat=LINF, start=start) for t in (y, F.one_hot(y, 3).float()))
        assert torch.equal(labelled, shared)


@pytest.mark.parametrize("attack", [pgd, n_fgsm])
def test_the_loss_of_shares_rises(attack):
    (x, y), model = batch(n=30), smooth_net().eval()
    targets = 0.7 * F.one_hot(y, 3) + 0.3 * F.one_hot((y + 1) % 3, 3)
    start = LINF.random_start(x, seeded())
    x_adv = attack(model, x, targets, threat=LINF, start=start)
    before, after = (F.cross_entropy(model(images), targets, reduction="none") for images in (start, x_adv))
    assert (after > before).all()
    hard = attack(model, x, y, threat=LINF, start=start)
    assert not torch.equal(x_adv, hard)  # the shares matter


def test_shares_of_labels_restart_as_labels_do():
    x, y = batch()
    shares = F.one_hot(y, 3).float()
    model = smooth_net()
    settings = {"threat": LINF, "config": PgdConfig(steps=2, restarts=3)}
    first, second = (pgd(model, x, target, generator=seeded(), **settings) for target in (y, shares))
    torch.testing.assert_close(first, second)
