"""Parameter groups and widths."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from qrobust.models import build
from qrobust.quant import (
    FAT,
    QuantConfig,
    bits_per_layer,
    latent_weights,
    mask_statistics,
    parameter_groups,
    present_names,
    quantize,
    quantizers,
)

from .helpers import images, resnet


@pytest.mark.parametrize(("bits", "edge_layers"), [(4, "int8"), (4, "float"), (32, "int8")])
@pytest.mark.parametrize("fat", ["normalised", "identity", "none"])
def test_groups_hold_every_trainable_parameter_once(fat, bits, edge_layers):
    model = quantize(resnet(), QuantConfig(bits, fat=fat, edge_layers=edge_layers), calibration=[images(8)])
    groups = parameter_groups(model, lr=0.04, weight_decay=5e-4)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in model.parameters() if p.requires_grad}


def test_rates_are_those_of_the_fat_paper():
    model = quantize(resnet(), 4, calibration=[images(8)])
    weights, activations, clips = parameter_groups(model, lr=0.04, weight_decay=5e-4)
    assert (weights["lr"], weights["weight_decay"]) == (0.04, 5e-4)
    assert (activations["lr"], activations["weight_decay"]) == (pytest.approx(0.1), 1e-4)
    assert (clips["lr"], clips["weight_decay"]) == (pytest.approx(0.02), 1e-4)
    masked = {id(q.clip) for q in quantizers(model) if q.masked and not q.fixed}
    assert {id(p) for p in activations["params"]} == masked
    mixing = {id(m.mixing) for m in model.modules() if isinstance(m, FAT)}
    assert mixing <= {id(p) for p in clips["params"]}


DECAYED = {
    "vit_small_images": r"patches|qkv|projection|mlp\.\d|classifier",
    "convnext_small_images": r"stem\.0|stages\.[12]\.1|depthwise|mlp\.\d|classifier",
    "torchvision:vit_b_16": r"conv_proj|in_proj|out_proj|mlp\.\d|heads\.head",
}


@pytest.mark.parametrize("name", DECAYED)
def test_norms_biases_and_embeddings_may_be_spared_from_decay(name):
    with torch.device("meta"):
        model = build(name, in_channels=3, classes=10)
    decayed, spared = parameter_groups(model, lr=0.1, weight_decay=0.05, matrices_only=True)
    assert (decayed["weight_decay"], spared["weight_decay"], spared["lr"]) == (0.05, 0, 0.1)
    names = {id(p): key for key, p in model.named_parameters()}
    weights = {key for key in names.values() if re.search(rf"(^|\.)({DECAYED[name]})[._]weight$", key)}
    assert {names[id(p)] for p in decayed["params"]} == weights
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_matrices_behind_a_mask_decay_too():
    model = quantize(resnet(), 4, calibration=[images(8)])
    decayed = parameter_groups(model, lr=0.1, weight_decay=0.05, matrices_only=True)[0]["params"]
    assert {id(p) for p in decayed} == {id(p) for p in latent_weights(model)}


def test_a_float_network_has_one_group():
    model = resnet()
    (group,) = parameter_groups(model, lr=0.1, weight_decay=0.0)
    assert len(group["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("bits", [3, 32])
def test_latent_weights_are_those_of_the_float_network(bits):
    """The very numbers, before FAT and quantiser; neither masks nor clips."""
    weights = {name: p for name, p in resnet().named_parameters() if p.dim() > 1}
    found = latent_weights(quantize(resnet(), QuantConfig(bits, fat="paper"), calibration=[images(8)]))
    assert len(found) == len(weights)
    assert all(any(torch.equal(p, weight) for p in found) for weight in weights.values())


@pytest.mark.parametrize("bits", [3, 32])
def test_one_step_moves_weights_clips_and_masks(bits):
    model = quantize(resnet(), bits, calibration=[images()])
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(parameter_groups(model, lr=0.1, weight_decay=0.0))
    torch.nn.functional.cross_entropy(model(images()), torch.arange(32) % 10).backward()
    optimiser.step()
    still = {name for name, p in model.named_parameters() if name in before and torch.equal(p, before[name])}
    assert not still


def test_widths_of_a_float_network_are_32():
    assert set(bits_per_layer(resnet()).values()) == {32}


def test_widths_carry_module_paths():
    model = resnet()
    assert set(bits_per_layer(quantize(model, 3, calibration=[images(8)]))) == set(bits_per_layer(model))


@pytest.mark.parametrize("bits", [4, 32])
@pytest.mark.parametrize("fat", ["paper", "normalised"])
def test_statistics_of_masks_are_those_of_every_inner_convolution(fat, bits):
    """Against a mask by numpy: "paper" is near 1 from the start, "normalised" around it."""
    model = quantize(resnet(), QuantConfig(bits, fat=fat), calibration=[images(8)])
    found = mask_statistics(model)
    assert list(found) == [name for name, module in model.named_modules() if hasattr(module, "parametrizations")]
    layer = model.get_submodule("layer1.0.conv1")
    weight = layer.parametrizations.weight.original.detach().double().numpy()
    mixing = layer.parametrizations.weight[0].mixing.detach().double().numpy()
    magnitude = np.abs(np.fft.rfft(((weight - weight.mean()) / weight.std(ddof=1)).reshape(len(weight), -1)))
    score = mixing @ magnitude if fat == "paper" else mixing @ magnitude / magnitude.mean() - 1
    mask = (1 if fat == "paper" else 2) / (1 + np.exp(-score))
    expected = {"min": mask.min(), "mean": mask.mean(), "max": mask.max(), "std": mask.std(ddof=1)}
    assert found["layer1.0.conv1"] == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("fat", ["identity", "none"])
def test_without_masks_there_are_no_statistics(fat):
    assert mask_statistics(quantize(resnet(), QuantConfig(4, fat=fat), calibration=[images(8)])) == {}
    assert mask_statistics(resnet()) == {}


class Named(nn.Module):
    """Of which only the names of tensors are asked."""

    def __init__(self, *quantisers):
        super().__init__()
        self.names = [f"{name}.act_quant.clip" for name in quantisers]

    def state_dict(self, *_, **__):
        return dict.fromkeys([*self.names, "fc.weight"])


@pytest.mark.parametrize(
    ("older", "present"),
    [
        (["mean_2_quant", "truediv_quant", "iadd_quant", "act"], ["mean_1_quant", "div_quant", "add_quant", "act"]),
        (["getitem_5_quant", "getitem_1_quant"], ["getitem_3_quant", "getitem_quant"]),
        (["relu", "relu_3", "relu_1"], ["relu", "relu_2", "relu_1"]),
    ],
)
def test_quantisers_that_earlier_versions_named_by_other_nodes_are_found_in_their_order(older, present):
    names = present_names(Named(*present), Named(*older).state_dict())
    assert names["fc.weight"] == "fc.weight"
    assert [names[f"{name}.act_quant.clip"] for name in older] == [f"{name}.act_quant.clip" for name in present]


def test_names_whose_order_is_not_known_stay():
    names = present_names(Named("relu_1", "relu_2"), Named("relu", "relu_").state_dict())
    assert names["relu.act_quant.clip"] == "relu.act_quant.clip"
