"""Quantised networks of tokens: a ViT's block, ConvNeXt's and Swin's, in every format."""

import copy
import functools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ExportError
from qrobust.export import write
from qrobust.export.target import load_target
from qrobust.export.write import check_ops, lower, optimised_ops
from qrobust.quant.exported import as_exported
from qrobust.quant.layers import quantized_activation, quantized_conv, quantized_linear
from qrobust.quant.quantizer import calibrating
from qrobust.runtime import sums_saturate

from ...quant.helpers import images
from ..quant_op import evaluate

X = images(5, side=8, channels=3)
TARGETS = ("ort-cpu", "ort-cpu-int8", "ort-cpu-float", "ort-cuda", "tensorrt", "openvino", "compact", "qonnx")


def linear(inputs, outputs, bits, bias=True):
    return quantized_linear(nn.Linear(inputs, outputs, bias=bias), bits, per_channel=True, inner=True)


def read(bits=7):
    return quantized_activation(bits, signed=True)


class Patches(nn.Module):
    """Images as 16 tokens of 8 numbers, and their classifier behind what is called `blocks`."""

    def __init__(self, *blocks):
        super().__init__()
        self.pixels = quantized_activation(8, signed=False, fixed=True)
        self.stem = quantized_conv(nn.Conv2d(3, 8, 2, 2), 8, per_channel=True, inner=False, fat=None)
        self.patches = quantized_activation(8, signed=True)
        self.blocks, self.norm, self.read, self.fc = nn.Sequential(*blocks), nn.LayerNorm(8), read(), linear(8, 4, 8)

    def forward(self, x):
        x = self.patches(self.stem(self.pixels(x))).flatten(2).transpose(1, 2)
        return self.fc(self.read(self.norm(self.blocks(x)).mean(1)))


class MLP(nn.Module):
    def __init__(self, bits):
        super().__init__()
        self.read, self.up, self.again, self.down = read(), linear(8, 16, bits), read(), linear(16, 8, bits, bias=False)

    def forward(self, x):
        return self.down(self.again(F.gelu(self.up(self.read(x)))))


class ViT(nn.Module):
    """Pre-norm attention and MLP; one quantiser for what query, key and value read."""

    def __init__(self, bits):
        super().__init__()
        self.norm, self.read, self.qkv = nn.LayerNorm(8), read(), linear(8, 24, bits)
        self.mixed, self.out = read(), linear(8, 8, bits)
        self.norm2, self.mlp = nn.LayerNorm(8), MLP(bits)

    def attended(self, x):
        q, k, v = self.qkv(self.read(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(self.mixed(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    def forward(self, x):
        x = x + self.attended(self.norm(x))
        return x + self.mlp(self.norm2(x))


class Swin(ViT):
    """Shifted windows of four tokens, with a mask made in place."""

    def attended(self, x):
        mask = x.new_zeros(16)
        mask[-2:] = 1
        windows = mask.roll(-2).view(4, 4)
        mask = windows.new_zeros((4, 4, 4)).masked_fill(windows[:, :, None] != windows[:, None], -100.0)
        x = x.roll(-2, 1).view(x.shape[0], 4, 4, 8).reshape(-1, 4, 8)
        q, k, v = self.qkv(self.read(x)).reshape(x.shape[0], 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        scores = scores.view(x.shape[0] // 4, 4, 2, 4, 4) + mask[:, None]
        mixed = scores.view(-1, 2, 4, 4).softmax(-1) @ v
        return self.out(self.mixed(mixed.transpose(1, 2).reshape(-1, 4, 8))).view(-1, 16, 8).roll(2, 1)


class ConvNeXt(nn.Module):
    """A depthwise convolution between quantisers, a norm of channels last, an MLP, a scale."""

    def __init__(self, bits):
        super().__init__()
        conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.read, self.again = read(), read()
        self.conv = quantized_conv(conv, bits, per_channel=True, inner=True, fat=None)
        self.norm, self.mlp, self.scale = nn.LayerNorm(8), MLP(bits), nn.Parameter(torch.full((8,), 0.7))

    def forward(self, x):
        y = x.transpose(1, 2).unflatten(2, (4, 4))
        y = self.norm(self.again(self.conv(self.read(y))).permute(0, 2, 3, 1))
        return x + (self.mlp(y) * self.scale).flatten(1, 2)


@functools.cache
def network(kind, bits):
    """Calibrated, not to be changed."""
    torch.manual_seed(0)
    model = Patches(kind(bits)).eval()
    with torch.no_grad(), calibrating(model):
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
        model(X)
    return model


@functools.cache
def program(kind, bits):
    """What torch.export reads, once for all targets: it takes longer than all that follows."""
    return write.exported(as_exported(copy.deepcopy(network(kind, bits))), X[:1])


@functools.cache
def file_of(kind, bits, target):
    read = program(kind, bits)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(write, "exported", lambda *_: read)
        return lower(network(kind, bits), X[:1], load_target(target))


def logits_of(data, x, exact=0):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", str(exact))
    return onnxruntime.InferenceSession(data, options).run(None, {"x": x.numpy()})[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("kind", "bits"), [(ViT, 8), (ViT, 4), (Swin, 8), (ConvNeXt, 4)])
def test_a_file_computes_what_torch_does(kind, bits, target):
    with torch.no_grad():
        expected = network(kind, bits)(X).numpy()
    data = file_of(kind, bits, target)
    if target == "qonnx":
        got = [evaluate(onnx.load_from_string(data), X.numpy())]
    else:
        # without VNNI sums saturate in a session that is not told otherwise
        got = [
            logits_of(data, X, exact)
            for exact in ((0,) if target == "tensorrt" else (0, 1))
            if exact or not sums_saturate()
        ]
    for found in got:
        limit = 0.1 if target == "ort-cuda" else 0.02  # a tie may fall to its other side
        assert np.abs(found - expected).max() < limit * np.abs(expected).max()


@pytest.mark.parametrize(("bits", "kind"), [(8, "INT8"), (4, "INT4")])
def test_every_product_of_integers_is_one_layer(bits, kind, tmp_path):
    data, path = file_of(ViT, bits, "ort-cpu"), tmp_path / "model.onnx"
    path.write_bytes(data)
    graph = onnx.load_from_string(data).graph
    stored = {t.name: onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer}
    assert {stored[f"blocks.0.{name}.weight"] for name in ("qkv", "out", "mlp.up", "mlp.down")} == {kind}
    ran = optimised_ops(path, load_target("ort-cpu"))
    assert ran["MatMulIntegerToFloat"] == 4
    assert (ran["QLinearConv"], ran["QGemm"]) == (1, 1)
    assert not ran["MatMulInteger"]
    assert ran["Add"] == 2  # of the residual stream: biases are inside
    check_ops(data, load_target("ort-cpu"), network(ViT, bits))


def test_what_stays_apart_is_refused_with_a_remedy_that_works():
    session = load_target("ort-cpu").session.model_copy(update={"graph_optimization_level": "basic"})
    slow = load_target("ort-cpu").model_copy(update={"session": session, "required_ops": ()})
    message = (
        r"^ort-cpu: expected 4 MatMulIntegerToFloat once optimised and no MatMulInteger, got 0 and 4; choose linear"
    )
    with pytest.raises(ExportError, match=message):
        check_ops(file_of(ViT, 8, "ort-cpu"), slow, network(ViT, 8))
    other = slow.model_copy(update={"linear": "qdq"})
    check_ops(lower(network(ViT, 8), X[:1], other), other, network(ViT, 8))
