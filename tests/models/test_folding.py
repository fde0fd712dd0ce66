"""Folding changes speed, not results; what it does not understand it leaves alone."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from qrobust.attacks import PgdConfig, pgd
from qrobust.distributed import SharedBatchNorm
from qrobust.models import build
from qrobust.models.inference import PassOn, folded, frozen
from qrobust.quant import QuantConfig, quantize
from qrobust.quant.quantizer import Quantizer
from qrobust.spectrum import FAT
from qrobust.threat import Threat


def images(side=8, n=3):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def lived_in(model):
    """With batch-norm that is far from the identity, some of its γ negative; in eval mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def pair(*arguments, norm=None, **options):
    """A network with one convolution, its batch-norm and a classifier."""
    torch.manual_seed(0)
    conv = nn.Conv2d(*arguments, **options)
    norm = norm or nn.BatchNorm2d(conv.out_channels)
    return nn.Sequential(conv, norm, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(conv.out_channels, 3))


class Wired(nn.Module):
    """Convolutions and batch-norms, connected by a function of (network, x)."""

    def __init__(self, wires):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.bn, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.same = self.bn  # one module under two names
        self.wires = wires

    def forward(self, x):
        return self.wires(self, x).mean((2, 3))


FOLDED = {
    "resnet8": (lambda: build("resnet8", in_channels=3, classes=4), 9),
    "resnet20": (lambda: build("resnet20", in_channels=3, classes=4, shortcut="A"), 19),
    "bias": (lambda: pair(3, 6, 3), 1),
    "not affine": (lambda: pair(3, 6, 3, bias=False, norm=nn.BatchNorm2d(6, affine=False)), 1),
    "stride, groups, dilation": (lambda: pair(3, 6, 3, stride=2, groups=3, dilation=2, padding=2), 1),
    "padding by name": (lambda: pair(3, 6, 3, padding="same"), 1),
    "uneven": (lambda: pair(3, 6, (1, 3), stride=(1, 2), padding=(0, 1)), 1),
    "large eps": (lambda: pair(3, 6, 3, norm=nn.BatchNorm2d(6, eps=0.7)), 1),
    "shared statistics": (lambda: pair(3, 6, 3, norm=SharedBatchNorm(6)), 1),
    "shared on GPUs": (lambda: pair(3, 6, 3, norm=nn.SyncBatchNorm(6)), 1),
    "by keyword": (lambda: Wired(lambda m, x: m.bn(input=m.conv(input=x))), 1),
    "two pairs": (lambda: Wired(lambda m, x: m.other(m.second(m.bn(m.conv(x)).relu()))), 2),
    "norm read twice": (lambda: Wired(lambda m, x: (y := m.bn(m.conv(x))) * y), 1),
    "one of two": (lambda: Wired(lambda m, x: m.other(m.bn(m.conv(x)))), 1),
}


class Shaky(nn.BatchNorm2d):
    """A batch-norm that does more than one."""

    def forward(self, input):
        return super().forward(input) * 2


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def hooked(which):
    """One of the pair has somebody behind it who changes what it gives."""
    model = pair(3, 6, 3)
    model[which].register_forward_hook(lambda module, args, output: output.clamp(-0.2, 0.2))
    return model


def with_weight_norm():
    """The weight is computed when the layer is called: what the attribute holds may be old."""

    def compute(module, args):
        module.weight.data.copy_(module.weight.sign() / 5)

    model = pair(3, 6, 3)
    model[0].register_forward_pre_hook(compute)
    return model


def parametrised():
    model = pair(3, 6, 3)
    parametrize.register_parametrization(model[0], "weight", Doubled())
    return model


def replaced(which):
    model = pair(3, 6, 3)
    original = model[which].forward
    model[which].forward = lambda x: original(x) + 1
    return model


def branching(model, x):
    return model.bn(model.conv(x)) if x.mean() > 0.4 else x


