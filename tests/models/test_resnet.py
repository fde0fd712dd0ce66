"""Residual networks: sizes by independent formulas, shapes, shortcuts."""

import pytest
import torch
from torch import nn

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.models.resnet import PadShortcut
from qrobust.torchvision_cpu import import_torchvision


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def expected_count(blocks, in_channels, classes, shortcut):
    """Weights of the 3 × 3 convolutions in order, two of batch-norm a channel, then the classifier."""
    widths = [16] * (2 * blocks) + [32] * (2 * blocks) + [64] * (2 * blocks)
    inputs = [in_channels, 16, *widths]
    total = sum(9 * i * o + 2 * o for i, o in zip(inputs, [16, *widths], strict=False))
    if shortcut == "B":
        total += 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    return total + 64 * classes + classes


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("name", "blocks"), [("resnet8", 1), ("resnet20", 3)])
@pytest.mark.parametrize(("in_channels", "classes"), [(1, 10), (3, 10), (3, 200)])
def test_number_of_parameters(name, blocks, in_channels, classes, shortcut):
    network = build(name, in_channels=in_channels, classes=classes, shortcut=shortcut)
    assert count(network) == expected_count(blocks, in_channels, classes, shortcut)


@pytest.mark.parametrize(("shortcut", "total"), [("A", 269_722), ("B", 272_474)])
def test_resnet20_has_the_size_in_the_literature(shortcut, total):
    assert count(build("resnet20", in_channels=3, classes=10, shortcut=shortcut)) == total


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20)])
def test_depth(name, layers):
    modules = build(name, in_channels=3, classes=10, shortcut="A").modules()
    assert sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in modules) == layers


@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (1, 32), (3, 32), (3, 9)])
def test_shape_of_the_logits(channels, side, shortcut):
    network = build("resnet8", in_channels=channels, classes=7, shortcut=shortcut)
    logits = network(torch.rand(2, channels, side, side))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_images_shrink_twice():
    network = build("resnet8", in_channels=3, classes=10)
    seen = []
    network.layer3.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    network(torch.rand(1, 3, 32, 32))
    assert seen == [(1, 64, 8, 8)]


def test_option_a_has_no_parameters():
    network = build("resnet20", in_channels=3, classes=10, shortcut="A")
    shortcuts = [block.shortcut for stage in (network.layer1, network.layer2, network.layer3) for block in stage]
    assert len(shortcuts) == 9
    assert sum(isinstance(shortcut, PadShortcut) for shortcut in shortcuts) == 2
    assert not any(list(shortcut.parameters()) for shortcut in shortcuts)


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("hardtanh", nn.Hardtanh), ("silu", nn.SiLU)])
def test_activation(name, kind):
    modules = list(build("resnet8", in_channels=1, classes=2, activation=name).modules())
    found = [module for module in modules if isinstance(module, (nn.ReLU, nn.Hardtanh, nn.SiLU))]
    assert len(found) == len(set(found)) == 7
    assert all(isinstance(module, kind) for module in found)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_with_the_imagenet_stem_it_is_torchvisions_network(name):
    """Weights are taken over in order, since names differ; batch-norm is shaken so that it shows."""
    torch.manual_seed(0)
    theirs = getattr(import_torchvision().models, name)(weights=None, num_classes=10).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    ours = build(name, in_channels=3, classes=10, stem="imagenet").eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["resnet8", "resnet20"])
def test_parameter_names_of_saved_networks(name):
    keys = set(build(name, in_channels=1, classes=2).state_dict())
    assert {"conv.weight", "bn.weight", "layer1.0.conv1.weight", "layer3.0.bn2.running_mean", "fc.bias"} <= keys
    assert {"layer2.0.shortcut.0.weight", "layer2.0.shortcut.1.bias"} <= keys


def test_unknown_choices_are_refused():
    with pytest.raises(ModelError, match=r"^expected an activation of relu, hardtanh, silu, got 'gelu'$"):
        build("resnet8", in_channels=1, classes=2, activation="gelu")
    with pytest.raises(ModelError, match=r"^expected shortcut 'A' or 'B', got 'C'$"):
        build("resnet8", in_channels=1, classes=2, shortcut="C")
