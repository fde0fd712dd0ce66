"""`export_model` writes what was evaluated, in a file that runs however it is opened, or nothing."""

import copy
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ExportError, ParityError
from qrobust.export.lowering import forms, layers
from qrobust.export.parity import Difference, Parity, judge
from qrobust.export.target import load_target
from qrobust.export.write import export_model, optimised_ops
from qrobust.quant import QuantConfig, calibrate, quantize, round_biases
from qrobust.runtime import sums_saturate

from ..quant.helpers import Does, images

X = images(16, side=16, channels=3)
ACCUMULATORS = (1,) if sums_saturate() else (0, 1)  # session.x64quantprecision; without VNNI sums saturate at 0


class Beside(nn.Module):
    """A convolution beside what it reads, on other scales."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return torch.cat([x, 10 * self.conv(x)], 1)


class Gated(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x.mean((2, 3), keepdim=True))


def dead(network):
    """A channel as weight decay leaves it: no weights, a bias."""
    with torch.no_grad():
        network[0].weight[2], network[0].bias[2] = 0, 0.5
    return network


def body(layer=None, channels=8):
    """conv, relu, the layer, conv, relu, pool, classifier."""
    torch.manual_seed(0)
    middle = [] if layer is None else [layer]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *middle, nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


def head(*layers):
    torch.manual_seed(0)
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), *pool, *layers).eval()


def wrapped(pads):
    return Does(lambda x: F.pad(x, pads, mode="circular"))


def equal(layer):
    return (layer, nn.ReLU(), copy.deepcopy(layer))


NETWORKS = {
    "dead channel": lambda: dead(body()),
    "no bias": lambda: head(nn.Linear(8, 5, bias=False)),
    "two of one width": lambda: head(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)),
    "two that are equal": lambda: head(*equal(nn.Linear(8, 8))),
    "reflect": lambda: body(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
    "replicate": lambda: body(nn.Conv2d(8, 8, 3, padding=1, padding_mode="replicate")),
    "circular": lambda: body(nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")),
    "F.pad circular": lambda: body(wrapped((2, 1, 0, 1))),
    "signed circular": lambda: body(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.2, 0.2), wrapped((1, 1, 1, 1)))),
    "F.pad reflect": lambda: body(Does(lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"))),
    "F.pad zeros": lambda: body(Does(lambda x: F.pad(x, (1, 0, 2, 0)))),
    "signed zeros": lambda: body(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Hardtanh(-0.2, 0.2), nn.ZeroPad2d(1))),
    "same": lambda: body(nn.Conv2d(8, 8, 3, padding="same", dilation=2)),
    "same, even": lambda: body(nn.Conv2d(8, 8, 2, padding="same", dilation=3)),
    "no weights in batch-norm": lambda: body(nn.BatchNorm2d(8, affine=False)),
    "shuffled channels": lambda: body(nn.ChannelShuffle(2)),
    "equal parts": lambda: body(nn.AdaptiveAvgPool2d(4)),
    "largest parts": lambda: body(nn.AdaptiveMaxPool2d(4)),
    "dilated pool": lambda: body(nn.MaxPool2d(2, dilation=2)),
    "ceiled pool": lambda: body(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "padded average": lambda: body(nn.AvgPool2d(3, 2, 1)),
    "average without pads": lambda: body(nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "beside": lambda: body(Beside(), 16),
    "gated": lambda: body(Gated()),
    "constants": lambda: body(Does(lambda x: -2 * x + 0.7)),
    "half of the channels": lambda: body(Does(lambda x: x[:, :4]), 4),
    **{name: lambda layer=layer: body(layer()) for name, layer in {
        "leaky": nn.LeakyReLU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU, "relu6": nn.ReLU6,
        "dropout": nn.Dropout,
    }.items()},
}  # fmt: skip


@torch.no_grad()
def assert_runs(path, model):
    """With both settings, and with the network's logits."""
    expected = model(X).numpy()
    for setting in ACCUMULATORS:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.x64quantprecision", str(setting))
        (logits,) = onnxruntime.InferenceSession(str(path), options).run(None, {"x": X.numpy()})
        assert np.abs(logits - expected).max() < 0.01 * np.abs(expected).max(), setting


