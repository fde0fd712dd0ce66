"""APGD finds the exact worst case of linear networks, and keeps the best point of what it passes."""

import pyautoattack
import pytest
import torch
from torch import nn

from qrobust.attacks import apgd as module
from qrobust.attacks.apgd import CANDIDATES, LOSSES, ApgdConfig, apgd, checkpoints, lead_of, linear_targets
from qrobust.attacks.auto import NORMS
from qrobust.errors import ModelError
from qrobust.models.inference import frozen
from qrobust.objectives import margin
from qrobust.threat import Threat

from .helpers import batch, digits, digits_net, linear_net, seeded, smooth_net

THREATS = (Threat("linf", 0.01), Threat("l2", 0.1))
BOTH = pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)


def run(model, x, y, threat, steps=20, loss="margin", start=None, target=None):
    with frozen(model):
        config = ApgdConfig(steps, loss)
        return apgd(model, x, y, threat=threat, config=config, start=x if start is None else start, target=target)


def lead(model, x, y):
    with torch.no_grad():
        return margin(model.eval()(x), y)


def grey(n=8, classes=2):
    """Images away from black and white, so that the whole ball is theirs."""
    return 0.3 + 0.4 * torch.rand(n, 3, 6, 6, generator=seeded()), torch.arange(n) % classes


@BOTH
def test_the_exact_worst_case_of_a_linear_network(threat):
    model, (x, y) = linear_net(), grey()
    slope = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 3, 6, 6)
    dual = slope.abs().sum() if threat.norm == "linf" else slope.norm()
    clean = lead(model, x, y)
    y = torch.where(clean > 0, 1 - y, y)  # right, each
    expected = lead(model, x, y) + threat.eps * dual
    found = run(model, x, y, threat)
    best = lead(model, found.x, y)
    held = expected < 0
    assert 0 < held.sum() < len(y)
    torch.testing.assert_close(best[held], expected[held], rtol=1e-4, atol=1e-5)
    assert (best[~held] > 0).all()
    assert threat.distance(found.x, x).max() <= threat.eps + 1e-6


@BOTH
@pytest.mark.parametrize("loss", LOSSES)
def test_the_best_point_leads_by_more_than_the_start(loss, threat):
    model, (x, y) = smooth_net(classes=4), batch(classes=4)
    start = threat.random_start(x, seeded())
    found = run(model, x, y, threat, loss=loss, start=start)
    assert (lead(model, found.x, y) >= lead(model, start, y) - 1e-6).all()
    assert threat.distance(found.x, x).max() <= threat.eps + 1e-6
    assert 0 <= found.x.min() <= found.x.max() <= 1


def test_an_image_finds_the_same_alone_and_in_a_batch_that_shrinks():
    _, (x, y) = digits()
    threat = Threat("linf", 0.08)
    together = run(digits_net(), x[:40], y[:40], threat)
    broken = lead(digits_net(), together.x, y[:40]) > 0
    assert broken.sum() > 8
    assert together.gradients < 20 * 40
    for i in (~broken).nonzero()[:4, 0].tolist():
        alone = run(digits_net(), x[i : i + 1], y[i : i + 1], threat)
        torch.testing.assert_close(alone.x, together.x[i : i + 1], rtol=0, atol=1e-6)


class Sure(nn.Module):
    """Digits, of which all are class 0 by far: nothing breaks."""

    def forward(self, x):
        return digits_net()(x) + 100 * (torch.arange(10) == 0)


@pytest.mark.parametrize("threat", [Threat("linf", 0.2), Threat("l2", 1.0)], ids=lambda threat: threat.norm)
def test_where_nothing_breaks_it_is_the_packages_to_the_pixel(threat, monkeypatch):
    """The package counts the rise of the first step against 0, so that its loss is lifted above that here."""
    _, (x, _) = digits()
    x, y = x[:40], torch.zeros(40, dtype=torch.long)
    start = threat.random_start(x, seeded())
    whole = pyautoattack.AutoAttack(Sure(), norm=NORMS[threat.norm], eps=threat.eps, device="cpu")
    whole.apgd.loss, whole.apgd.dlr_loss = "dlr", lambda logits, y: lead_of(logits, y) + 200
    whole.apgd.init_hyperparam(x)
    whole.apgd.n_iter, whole.apgd.n_iter_2, whole.apgd.size_decr, marks = 25, 10, 3, {10, 17, 23}
    theirs, *_ = whole.apgd.attack_single_run(x, y, start)
    monkeypatch.setattr(module, "checkpoints", lambda _: marks)
    ours = run(Sure(), x, y, threat, steps=26, start=start).x  # the package does not count the start
    alike = (ours - theirs).flatten(1).abs().amax(1) < 1e-5
    assert alike.float().mean() > 0.9
    assert (lead(Sure(), ours, y) - lead(Sure(), theirs, y)).mean() > -0.01


def test_a_target_is_aimed_at():
    _, (x, y) = digits()
    x, y, threat = x[:30], y[:30], Threat("linf", 0.02)
    target = (y + 1) % 10
    aimed, other = (run(digits_net(), x, y, threat, target=one).x for one in (target, (y + 5) % 10))
    to_target = [lead_of(digits_net()(one), y, target).detach().mean() for one in (x, other, aimed)]
    assert to_target[2] > to_target[1]
    assert to_target[2] > to_target[0]


def test_checkpoints_are_those_of_the_paper():
    """Section 3.2: p_0 = 0, p_1 = 0.22, then by a step that shrinks by 0.03 down to 0.06."""
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert max(checkpoints(7)) <= 7


@BOTH
def test_near_classes_come_first(threat):
    """Of a linear network: by the distance to where the label changes, in the threat's norm."""
    model, (x, y) = linear_net(classes=6), grey(classes=6)
    weight = model[1].weight.detach()
    apart = weight[None] - weight[y][:, None]
    dual = apart.abs().sum(2) if threat.norm == "linf" else apart.norm(dim=2)
    logits = model(x).detach()
    distance = (logits.gather(1, y[:, None]) - logits) / dual
    expected = distance.scatter(1, y[:, None], torch.inf).argsort(1)[:, :-1]
    with frozen(model):
        assert torch.equal(linear_targets(model, x, y, threat=threat), expected)


def test_of_many_classes_those_of_the_highest_logits():
    model, (x, y) = linear_net(classes=30), grey(classes=30)
    with frozen(model):
        found = linear_targets(model, x, y, threat=THREATS[0])
    highest = model(x).detach().scatter(1, y[:, None], -torch.inf).topk(CANDIDATES, dim=1).indices
    assert torch.equal(found.sort(1).values, highest.sort(1).values)


def test_no_logits_are_refused():
    x, y = grey()
    with pytest.raises(ModelError, match="expected logits"):
        run(nn.Identity(), x, y, THREATS[0])
