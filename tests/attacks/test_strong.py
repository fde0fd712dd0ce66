"""The cascade: it breaks what others leave, stops and goes on, and counts what it takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.attacks import PgdConfig, Scene, StrongConfig, cascade, named, pgd, plan, strong
from qrobust.attacks.cascade import expect, own_forms
from qrobust.attacks.plan import FLOAT
from qrobust.errors import ModelError
from qrobust.objectives import margin
from qrobust.quant import QuantConfig, quantize
from qrobust.straight_through import InForm, activation_quantizers
from qrobust.threat import Threat

from .helpers import batch, copy_of, digits, digits_net, is_unchanged, linear_net, seeded, smooth_net

LINF, L2 = Threat("linf", 0.06), Threat("l2", 0.3)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=lambda threat: threat.norm)
QUICK = StrongConfig(quick=True)
N = 30
pytestmark = pytest.mark.usefixtures("few_parts")


def some(n=N):
    _, (x, y) = digits()
    return x[:n], y[:n]


@pytest.fixture(scope="module")
def rounded():
    """Digits at two bits, a little trained."""
    (x, y), _ = digits()
    torch.manual_seed(0)
    model = quantize(digits_net(), QuantConfig(bits=2), calibration=x[:200])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


def right(model, x, y):
    with torch.no_grad():
        return model(x).argmax(1) == y


def same(first, second):
    names = ("x", "lead", "broken", "found_by")
    equal = all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)
    return equal and untimed(first) == untimed(second)


def untimed(found):
    return [replace(part, seconds=0) for part in found.parts]


@BOTH
@pytest.mark.parametrize("kind", ["float", "rounded"])
def test_what_it_says_is_so(kind, threat, rounded):
    model, (x, y) = digits_net() if kind == "float" else rounded, some()
    before = copy_of(model)
    found = strong(model, x, y, threat=threat, config=QUICK, generator=seeded())
    assert threat.distance(found.x, x).max() <= threat.eps + 1e-6
    assert 0 <= found.x.min() <= found.x.max() <= 1
    assert torch.equal(~found.broken, right(model, found.x, y))
    torch.testing.assert_close(found.lead, margin(model(found.x), y).detach(), rtol=0, atol=1e-5)
    clean = right(model, x, y)
    assert 0 < found.broken.sum() < N
    assert sum(part.broken for part in found.parts) == (found.broken & clean).sum()
    assert (found.lead >= margin(model(x), y) - 1e-6).all()
    assert {name for name, ok in zip(found.names(), clean.tolist(), strict=True) if not ok} <= {"clean"}
    assert torch.equal(found.x[~clean], x[~clean])
    assert set(found.names()) - {"clean"} <= {part.part for part in found.parts}
    assert is_unchanged(model, before)


@pytest.mark.parametrize("kind", [pytest.param("float", marks=pytest.mark.slow), "rounded"])
def test_it_leaves_no_more_than_restarts_of_pgd(kind, rounded):
    model, (x, y) = digits_net() if kind == "float" else rounded, some()
    config = PgdConfig(steps=20, step_size=0.015, restarts=3, loss="margin", keep="best")
    by_pgd = right(model, pgd(model, x, y, threat=LINF, config=config, generator=seeded()), y)
    by_strong = ~strong(model, x, y, threat=LINF, config=StrongConfig(budget=500), generator=seeded()).broken
    assert by_strong.sum() <= by_pgd.sum()
    if kind == "rounded":
        assert by_strong.sum() < by_pgd.sum()


class Stopped(Exception):
    pass


class Kept:
    """A memory that stops the cascade after so many parts."""

    def __init__(self, most):
        self.most, self.arrays, self.saved = most, {}, 0

    def load(self):
        return self.arrays

    def save(self, arrays, parts):
        self.arrays, self.saved = {name: np.array(one) for name, one in arrays.items()}, self.saved + 1
        if self.saved == self.most:
            raise Stopped


CONFIG = StrongConfig(budget=160, batch_size=25)


@pytest.mark.parametrize(
    ("threat", "stops"),
    [pytest.param(LINF, (1, 4), id="linf"), pytest.param(L2, (1, 2, 3, 5), id="l2", marks=pytest.mark.slow)],
)
def test_stopped_after_any_part_it_goes_on_to_the_same(threat, stops, rounded):
    (x, y), arguments = some(), {"threat": threat, "config": CONFIG}
    whole = strong(rounded, x, y, generator=seeded(), **arguments)
    assert len(whole.parts) > 5
    for stop_after in stops:
        memory = Kept(stop_after)
        with pytest.raises(Stopped):
            strong(rounded, x, y, generator=seeded(), memory=memory, **arguments)
        memory.most, memory.saved = None, 0
        again = strong(rounded, x, y, generator=seeded(), memory=memory, **arguments)
        assert memory.saved == len(whole.parts) - stop_after
        assert same(whole, again)


@pytest.mark.parametrize("other", ["images", "plan", "nothing"])
def test_what_is_remembered_of_something_else_is_not_used(other, rounded):
    x, y = some()
    memory = Kept(None)
    strong(rounded, x, y, threat=LINF, config=QUICK, generator=seeded(), memory=memory)
    config = StrongConfig(budget=40) if other == "plan" else QUICK
    x = x.flip(0) if other == "images" else x
    y = y.flip(0) if other == "images" else y
    if other == "nothing":
        memory.arrays = {}
    fresh = strong(rounded, x, y, threat=LINF, config=config, generator=seeded())
    assert same(fresh, strong(rounded, x, y, threat=LINF, config=config, generator=seeded(), memory=memory))


def test_the_seed_decides(rounded):
    x, y = some()
    first, again, other = (strong(rounded, x, y, threat=LINF, config=QUICK, generator=seeded(k)) for k in (1, 1, 2))
    assert same(first, again)
    assert not torch.equal(first.x, other.x)


class Counted(nn.Module):
    """Counts images that go through, and those whose gradient comes back."""

    def __init__(self, model):
        super().__init__()
        self.model, self.forwards, self.gradients = model, 0, 0

    def forward(self, x):
        self.forwards += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient):
        self.gradients += len(gradient)


@pytest.mark.parametrize("kind", ["float", "rounded"])
def test_passes_are_counted_and_as_many_as_expected(kind, rounded):
    model, (x, y) = Counted(digits_net() if kind == "float" else rounded), some()
    config = StrongConfig(batch_size=11)
    clean = right(model.model, x, y)
    found = strong(model, x, y, threat=LINF, config=config, generator=seeded())
    assert sum(part.forward_passes for part in found.parts) == model.forwards - len(x)  # the first verdict
    assert sum(part.gradient_passes for part in found.parts) == model.gradients
    expected = expect(model, x, y, config=config)
    left = int((~found.broken).sum())
    assert expected.forwards * left < model.forwards - len(x) <= expected.forwards * clean.sum()
    assert expected.gradients * left < model.gradients <= expected.gradients * clean.sum()
    assert expected.seconds > 0


def test_backward_forms_take_turns_and_leave_quantisers_as_they_were(rounded):
    x, y = some()
    forms = own_forms(rounded)
    assert list(forms) == ["own", "soft", "leaky"]
    gradients = []
    for network in forms.values():
        point = x.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(margin(network(point), y).sum(), point)[0])
    assert not torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])
    before = [one.backward for one in activation_quantizers(rounded)]
    assert before
    with pytest.raises(RuntimeError):
        InForm(rounded, "soft")(torch.rand(1, 7))
    assert [one.backward for one in activation_quantizers(rounded)] == before
    assert list(own_forms(digits_net())) == ["own"]


@BOTH
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_any_number_of_classes(classes, threat):
    model, (x, _) = smooth_net(classes=classes).eval(), batch(20)
    y = model(x).argmax(1)
    wide = threat.scaled(10)
    found = strong(model, x, y, threat=wide, generator=seeded())
    assert found.broken.any()
    assert torch.equal(~found.broken, right(model, found.x, y))


class Blind(nn.Module):
    """Cuts the way back: nothing but Square finds anything."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).detach()