BROKEN = (
    "dead channel", "no bias", "two of one width", "two that are equal", "reflect", "circular", "signed circular",
    "same", "same, even",
)  # fmt: skip
FAST = {(name, "ort-cpu") for i, name in enumerate(NETWORKS) if i % 3 == 1 or name in BROKEN} | {
    (name, ("compact", "ort-cpu-float")[i % 2]) for i, name in enumerate(BROKEN) if i % 3 == 0
}
CASES = [
    pytest.param(name, target, marks=() if (name, target) in FAST else pytest.mark.slow)
    for name in NETWORKS
    for target in ("ort-cpu", "compact", "ort-cpu-float")
]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_what_is_quantised_is_written_and_runs(name, target, tmp_path):
    model = quantize(NETWORKS[name](), QuantConfig(8, fat="none"), calibration=X).eval()
    assert_runs(export_model(model, X, target=target, path=tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("name", ["no bias", "reflect", "circular", "F.pad circular"])
def test_it_is_integers_all_the_way(name, tmp_path):
    model = quantize(NETWORKS[name](), QuantConfig(8, fat="none"), calibration=X)
    ran = optimised_ops(export_model(model, X, path=tmp_path / "model.onnx"), load_target("ort-cpu"))
    assert ran["QGemm"] == 1
    assert not {"Conv", "MatMul", "FusedMatMul", "Gemm", "DequantizeLinear"} & set(ran)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("target", ["ort-cpu", "compact"])
def test_few_bits_of_a_dead_channel_too(target, bits, tmp_path):
    model = quantize(dead(body()), QuantConfig(bits, fat="none"), calibration=X).eval()
    assert_runs(export_model(model, X, target=target, path=tmp_path / "model.onnx"), model)


@pytest.mark.parametrize("bits", [2, 8])
def test_biases_that_training_moved_are_refused_and_the_remedy_works(bits, tmp_path):
    model = quantize(body(), QuantConfig(bits, fat="none"), calibration=None).eval()
    calibrate(model, X)
    path = tmp_path / "model.onnx"
    with pytest.raises(ExportError, match=r"^0: expected a bias on its accumulator's grid.*call qrobust.quant.round"):
        export_model(model, X, path=path)
    assert not path.exists()
    round_biases(model)
    assert_runs(export_model(model, X, path=path), model)


def test_what_a_target_requires_is_asked_and_the_layer_named(tmp_path, monkeypatch):
    monkeypatch.setattr(forms.Integer, "carries", False)
    model = quantize(body(wrapped((1, 1, 1, 1))), QuantConfig(8, fat="none"), calibration=X)
    message = r"^ort-cpu: expected 2 QLinearConv once .* got 1, and a float one for 3; choose a target .*, as compact"
    with pytest.raises(ExportError, match=message):
        export_model(model, X, path=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
    export_model(model, X, path=tmp_path / "model.onnx", target="compact")


@pytest.mark.parametrize("target", ["ort-cpu", "compact"])
def test_a_file_that_computes_something_else_is_not_left_and_its_layer_is_named(target, tmp_path, monkeypatch):
    right = forms.Form.layer

    def wrong(form, graph, layer):
        weight = layer.weight
        scaled = replace(weight, scale=weight.scale * np.float32(1.2 if layer.name == "2" else 1))
        return right(form, graph, replace(layer, weight=scaled))

    monkeypatch.setattr(forms.Form, "layer", wrong)
    model = quantize(body(), QuantConfig(8, fat="none"), calibration=X).eval()
    message = rf"^{target}: expected a file that computes what torch does, but 3 differs from torch's by \d+ steps, tol"
    with pytest.raises(ParityError, match=message) as caught:
        export_model(model, X[:1], target=target, path=tmp_path / "model.onnx")  # one image is enough
    assert not list(tmp_path.iterdir())
    assert caught.value.exit_code == 1


def test_a_float_network_is_judged_by_its_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(layers, "_times", lambda weight, factor: weight)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.weight, 0.99, 1.01)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.Flatten(), nn.Linear(8 * 14 * 14, 5)).eval()
    with pytest.raises(ParityError, match=r"^ort-cpu: .* logits of the median image moved by .* tolerated 0.001"):
        export_model(model, X, path=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_has_no_form_is_told_in_one_line_with_operator_and_module(tmp_path, capfd):
    message = r"^ort-cpu: 2: adaptive_max_pool2d.default: expected a pool that divides its input, got \[16, 16\] into"
    with pytest.raises(ExportError, match=message) as caught:
        export_model(body(nn.AdaptiveMaxPool2d(5)), X, path=tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"^ort-cpu: 2: sort.default: expected an operator that has a form in ONNX"):
        export_model(body(Does(lambda x: x.sort(dim=1)[0])), X, path=tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_what_torch_does_not_capture_is_told_in_one_line(tmp_path, capfd):
    message = r"^ort-cpu: expected a network that torch.export captures for any number of images, got: .*; write what"
    for function in (lambda x: x if x.mean() > 0 else -x, lambda x: x.reshape(2, 8, 16, 16)):
        with pytest.raises(ExportError, match=message) as caught:
            export_model(body(Does(function)), X, path=tmp_path / "model.onnx")
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("example", [X - 1, X[0], X[:0], X * float("nan")])
def test_examples_are_images(example, tmp_path):
    with pytest.raises(ExportError, match=r"^expected example images \(n, c, h, w\) in \[0, 1\], got"):
        export_model(body(), example, path=tmp_path / "model.onnx")


def found(n=100, flips=0.0, change=0.0, largest=0):
    layers = (Difference("a", 8, 0.1, 10, 0.0, 0, "act"), Difference("b", 8, 0.1, 10, 0.1, largest, "act2"))
    return Parity("all", n, flips, 0.0, layers, change)


@pytest.mark.parametrize(
    ("target", "whole", "alone", "broken"),
    [
        ("ort-cpu", found(), found(), []),
        ("ort-cpu", found(largest=200), found(largest=1), []),  # an echo of ties
        ("ort-cpu", found(), found(largest=2), ["steps"]),
        ("ort-cuda", found(), found(largest=16), []),
        ("ort-cuda", found(change=0.1), found(largest=17), ["steps"]),
        ("ort-cpu", found(flips=0.01), found(), []),  # one of 100
        ("ort-cpu", found(n=1000, flips=0.005), found(), []),
        ("ort-cpu", found(n=1000, flips=0.006), found(), ["label_flips"]),
        ("ort-cpu", found(flips=0.02, change=0.002), found(), ["label_flips"]),
        ("ort-cpu", found(change=0.002), found(change=0.002), ["logit_change"]),
    ],
)
def test_the_verdict(target, whole, alone, broken):
    verdicts = judge(whole, alone, load_target(target))
    assert [verdict.name for verdict in verdicts if not verdict.passed] == broken
    for verdict in verdicts:
        assert verdict.passed == (verdict.measured <= verdict.limit)
        assert verdict.reason
        assert verdict.hint
    assert "act2 differs" in verdicts[0].reason or not alone.layers[1].largest
