"""Pre-activation networks: depth, the end of the network, names of stages."""

import pytest
import torch
from torch import nn

from qrobust.models import build
from qrobust.models.resnet import PreActResNet


def convolutions(name):
    with torch.device("meta"):
        network = build(name, in_channels=3, classes=10)
    return [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]


def test_depth():
    """As for ResNet-18: the classifier counts, shortcuts do not."""
    assert sum("shortcut" not in name for name in convolutions("preactresnet18")) == 18 - 1


@pytest.mark.parametrize(("name", "depth"), [("wrn28_10", 28), ("wrn34_10", 34), ("wrn34_15", 34)])
def test_depth_of_wide_networks(name, depth):
    """As their paper counts: the three shortcuts are layers, the classifier is not."""
    assert len(convolutions(name)) == depth


@pytest.mark.parametrize("name", ["wrn28_10", "wrn34_10", "wrn34_15"])
def test_wide_networks_are_as_wide_as_their_names_say(name):
    with torch.device("meta"):
        network = build(name, in_channels=3, classes=10)
    factor = int(name.split("_")[1])
    widths = [network.get_submodule(f"layer{stage}.0.conv2").out_channels for stage in (1, 2, 3)]
    assert widths == [16 * factor, 32 * factor, 64 * factor]


def test_the_last_stage_is_normalised_and_activated():
    torch.manual_seed(0)
    network = build("preactresnet18", in_channels=1, classes=3).eval()
    assert isinstance(network, PreActResNet)
    nn.init.uniform_(network.bn.weight, -1, 1)
    seen = {}
    for name in ("layer4", "pool"):
        network.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: (args[0], output)})
        )
    with torch.no_grad():
        network(torch.rand(2, 1, 16, 16))
        expected = network.bn(seen["layer4"][1]).clamp(min=0)
    assert torch.equal(seen["pool"][0], expected)
