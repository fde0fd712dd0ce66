"""Every network of the registry, torchvision's as they come, and small ones of every kind, quantised."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.models import build, names
from qrobust.models.inference import estimate_statistics
from qrobust.models.mobile import _adapt
from qrobust.quant import FAT, QuantConfig, Quantizer, bits_per_layer, fold_fat, parameter_groups, quantize, quantizers
from qrobust.torchvision_cpu import import_torchvision

from .helpers import (
    Dense,
    Functional,
    Plain,
    Shuffled,
    Squeezed,
    images,
    layer_nodes,
    quantiser_above,
    shake_norms,
    short,
)

OWN = {"plain": Plain, "functional": Functional, "dense": Dense, "squeezed": Squeezed, "shuffled": Shuffled}
# Ours are torchvision's, adapted. The whole networks repeat these blocks, for a minute.
SHORT = {
    **{f"short.{kind}": functools.partial(short, kind) for kind in ("resnet", "mobilenet", "efficientnet")},
    **{f"adapted.{kind}": lambda kind=kind: _adapt(short(kind), 1, "cifar") for kind in ("mobilenet", "efficientnet")},
}
TORCHVISION = ("resnet18", "mobilenet_v2", "efficientnet_b0")
BIG = ("resnet18", "resnet34", "resnet50", "resnet152", "preactresnet18", "wrn28_10", "wrn34_10", "wrn34_15")
SLOW = pytest.mark.slow
MOST = [
    *OWN, "resnet8",
    *(pytest.param(f"short.{kind}", marks=SLOW) for kind in ("resnet", "mobilenet", "efficientnet")),
    *(pytest.param(name, marks=SLOW) for name in SHORT if name.startswith("adapted.")),
    *(pytest.param(name, marks=SLOW) for name in ("resnet20", "mobilenet_v2", "efficientnet_b0")),
    *(pytest.param(f"torchvision.{name}", marks=SLOW) for name in TORCHVISION),
]  # fmt: skip
DEEP = [*OWN, "resnet8", *(pytest.param(name, marks=SLOW) for name in ("resnet20", "torchvision.resnet18"))]
CASES = [*MOST, *(pytest.param(name, marks=SLOW) for name in BIG)]


def batch(name, n=8):
    if name.startswith(("torchvision.", "short.")):
        return images(n, side=48, channels=3)
    return images(n, side=16, channels=1)


@functools.cache
def network(name):
    """Not to be changed: in eval mode, with statistics of the images."""
    torch.manual_seed(0)
    if name in OWN:
        model = OWN[name]()
    elif name in SHORT:
        model = SHORT[name]()
    elif name.startswith("torchvision."):
        model = getattr(import_torchvision().models, name.removeprefix("torchvision."))(weights=None, num_classes=4)
    else:
        model = build(name, in_channels=1, classes=4)
    shake_norms(model)
    estimate_statistics(model, [batch(name)])
    return model.eval()


@functools.cache
def quantised(name, bits=4, fat="normalised"):
    """Not to be changed."""
    return quantize(network(name), QuantConfig(bits, fat=fat), calibration=[batch(name)]).eval()


def test_every_network_of_the_registry_is_here():
    by_layer = {"vit_small_images", "convnext_small_images"}
    assert {"resnet8", "resnet20", "mobilenet_v2", "efficientnet_b0", *BIG} == set(names()) - by_layer


@pytest.mark.parametrize("name", CASES)
def test_every_network_trains_a_step(name):
    model = copy.deepcopy(quantised(name)).train()
    optimiser = torch.optim.SGD(parameter_groups(model, lr=1e-4, weight_decay=0.0))
    before = [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(batch(name)), torch.arange(8) % 4).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    optimiser.step()
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert model.eval()(batch(name)).isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_what_layers_read_and_weigh_is_on_a_grid(name):
    model, seen = quantised(name), []
    for node in layer_nodes(model):
        layer, quantiser = model.get_submodule(node.target), quantiser_above(model, node.all_input_nodes[0])
        edge = quantiser.bits == 8
        assert quantiser.bits in (4, 8)
        assert bits_per_layer(model)[node.target] == (8 if edge else 4)

        def hook(layer, inputs, quantiser=quantiser, name=node.target):
            seen.append(name)
            assert_on_grid(inputs[0], quantiser)
            weight = layer.weight_quant.tensor_quant
            assert_on_grid(weight(layer.weight)[0], weight)

        layer.register_forward_pre_hook(hook)
    try:
        with torch.no_grad():
            model(batch(name))
    finally:
        for node in layer_nodes(model):
            model.get_submodule(node.target)._forward_pre_hooks.clear()
    assert len(seen) == len(layer_nodes(model)) == len(layer_nodes_of(network(name)))


def layer_nodes_of(model):
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def assert_on_grid(values, quantiser):
    steps = values.double() / quantiser.scale().double()
    assert (steps - steps.round()).abs().max() < 1e-3
    assert steps.min().round() >= quantiser.low
    assert steps.max().round() <= quantiser.high


@pytest.mark.parametrize("name", CASES)
def test_folding_fat_is_bit_equal(name):
    """Depthwise and grouped convolutions, and those without batch-norm, too."""
    model, x = copy.deepcopy(quantised(name)), batch(name, 2)
    masks = [module for module in model.modules() if isinstance(module, FAT)]
    inner = [conv for conv in layer_nodes_of(model) if isinstance(conv, nn.Conv2d)][1:]
    assert len(masks) == len(inner)
    with torch.no_grad():
        for mask in masks:
            mask.mixing.add_(0.1 * torch.randn(mask.mixing.shape))
        for bits in (8, 4, 3, 2):
            for quantiser in quantizers(model):
                if quantiser.inner:
                    quantiser.set_bits(bits)
            expected = model(x)
            assert torch.equal(fold_fat(copy.deepcopy(model))(x), expected)
            assert expected.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_folding_fat_of_a_float_network_is_bit_equal_and_leaves_a_plain_network(name):
    model, x = quantize(network(name), 32, calibration=[batch(name)]).eval(), batch(name, 2)
    masks = [module for module in model.modules() if isinstance(module, FAT)]
    assert len(masks) == sum(isinstance(conv, nn.Conv2d) for conv in layer_nodes_of(model)) - 1
    with torch.no_grad():
        for mask in masks:
            mask.mixing.add_(0.1 * torch.randn(mask.mixing.shape))
        expected, folded, plain = model(x), fold_fat(copy.deepcopy(model)), copy.deepcopy(network(name))
        assert torch.equal(folded(x), expected)
        assert expected.isfinite().all()
        plain.load_state_dict(folded.state_dict())
        assert torch.equal(plain(x), expected)
    assert [type(module) for module in folded.modules()] == [type(module) for module in plain.modules()]


def pass_through(quantiser, x):
    """A quantiser of infinitely many bits: what is left is the function that it stands for."""
    low = -quantiser.ceiling if quantiser.signed else 0
    return x.clamp(low, quantiser.ceiling), quantiser.scale(), quantiser.zero_point, quantiser.bit_width


@pytest.mark.parametrize("name", MOST)
def test_without_rounding_it_is_the_same_network(name, monkeypatch):
    shape = batch(name).shape[1:]
    model = quantize(network(name), QuantConfig(4, fat="none"), calibration=None, shape=shape).eval()
    monkeypatch.setattr(Quantizer, "forward", pass_through)
    with torch.no_grad():
        torch.testing.assert_close(model(batch(name)), network(name)(batch(name)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", DEEP)
def test_eight_bits_keep_the_outputs(name):
    """Not of the deeper ones: untrained, they make 50 % of 0.5 % noise behind each batch-norm."""
    model = quantize(network(name), QuantConfig(8, fat="none"), calibration=[batch(name)]).eval()
    with torch.no_grad():
        expected = network(name)(batch(name))
        assert (model(batch(name)) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", MOST)
def test_every_quantiser_is_used_and_placed(name):
    model, seen = quantised(name), set()
    handles = [
        quantiser.register_forward_hook(lambda module, *_: seen.add(id(module))) for quantiser in quantizers(model)
    ]
    with torch.no_grad():
        model(batch(name))
    for handle in handles:
        handle.remove()
    assert seen == {id(quantiser) for quantiser in quantizers(model)}
    assert all(quantiser.fixed or (quantiser.clip != 1).any() for quantiser in quantizers(model))


@pytest.mark.parametrize("name", MOST)
def test_convolutions_are_followed_by_one_quantiser(name):
    """Only then does onnxruntime run them on integers: see placement.py."""
    model = quantised(name)
    for node in layer_nodes(model):
        behind = node
        while len(behind.users) == 1 and isinstance(module_behind(model, behind), nn.BatchNorm2d):
            (behind,) = behind.users
        followers = [user for user in behind.users if user.op != "output"]
        assert all(list(quantizers(module)) for module in map(functools.partial(module_of, model), followers))
        assert len(followers) <= 1


def module_of(model, node):
    return model.get_submodule(node.target) if node.op == "call_module" else nn.Identity()


def module_behind(model, node):
    (user,) = node.users
    return module_of(model, user)


def test_smooth_functions_give_signed_grids_and_sigmoid_none():
    model = quantised("squeezed")
    signs = {name: next(quantizers(module)).signed for name, module in model.named_children() if "quant" in name}
    assert {name for name, signed in signs.items() if not signed} == {"x_quant", "sigmoid_quant"}
    assert {"silu_quant", "hardswish_quant", "mul_quant", "add_quant"} < set(signs)


def test_concatenation_reads_eight_bits_and_is_read_at_the_layers_width():
    model = quantised("dense")
    cats = [node for node in model.graph.nodes if node.target is torch.cat]
    assert [len(cat.all_input_nodes) for cat in cats] == [2, 3]
    assert {quantiser_above(model, source).bits for cat in cats for source in cat.all_input_nodes} == {8}
    (squeeze,) = (node for node in layer_nodes(model) if node.target == "squeeze")
    (behind,) = cats[1].users
    assert squeeze.all_input_nodes == [behind]
    assert quantiser_above(model, behind).bits == 4


def test_normalisation_inside_the_model_stays_float():
    model = quantised("functional")
    (first,) = (node for node in layer_nodes(model) if node.target == "conv1")
    quantiser = quantiser_above(model, first.all_input_nodes[0])
    assert (quantiser.bits, quantiser.signed, quantiser.fixed) == (8, True, False)
    (source,) = first.all_input_nodes[0].all_input_nodes
    assert source.op == "call_function"
    assert bits_per_layer(model) == {"conv1": 8, "conv2": 4, "conv3": 4, "hidden": 4, "fc": 8}


def test_fat_on_a_depthwise_convolution_mixes_its_channels():
    conv = quantised("functional").get_submodule("conv2")
    assert conv.weight.shape == (6, 1, 3, 3)
    assert conv.parametrizations.weight[0].mixing.shape == (6, 6)


def test_a_weight_of_one_number_is_refused_unless_it_stays_in_float():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(ModelError, match=r"^1: expected a weight of several numbers, got one; leave it"):
        quantize(model, 3, calibration=[images()])
    assert quantize(model, {"*": 3, "1": 32}, calibration=[images()])(images()).isfinite().all()


@pytest.mark.slow
def test_dropping_residuals_lasts():
    """torchvision's efficientnet drops rows in training; its quantised form does so too."""
    model = quantised("short.efficientnet")
    kept = [module for module in model.modules() if type(module).__name__ == "StochasticDepth"]
    assert len(kept) == 1
    assert all(module.p > 0 for module in kept)
    own = quantize(build("efficientnet_b0", in_channels=1, classes=4), QuantConfig(4, fat="none"), calibration=None)
    assert not [module for module in own.modules() if type(module).__name__ == "StochasticDepth"]
