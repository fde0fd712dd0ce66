"""Quantisation without training: what is repaired, layer by layer, and what is not touched."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.quant import QuantConfig, posttraining, quantize, quantizers
from qrobust.quant.equalize import equalize
from qrobust.quant.layers import quantized_conv, quantized_linear
from qrobust.quant.posttraining import PtqConfig, _outputs, _Rows, _windows, adaround, ptq
from qrobust.quant.quantizer import WEIGHT, Quantizer

from .helpers import images, shake_norms
from .test_calibration import digits, trained

W4 = QuantConfig(4, activation_bits=8, fat="none")


def distance(model):
    """Of the logits from the trained network's, as a share of their spread."""
    x, _ = digits()
    with torch.no_grad():
        wanted = trained()(x)
        return float((model.eval()(x) - wanted).square().mean() / wanted.var())


def test_every_repair_brings_the_logits_nearer():
    x, _ = digits()
    asked = (PtqConfig(bias_correction=False), PtqConfig(), PtqConfig(adaround=200))
    apart = [distance(ptq(trained(), W4, calibration=x[:256], settings=settings)[0]) for settings in asked]
    assert apart[0] == pytest.approx(distance(quantize(trained(), W4, calibration=x[:256])))
    assert apart[0] > apart[1] > 2 * apart[2]


def test_what_it_costs_is_said_by_layer():
    x, _ = digits()
    _, errors = ptq(trained(), W4, calibration=x[:128], settings=PtqConfig(adaround=50))
    assert [(one.name, one.bits) for one in errors] == [("0", 8), ("3", 4), ("6", 4), ("11", 8)]
    assert all(0 < one.left <= one.nearest for one in errors)
    assert errors[1].nearest > 10 * errors[0].nearest


def test_the_network_given_and_batch_norm_s_statistics_stay():
    before = {name: value.clone() for name, value in trained().state_dict().items()}
    made, _ = ptq(trained(), W4, calibration=images(), settings=PtqConfig(adaround=5, equalize=True))
    assert all(torch.equal(before[name], value) for name, value in trained().state_dict().items())
    kept = {name: value for name, value in made.state_dict().items() if "running" in name}
    assert kept
    assert all(torch.equal(before[name], value) for name, value in kept.items())


def test_fat_is_refused():
    with pytest.raises(ModelError, match=r"expected fat='none' without training, got 'normalised'"):
        ptq(trained(), QuantConfig(4), calibration=images())
    with pytest.raises(ModelError, match=r"expected 0 or more steps of AdaRound, got -1"):
        PtqConfig(adaround=-1)


@pytest.mark.parametrize("norm", [False, True])
def test_mean_outputs_are_the_float_layer_s(norm):
    torch.manual_seed(0)
    behind = [nn.BatchNorm2d(6)] if norm else []
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=not norm), *behind, nn.Flatten(), nn.Linear(216, 4)).eval()
    shake_norms(model)
    x, config = images(64, channels=3), QuantConfig(3, edge_layers="int8", fat="none", classifier="n")
    with torch.no_grad():
        wanted = model[: 1 + norm](x).mean((0, 2, 3))
        means = []
        for settings in (PtqConfig(bias_correction=False), PtqConfig()):
            made, _ = ptq(model, config, calibration=x, settings=settings)
            nodes = [node for node in made.graph.nodes if str(node.target) == str(int(norm))]
            means.append(_value(made.eval(), nodes[0], x).mean((0, 2, 3)))
    assert (means[1] - wanted).abs().max() < (means[0] - wanted).abs().max() / 2


def _value(graph, wanted, x):
    run = torch.fx.Interpreter(graph, garbage_collect_values=False)
    run.run(x)
    return run.env[wanted]