LEFT = {
    "read twice": lambda: Wired(lambda m, x: m.bn(y := m.conv(x)) + y),
    "norm called twice": lambda: Wired(lambda m, x: m.bn(m.second(m.bn(m.conv(x))))),
    "norm called by two names": lambda: Wired(lambda m, x: m.same(m.second(m.bn(m.conv(x))))),
    "convolution called twice": lambda: Wired(lambda m, x: m.bn(m.conv(m.conv(x)))),
    "norm before": lambda: Wired(lambda m, x: m.conv(m.bn(x))),
    "something between": lambda: Wired(lambda m, x: m.bn(m.conv(x).relu())),
    "reflected": lambda: pair(3, 6, 3, padding=1, padding_mode="reflect"),
    "without statistics": lambda: pair(3, 6, 3, norm=nn.BatchNorm2d(6, track_running_stats=False)),
    "norm of another kind": lambda: pair(3, 6, 3, norm=Shaky(6)),
    "convolution with a hook": lambda: hooked(0),
    "norm with a hook": lambda: hooked(1),
    "weight norm": with_weight_norm,
    "parametrised": parametrised,
    "convolution replaced": lambda: replaced(0),
    "norm replaced": lambda: replaced(1),
    "data-dependent": lambda: Wired(branching),
    "no convolution": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 3)),
}


def passed_by(model):
    """How many norms an identity stands for."""
    return sum(isinstance(module, PassOn) for module in model.modules())


def logits_and_gradient(model, x):
    x = x.clone().requires_grad_(True)
    logits = model(x)
    (gradient,) = torch.autograd.grad((logits * torch.arange(1.0, 1 + logits.shape[1])).sum(), x)
    return logits.detach(), gradient