def test_where_square_alone_finds_something_in_a_float_network_it_goes_on():
    (x, y), far = some(12), Threat("linf", 0.25)
    seeing, blind = (
        strong(model, x, y, threat=far, generator=seeded()) for model in (digits_net(), Blind(digits_net()))
    )
    assert len(seeing.parts) <= len(FLOAT) + 1
    assert len(blind.parts) > len(FLOAT) + 1
    assert blind.parts[len(FLOAT)].broken > 0
    assert sum(part.broken for part in blind.parts[len(FLOAT) + 1 :]) > 0
    memory = Kept(len(FLOAT) + 2)
    arguments = {"threat": far, "generator": seeded(), "memory": memory}
    with pytest.raises(Stopped):
        strong(Blind(digits_net()), x, y, **arguments)
    memory.most = None
    assert same(blind, strong(Blind(digits_net()), x, y, **(arguments | {"generator": seeded()})))


def test_a_tie_is_broken_as_a_verdict_has_it():
    """Equal logits, of which the first is the label: right for class 0, wrong for class 1."""
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    assert strong(model, x, y, threat=LINF, config=QUICK).broken.tolist() == [False, True]


def test_verdicts_are_not_made_in_half_precision():
    model, (x, y) = smooth_net(classes=4).eval(), batch(classes=4)
    expected = strong(model, x, y, threat=LINF, config=QUICK, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        found = strong(model, x, y, threat=LINF, config=QUICK, generator=seeded())
    assert torch.equal(found.lead, margin(model(found.x), y).detach())
    assert expected.lead.dtype == found.lead.dtype == torch.float32


def test_other_networks_may_give_the_gradient():
    """As the module that is rebuilt from a file does for its session."""
    x, y = some()
    hidden = Counted(Blind(digits_net()))
    found = strong(hidden, x, y, threat=LINF, config=QUICK, forms={"clipped": digits_net()}, generator=seeded())
    assert same(found, strong(digits_net(), x, y, threat=LINF, config=QUICK, generator=seeded()))
    assert hidden.gradients == 0


def test_square_goes_on_where_the_part_before_ended(monkeypatch, rounded):
    """Not from the best point ever, which is another for some; all parts in order."""
    (x, y), ends, starts = some(), [], []
    by_gradient, by_square = cascade.apgd, cascade.square_from

    def gradient(*arguments, **settings):
        found = by_gradient(*arguments, **settings)
        ends.append(LINF.project(found.x, arguments[1]))
        return found

    def squares(*arguments, start, **settings):
        starts.append(start)
        return by_square(*arguments, start=start, **settings)

    monkeypatch.setattr(cascade, "apgd", gradient)
    monkeypatch.setattr(cascade, "square_from", squares)
    strong(rounded, x, y, threat=LINF, generator=seeded())
    assert len(starts) == len(plan.TURNS)
    for end, start in zip(ends[1:], starts, strict=True):
        assert all(any(torch.equal(one, other) for other in end) for one in start)


def test_verdicts_are_on_points_that_the_network_can_be_given():
    (x, y), seen = some(), []

    def whole_steps(x_adv, x):
        seen.append(x_adv)
        return x + torch.trunc((x_adv - x) * 255) / 255

    found = strong(digits_net(), x, y, threat=LINF, config=QUICK, settle=whole_steps, generator=seeded())
    assert len(seen) == len(found.parts)
    steps = (found.x - x) * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert steps.abs().max() > 10
    assert torch.equal(~found.broken, right(digits_net(), found.x, y))


def test_no_images_and_no_logits():
    x, y = batch()
    found = strong(linear_net(), x[:0], y[:0], threat=LINF)
    assert (len(found.x), found.parts, found.names()) == (0, (), [])
    with pytest.raises(ModelError, match="expected logits"):
        strong(nn.Identity(), x, y, threat=LINF)


def test_by_name():
    x, y = some()
    for name, config in (("strong:quick", QUICK), ("strong:budget=100", StrongConfig(budget=100))):
        found = named(name, LINF).perturb(Scene(digits_net(), LINF), x, y, seeded())
        assert torch.equal(found, strong(digits_net(), x, y, threat=LINF, config=config, generator=seeded()).x)