CONVOLUTIONS = {
    "plain": {},
    "strided, padded": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": (2, 1)},
    "grouped": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4, "padding": 1},
    "same": {"padding": "same"},
    "reflecting": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_rows_are_what_a_convolution_multiplies(options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, bias=False, **options)
    layer, x, groups = (
        quantized_conv(conv, 8, per_channel=True, inner=True, fat=None),
        torch.rand(2, 4, 8, 8),
        conv.groups,
    )
    rows = _windows(layer, x, groups) @ conv.weight.reshape(groups, 8 // groups, -1).mT
    assert torch.allclose(rows, _outputs(conv(x), groups), atol=1e-6)


def test_rows_of_tokens():
    linear, x = nn.Linear(5, 3, bias=False), torch.rand(2, 7, 5)
    layer = quantized_linear(linear, 8, per_channel=True, inner=True)
    assert torch.allclose(_windows(layer, x, 1) @ linear.weight.T, _outputs(linear(x), 1), atol=1e-6)


def test_adaround_finds_nearly_the_best_of_all_roundings():
    """Of inputs that hang together, where rounding each weight to nearest is far from it."""
    torch.manual_seed(0)
    read = torch.randn(1, 500, 3) @ torch.randn(3, 7) + 0.1 * torch.randn(1, 500, 7)
    read = read - read.mean(1, keepdim=True)
    weight, scale, quantizer = torch.randn(1, 5, 7), torch.full((1, 5, 1), 0.4), Quantizer(4, WEIGHT)
    rows = _Rows(read, read @ weight.mT, read.mean(1), torch.zeros(1, 5))
    found = rows.error(adaround(weight, scale, quantizer, rows, steps=100))
    nearest = rows.error((weight / scale).round() * scale)
    floor = (weight / scale).floor()
    every = torch.stack(
        [rows.error((floor + torch.tensor(up)) * scale) for up in itertools.product((0.0, 1.0), repeat=7)]
    )
    assert (found <= nearest).all()
    assert found.sum() < 0.4 * nearest.sum()
    assert found.sum() < 3 * every.amin(0).sum()


def test_adaround_stays_on_the_grid():
    torch.manual_seed(0)
    weight, quantizer = 3 * torch.randn(1, 4, 6), Quantizer(3, WEIGHT)
    read = torch.randn(1, 50, 6)
    rows = _Rows(read, read @ weight.mT, read.mean(1), torch.zeros(1, 4))
    steps = adaround(weight, torch.tensor(0.5), quantizer, rows, steps=20) / 0.5
    assert torch.equal(steps, steps.round())
    assert steps.abs().max() <= 3


class Chain(nn.Module):
    """Convolution, depthwise convolution, convolution, with batch-norm and a ReLU or another function between."""

    def __init__(self, function):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.last = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)
        self.function = function

    def forward(self, x):
        x = self.function(self.norm(self.first(x)))
        return self.last(F.relu(self.depthwise(x))).mean((2, 3))


def uneven(function):
    torch.manual_seed(0)
    model = Chain(function).eval()
    shake_norms(model)
    with torch.no_grad():
        model.first.weight.mul_(torch.logspace(-2, 1, 8).view(-1, 1, 1, 1))
    return model


@torch.no_grad()
def spread(model, channels):
    """How unlike the depthwise channels' weights are before and behind the first activation."""
    factor = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).abs()
    before = factor * model.first.weight.abs().flatten(1).amax(1)
    behind = model.depthwise.weight.abs().flatten(1).amax(1)
    return float((before / behind)[channels].log().abs().mean())


@pytest.mark.parametrize("function", [nn.ReLU(), F.relu, torch.relu])
def test_equalised_ranges_are_alike_and_the_function_stays(function):
    model, x = uneven(function), images(channels=3)
    made = equalize(model, [x])
    assert torch.allclose(made(x), model(x), atol=1e-5)
    factor = made.norm.weight / (made.norm.running_var + made.norm.eps).sqrt()
    before = (factor * made.first.weight.abs().flatten(1).amax(1)).abs()
    behind = made.depthwise.weight.abs().flatten(1).amax(1)
    assert torch.allclose(before, behind, rtol=0.05)
    assert not torch.equal(model.depthwise.weight, made.depthwise.weight)


def test_no_channel_is_scaled_through_another_function():
    model = uneven(nn.SiLU())
    assert torch.equal(equalize(model, [images(channels=3)]).first.weight, model.first.weight)


@pytest.mark.parametrize("function", [nn.ReLU6(), F.relu6, nn.Hardtanh(-3, 2), nn.Hardtanh(0, 6)])
def test_between_bounds_a_channel_is_scaled_as_far_as_it_has_room(function):
    model, x = uneven(function), images(channels=3)
    with torch.no_grad():  # of even weights before, uneven ones behind
        model.first.weight.div_(torch.logspace(-2, 1, 8).view(-1, 1, 1, 1))
        model.norm.weight.div_(2)
        model.depthwise.weight.mul_(torch.logspace(-1, 1, 8)[torch.randperm(8)].view(-1, 1, 1, 1))
        model.norm.bias[0] = 7.0  # beyond every bound
    made = equalize(model, [x[:20], x[20:]])
    assert torch.allclose(made(x), model(x), atol=1e-5)
    assert torch.equal(made.norm.weight[0], model.norm.weight[0])
    assert not torch.equal(made.norm.weight[1:], model.norm.weight[1:])
    assert spread(made, slice(1, None)) < 0.5 * spread(model, slice(1, None))


