"""Networks of others through the whole path: captured, a step trained, written, run both ways, compared, attacked."""

import sys
from pathlib import Path

import pytest
import torch

from qrobust.torchvision_cpu import import_torchvision

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


SMALL = {make.__name__: make for make in (vision_transformer, swin, convnext, mobilenet, densenet)}


@pytest.mark.parametrize("name", SMALL)
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
    if name in networks.TIMM:
        pytest.importorskip("timm")
    row = networks.attempt(*networks.make(name), bits)
    assert row["passed"], row
