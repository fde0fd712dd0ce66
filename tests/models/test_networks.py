"""Every network: published sizes, shapes, strides, traceability, gradients. Big ones are built without memory."""

import subprocess
import sys

import pytest
import torch
from torch import fx

from qrobust.errors import ModelError
from qrobust.models import build, names

COUNTS = {
    "resnet8": 78_042,
    "resnet20": 272_474,
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet152": 58_156_618,
    "preactresnet18": 11_172_170,
    "wrn28_10": 36_479_194,
    "wrn34_10": 46_160_474,
    "wrn34_15": 103_819_674,
    "mobilenet_v2": 2_236_682,
    "efficientnet_b0": 4_020_358,
    "vit_small_images": 810_890,
    "convnext_small_images": 223_018,
}
IMAGENET_COUNTS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "efficientnet_b0": 5_288_548,
}
BIG = ("resnet152", "wrn28_10", "wrn34_10", "wrn34_15")  # resnet50's and resnet34's blocks, more of them
BY_LAYER = {"vit_small_images", "convnext_small_images"}  # they normalise so: see test_by_layer
ALL = [pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in COUNTS if name not in BY_LAYER]


def light(name, in_channels=3, classes=10, **options):
    """Shapes only: no weights are drawn and nothing is computed."""
    with torch.device("meta"):
        return build(name, in_channels=in_channels, classes=classes, **options)


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def before_pooling(network, side):
    """Height and width of what the mean is taken of."""
    seen = []
    network.pool.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[2:])))
    network(torch.empty(1, 3, side, side, device="meta"))
    return seen[0]


def test_the_table_is_complete():
    assert sorted(COUNTS) == list(names())


@pytest.mark.parametrize("name", COUNTS)
def test_number_of_parameters_for_cifar10(name):
    assert count(light(name)) == COUNTS[name]


@pytest.mark.parametrize("name", IMAGENET_COUNTS)
def test_number_of_parameters_for_imagenet(name):
    assert count(light(name, classes=1000, stem="imagenet")) == IMAGENET_COUNTS[name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (4, 33, 20)])
def test_shape_of_the_logits(name, channels, height, width):
    x = torch.empty(2, channels, height, width, device="meta")
    assert light(name, channels, 7)(x).shape == (2, 7)


@pytest.mark.parametrize(("stem", "side"), [("cifar", 8), ("imagenet", 2)])
@pytest.mark.parametrize("name", IMAGENET_COUNTS)
def test_how_much_images_shrink(name, stem, side):
    assert before_pooling(light(name, stem=stem), 64) == (side, side)


@pytest.mark.parametrize(("name", "side"), [("preactresnet18", 4), ("wrn28_10", 8), ("wrn34_10", 8), ("wrn34_15", 8)])
def test_how_much_networks_without_a_stem_shrink(name, side):
    assert before_pooling(light(name), 32) == (side, side)


@pytest.mark.parametrize("name", ALL)
def test_the_graph_can_be_traced(name):
    network = light(name)
    graph = fx.symbolic_trace(network)
    assert graph(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_every_pixel(name):
    torch.manual_seed(0)
    network = build(name, in_channels=1, classes=3)
    x = torch.rand(2, 1, 16, 16, requires_grad=True)
    logits = network(x)
    logits[:, 0].sum().backward()
    assert logits.isfinite().all()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(set(COUNTS) - {"mobilenet_v2", "efficientnet_b0"} - BY_LAYER))
@pytest.mark.parametrize("activation", ["relu", "hardtanh", "silu"])
def test_all_activations_are_of_one_kind(name, activation):
    kinds = {"relu": "ReLU", "hardtanh": "Hardtanh", "silu": "SiLU"}
    network = light(name, activation=activation)
    found = {type(module).__name__ for module in network.modules()}
    assert found & set(kinds.values()) == {kinds[activation]}


@pytest.mark.parametrize("name", COUNTS)
def test_an_unknown_option_is_refused(name):
    with pytest.raises(ModelError, match=rf"^{name} has no option 'layers'"):
        light(name, layers=3)


@pytest.mark.parametrize("name", IMAGENET_COUNTS)
def test_an_unknown_stem_is_refused(name):
    with pytest.raises(ModelError, match=r"^expected stem 'cifar' or 'imagenet', got 'small'$"):
        light(name, stem="small")


def test_importing_the_networks_leaves_torchvision_alone():
    code = "import sys, qrobust.models; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