@pytest.mark.slow
def test_a_mobilenet_is_equalised_and_stays_the_same():
    torch.manual_seed(0)
    model, x = build("mobilenet_v2", in_channels=3, classes=4).eval(), images(12, channels=3)
    shake_norms(model)
    made, depthwise = equalize(model, [x]), "features.2.conv.1.0"
    assert torch.allclose(made(x), model(x), atol=1e-4)
    ranges = [one.get_submodule(depthwise).weight.abs().flatten(1).amax(1).log() for one in (model, made)]
    assert not torch.equal(*ranges)


def test_tensors_that_layers_share_are_scaled_and_rounded_apart():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU()
    model, x = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 3)).eval(), images(32, channels=3)
    model[4].weight, model[4].bias = model[2].weight, model[2].bias
    assert torch.allclose(equalize(model, [x])(x), model(x), atol=1e-5)
    made, errors = ptq(model, W4, calibration=x, settings=PtqConfig(adaround=20))
    assert not torch.equal(made.get_submodule("2").weight, made.get_submodule("4").weight)
    assert all(one.left <= one.nearest for one in errors)


def test_a_layer_that_is_called_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.last = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 4)

        def forward(self, x):
            return self.last(F.relu(self.layer(F.relu(self.layer(x))))).flatten(1)

    with pytest.raises(ModelError, match="expected layers called once, got layer twice; give every call its own"):
        ptq(Twice().eval(), W4, calibration=images(16, channels=3))


def test_few_images_are_refused():
    with pytest.raises(ModelError, match="expected 10 calibration images or more without training, got 1; give some"):
        ptq(trained(), W4, calibration=digits()[0][:1])


@pytest.mark.parametrize(("bound", "most"), [("MOST_HELD", 30_000), ("MOST_AT_ONCE", 5_000)])
def test_what_is_held_is_bounded_and_the_result_stays(bound, most, monkeypatch):
    x, config = digits()[0][:40], PtqConfig(adaround=10)
    model, errors = ptq(trained(), W4, calibration=x.split(16), settings=config)
    monkeypatch.setattr(posttraining, bound, most)
    walks, start = [], posttraining._Walk.__init__
    monkeypatch.setattr(
        posttraining._Walk, "__init__", lambda walk, *given: (walks.append(walk), start(walk, *given))[1]
    )
    again, found = ptq(trained(), W4, calibration=x.split(16), settings=config)
    assert [one.left for one in found] == pytest.approx([one.left for one in errors], rel=1e-4)
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        step = 2e-4 if name == "11.bias" else 1e-5  # of its accumulator: sums in other parts may round to the next
        assert torch.allclose(a, b, atol=step), name
    for one in walks:
        kept = sum(value.nbytes for part in one.held for value in part.values())
        assert 0 < kept <= most if bound == "MOST_HELD" else all(len(part) == 1 for part in one.parts)


# Calibrators


def test_clips_hold_what_their_name_says():
    x = torch.stack([torch.arange(1000.0) / 1000, torch.arange(1000.0) / 500])
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with pytest.raises(ModelError, match="expected calibrator 'mse'"):
        QuantConfig(8, calibrator="max")
    del model
    for name, expected in {"min-max": 1.998, "percentile-99.9": (0.998 + 1.996) / 2}.items():
        quantizer = Quantizer(4, WEIGHT.__class__(signed=False, narrow=False, masked=True))
        quantizer.observed, quantizer.calibrator = 0, name
        for batch in x.flip(0):
            quantizer(batch)
        assert float(quantizer.effective_clip().detach()) == pytest.approx(expected)


def test_a_calibrator_reaches_every_quantiser():
    x, _ = digits()
    clips = {}
    for name in ("mse", "min-max", "percentile-99.9"):
        made = quantize(trained(), QuantConfig(4, fat="none", calibrator=name), calibration=x[:256])
        clips[name] = [float(one.effective_clip().detach().max()) for one in quantizers(made) if not one.fixed]
    assert all(a <= b * 1.0001 for a, b in zip(clips["mse"], clips["min-max"], strict=True))
    activations = [k for k, one in enumerate(q for q in quantizers(made) if not q.fixed) if one.masked]
    assert all(clips["percentile-99.9"][k] < clips["min-max"][k] for k in activations)
