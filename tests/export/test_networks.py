"""Networks of others through the whole path: captured, a step trained, written, run both ways, compared, attacked."""

import sys
from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.export.parity import parity
from qrobust.export.target import load_target
from qrobust.export.write import written
from qrobust.models import build
from qrobust.models.vit import VisionTransformer
from qrobust.onnx_module import load_onnx
from qrobust.quant import QuantConfig, quantize
from qrobust.torchvision_cpu import import_torchvision

from ..quant.helpers import images

sys.path.append(str(Path(__file__).resolve().parents[2] / "benches"))
import networks

models = import_torchvision().models
CNBlock, MBConv, V3 = (
    models.convnext.CNBlockConfig,
    models.efficientnet.MBConvConfig,
    models.mobilenetv3.InvertedResidualConfig,
)


def vision_transformer():
    return models.VisionTransformer(16, 4, 1, 2, 16, 32, num_classes=10)


def swin():
    return models.SwinTransformer([2, 2], 8, [2], [2], [2, 2], num_classes=10)


def convnext():
    return models.ConvNeXt([CNBlock(8, 16, 1), CNBlock(16, None, 1)], num_classes=10)


def mobilenet():
    rows = [V3(16, 3, 16, 16, True, "RE", 2, 1, 1.0), V3(16, 5, 32, 24, True, "HS", 1, 1, 1.0)]
    return models.MobileNetV3(rows, 32, num_classes=10)


def densenet():
    return models.DenseNet(4, (2, 2), 8, num_classes=10)


QUICK = ("vision_transformer",)
SMALL = {make.__name__: make for make in (vision_transformer, swin, convnext, mobilenet, densenet)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in SMALL]
)
def test_small_networks_of_five_kinds_go_the_whole_path(name):
    torch.manual_seed(0)
    size = 16 if name in ("vision_transformer", "swin") else 32
    row = networks.attempt(networks.lived_in(SMALL[name](), size), size, 4)
    assert row["passed"], row
    assert row["integer_share"] > 0.8


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", [*networks.TORCHVISION, *networks.TIMM])
def test_thirty_networks_go_the_whole_path(name, bits):
    try:
        model, size = networks.make(name)
    except ModelError as error:
        if name not in networks.TIMM:
            raise
        pytest.skip(str(error))
    row = networks.attempt(model, size, bits)
    assert row["passed"], row


@pytest.mark.parametrize(
    ("target", "whole"),
    [
        ("ort-cpu", 2),
        pytest.param("ort-cpu-int8", 0, marks=pytest.mark.slow),
        pytest.param("compact", 0, marks=pytest.mark.slow),
    ],
)
def test_attention_is_one_operator_where_the_opset_and_the_runtime_allow(target, whole):
    torch.manual_seed(0)
    model = build("vit_small_images", in_channels=1, classes=4, size=8, width=32, depth=2)
    x = images(8)
    made = quantize(model.eval(), QuantConfig(4, activation_bits=8, fat="none"), calibration=x).eval()
    file = written(made, x, load_target(target))
    ops = Counter(node.op_type for node in onnx.load_from_string(file.data).graph.node)
    assert (ops["Attention"], ops["Softmax"]) == (whole, 2 - whole)
    alone = parity(made, file.data, x, activations=file.activations, forced=True)
    assert len(alone.layers) == 11
    assert max(layer.largest for layer in alone.layers) <= 1
    with torch.no_grad():
        torch.testing.assert_close(load_onnx(file.data)(x), made(x), atol=0.05, rtol=0)


def test_attention_whose_heads_something_else_reads_stays_in_parts():
    class Shown(VisionTransformer):
        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            attention = self.blocks[0].attention
            query, key, value = attention.qkv(tokens).reshape(-1, 4, 3, 1, 32).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(query, key, value)
            return self.classifier(heads.transpose(1, 2).reshape(-1, 4, 32).mean(1) + heads.amax((1, 2)))

    torch.manual_seed(0)
    model = build("vit_small_images", in_channels=1, classes=4, size=8, width=32, depth=1)
    model.__class__ = Shown
    path = written(model.eval(), images(8), load_target("ort-cpu")).data
    ops = Counter(node.op_type for node in onnx.load_from_string(path).graph.node)
    assert (ops["Attention"], ops["Softmax"]) == (0, 1)
    with torch.no_grad():
        torch.testing.assert_close(load_onnx(path)(images(8)), model(images(8)), atol=1e-5, rtol=1e-4)