@pytest.mark.parametrize(("make", "pairs"), FOLDED.values(), ids=FOLDED)
def test_folded_networks_give_the_same_but_for_rounding(make, pairs):
    model, x = lived_in(make()), images()
    before = logits_and_gradient(model, x)
    with folded(model):
        assert passed_by(model) == pairs
        inside = logits_and_gradient(model, x)
    for got, expected in zip(inside, before, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert not passed_by(model)
    assert all(map(torch.equal, logits_and_gradient(model, x), before))


@pytest.mark.parametrize("make", LEFT.values(), ids=LEFT)
def test_what_cannot_be_folded_is_left_alone(make):
    model, x = lived_in(make()), images()
    before, standing = logits_and_gradient(model, x), passed_by(model)
    with folded(model):
        assert passed_by(model) == standing
        assert all(map(torch.equal, logits_and_gradient(model, x), before))
    assert passed_by(model) == standing


def test_the_other_branch_of_a_network_that_looks_at_its_images():
    model, dark = lived_in(Wired(branching)), images() / 9
    with folded(model):
        assert torch.equal(model(dark), dark.mean((2, 3)))


def test_a_network_in_train_mode_is_left_alone():
    model, x = lived_in(pair(3, 6, 3)).train(), images()
    before = model(x)
    with folded(model):
        assert not passed_by(model)
        assert torch.equal(model(x), before)
    with folded(model.eval()):
        assert passed_by(model) == 1  # looked at again, in eval mode


def test_what_a_network_does_in_train_mode_says_nothing_of_eval_mode():
    wires = lambda m, x: m.bn(m.conv(x)) if m.training else m.bn(y := m.conv(x)) + y  # noqa: E731
    model, x = lived_in(Wired(wires)), images()
    expected = model(x)
    with folded(model.train()), folded(model.eval()):
        assert torch.equal(model(x), expected)


def test_a_norm_in_train_mode_is_left_alone():
    model = lived_in(pair(3, 6, 3))
    model[1].train()
    with folded(model):
        assert not passed_by(model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(error):
    model, x = lived_in(build("resnet8", in_channels=3, classes=4)), images()
    before = model(x)
    with pytest.raises(error), folded(model):
        raise error
    assert not passed_by(model)
    assert torch.equal(model(x), before)


def test_one_inside_another():
    model, x = lived_in(pair(3, 6, 3)), images()
    before = model(x)
    with folded(model):
        outer = model(x)
        with folded(model):
            assert torch.equal(model(x), outer)
        assert torch.equal(model(x), outer)
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("fold", [True, False])
def test_one_quantised_network_inside_another(fold):
    """What the outer one folded into a weight, the inner one leaves there: its norm is the identity by then."""
    model = lived_in(build("resnet8", in_channels=3, classes=4))
    model, x = quantize(model, QuantConfig(4), calibration=[images(n=8)]).eval(), images()
    before = model(x)
    with frozen(model):
        outer = model(x)
        with frozen(model, fold=fold):
            assert torch.equal(model(x), outer)
        assert torch.equal(model(x), outer)
    assert torch.equal(model(x), before)


def test_hooks_see_images_only():
    """Of a block within, too: looking for pairs is not a call."""
    model, seen = lived_in(build("resnet8", in_channels=3, classes=4)), []
    for listening in (model, model.layer2, model.layer3[0].bn1):
        listening.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    with folded(model):
        assert not seen
        model(images())
        assert passed_by(model) == 9 - 3 - 1  # without those of layer2, and the one that is listened to
    assert seen == [torch.Tensor] * 3


def test_new_weights_are_folded_anew():
    model, x = lived_in(pair(3, 6, 3)), images()
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.mul_(-2)
            model[1].running_mean.add_(0.5)
        expected = model(x)
        with folded(model):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_a_layer_taken_out_after_it_was_looked_at():
    model, x = lived_in(pair(3, 6, 3)), images()
    with folded(model):
        pass
    model[1] = nn.Identity()
    expected = model(x)
    with folded(model):
        assert torch.equal(model(x), expected)


def test_random_numbers_are_not_used_up():
    """By networks that draw some: what they are to draw comes as if nobody had looked."""
    model = lived_in(Wired(lambda m, x: m.bn(m.conv(x + torch.rand(1) / 9))))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with folded(model):
        assert passed_by(model) == 1
        assert torch.equal(torch.get_rng_state(), state)


def test_weights_are_as_before_and_the_same_objects():
    model = lived_in(pair(3, 6, 3))
    objects, before = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    with folded(model):
        model(images())
    assert all(value is objects[name] for name, value in model.named_parameters())
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_norm_that_is_called_past_its_parent_is_the_identity_too():
    model, x = lived_in(Wired(lambda m, x: m.listed[0](m.conv(x)))), images()
    model.listed = [model.bn]  # no ModuleList
    before = logits_and_gradient(model, x)
    with folded(model):
        assert passed_by(model) == 1
        inside = logits_and_gradient(model, x)
    for got, expected in zip(inside, before, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


# Inside attacks


def test_an_attack_is_the_same_but_for_rounding():
    model, x, y = lived_in(build("resnet8", in_channels=3, classes=4)), images(), torch.arange(3)
    outcomes = []
    for fold in (True, False):
        with frozen(model, fold=fold):
            assert bool(passed_by(model)) == fold
            outcomes.append(logits_and_gradient(model, x)[1])
    torch.testing.assert_close(*outcomes, atol=1e-5, rtol=1e-4)
    x_adv = pgd(model, x, y, threat=Threat("linf", 0.1), config=PgdConfig(steps=2))
    assert not passed_by(model)
    assert not torch.equal(x_adv, x)


def test_train_mode_does_not_fold():
    model = lived_in(pair(3, 6, 3))
    with frozen(model, training=True):
        assert not passed_by(model)


@pytest.mark.parametrize("edges", ["int8", "float"])
def test_a_quantised_network_is_folded_without_proxies(monkeypatch, edges):
    """Every convolution computes its weight once, behind FAT and quantiser; none of them ever sees a trace."""
    model = lived_in(build("resnet8", in_channels=3, classes=4))
    model = quantize(model, QuantConfig(4, edge_layers=edges), calibration=[images(n=8)]).eval()
    seen = []
    for kind in (Quantizer, FAT):
        original = kind.forward
        monkeypatch.setattr(kind, "forward", lambda self, x, run=original: seen.append(type(x)) or run(self, x))
    x, expected = images(), model(images())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    seen.clear()
    with frozen(model):
        assert passed_by(model) == norms > 0
        for _ in range(2):
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)
    assert seen
    assert fx.Proxy not in seen
    assert all(getattr(module, "computed", None) is None for module in model.modules())
    assert torch.equal(model(x), expected)
