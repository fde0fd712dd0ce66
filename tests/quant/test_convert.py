"""What quantize makes of a network, and what it refuses."""

import copy
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from qrobust.attacks import PgdConfig, pgd
from qrobust.errors import ModelError
from qrobust.models.inference import frozen
from qrobust.quant import BITS, FAT, QuantConfig, bits_per_layer, calibrate, quantize, quantizers
from qrobust.quant.convert import requantize
from qrobust.threat import Threat

from .helpers import Branched, Does, Plain, convolutions, images, input_bits, quantiser_above, relative, resnet

KINDS = [("relu", "A"), ("relu", "B"), ("hardtanh", "A"), ("hardtanh", "B")]


@pytest.mark.parametrize(("activation", "shortcut"), KINDS)
def test_eight_bits_keep_the_outputs(activation, shortcut):
    model = resnet(activation=activation, shortcut=shortcut)
    quantised = quantize(model, QuantConfig(8, fat="none"), calibration=[images()]).eval()
    assert relative(quantised(images()), model(images())) < 0.12


def test_error_falls_with_bits():
    model = resnet()
    made = [quantize(model, QuantConfig(bits, fat="none"), calibration=[images()]).eval() for bits in (2, 4, 6, 8)]
    errors = [relative(one(images()), model(images())) for one in made]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_network_without_batch_norm_keeps_its_scale_behind_fat(per_channel):
    torch.manual_seed(0)
    model = Plain().eval()
    quantised = quantize(model, QuantConfig(8, fat="identity", per_channel=per_channel), calibration=[images()]).eval()
    with torch.no_grad():  # identity takes the mean off, nothing else: so must the reference
        for conv in (model.second, model.third):
            conv.weight -= conv.weight.mean()
        expected = model(images())
        assert (quantised(images()) - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(("bits", "shortcut"), [*((bits, "B") for bits in BITS), (3, "A")])
def test_widths_are_those_asked_for(bits, shortcut):
    model = quantize(resnet(shortcut=shortcut), bits, calibration=[images(8)])
    widths, reads = bits_per_layer(model), input_bits(model)
    assert (widths.pop("conv"), widths.pop("fc")) == (8, 8)
    assert (reads.pop("conv"), reads.pop("fc")) == (8, 8)
    assert set(widths.values()) == {bits}
    assert set(reads.values()) == {bits}
    assert len(widths) == (8 if shortcut == "B" else 6)


def test_inner_layers_behind_pooling_read_n_bits():
    model = quantize(Plain(), 3, calibration=[images()])
    assert input_bits(model) == {"first": 8, "second": 3, "third": 3, "fc": 8}


def test_float_edges_stay_as_they_are():
    model = quantize(resnet(), QuantConfig(4, edge_layers="float"), calibration=[images()])
    widths = bits_per_layer(model)
    assert (widths["conv"], widths["fc"]) == (32, 32)
    assert type(model.conv) is nn.Conv2d
    assert type(model.fc) is nn.Linear
    assert {bits for name, bits in widths.items() if name not in ("conv", "fc")} == {4}


@pytest.mark.parametrize(("activation", "shortcut"), KINDS)
def test_what_sums_add_is_quantised(activation, shortcut):
    model = quantize(resnet(activation=activation, shortcut=shortcut), 2, calibration=[images(8)])
    sums = [n for n in model.graph.nodes if n.target in (operator.add, operator.iadd, torch.add)]
    assert len(sums) == 3
    for node in sums:
        assert all(quantiser_above(model, source).bits in (2, 8) for source in node.all_input_nodes)


@pytest.mark.parametrize("activation", ["relu", "hardtanh"])
def test_shortcuts_are_floats_or_have_eight_bits_or_the_layers_width(activation):
    def read_by_sums(shortcuts):
        config = QuantConfig(2, fat="none", shortcuts=shortcuts)
        model = quantize(resnet(activation=activation), config, calibration=images()).eval()
        assert {bits for path, bits in input_bits(model).items() if path not in ("conv", "fc")} == {2}
        sources = [source for node in model.graph.nodes if node.target is torch.add for source in node.all_input_nodes]
        modules = [model.get_submodule(str(source.target)) for source in sources]
        return [[quantizer.bits for quantizer in quantizers(module) if quantizer.masked] for module in modules]

    assert read_by_sums("n") == [[8], [2], [8], [8], [8], [8]]
    assert read_by_sums("int8") == [[8]] * 6
    assert read_by_sums("float") == [[]] * 6


@pytest.mark.parametrize(("classifier", "bits"), [(None, 32), ("float", 32), ("int8", 8), ("n", 4)])
def test_the_classifier_may_be_apart_from_the_first_layers(classifier, bits):
    model = quantize(resnet(), QuantConfig(4, edge_layers="float", classifier=classifier), calibration=images())
    assert (bits_per_layer(model)["conv"], bits_per_layer(model)["fc"]) == (32, bits)


@pytest.mark.parametrize(("form", "low"), [("narrow", -1), ("full", -2)])
def test_signed_activations_have_a_level_more_where_asked(form, low):
    config = QuantConfig(2, activation_range=form)
    model = quantize(resnet(activation="hardtanh"), config, calibration=images())
    assert {(one.low, one.high) for one in quantizers(model) if one.masked and one.bits == 2} == {(low, 1)}


def test_one_clip_per_channel_or_per_tensor():
    for per_channel in (True, False):
        model = quantize(resnet(), QuantConfig(4, per_channel=per_channel), calibration=[images(8)])
        for layer in convolutions(model).values():
            (quantizer,) = (m for m in quantizers(layer) if not m.masked)
            assert quantizer.clip.numel() == (layer.out_channels if per_channel else 1)


def test_activations_are_signed_behind_hardtanh_only():
    def signs(activation):
        model = quantize(resnet(activation=activation), 4, calibration=[images(8)])
        return {m.signed for name in ("act", "layer1.0.act1") for m in quantizers(model.get_submodule(name))}

    assert signs("relu") == {False}
    assert signs("hardtanh") == {True}


def test_hardtanh_starts_with_clips_of_at_most_one():
    model = quantize(resnet(activation="hardtanh"), 8, calibration=[images()])
    clips = [
        m.effective_clip().item() for name in ("act", "layer1.0.act1") for m in quantizers(model.get_submodule(name))
    ]
    assert max(clips) <= 1 + 1e-6


def test_relu6_and_hardtanh_from_zero_are_unsigned():
    for activation, ceiling in ((nn.ReLU6(), 6), (nn.Hardtanh(0, 0.1), 0.1)):
        model = nn.Sequential(nn.Conv2d(1, 4, 3), activation, nn.Conv2d(4, 2, 3), nn.Flatten())
        quantised = quantize(model, 8, calibration=[images()])
        (quantizer,) = quantizers(quantised.get_submodule("1"))
        assert not quantizer.signed
        assert quantizer.effective_clip() <= ceiling + 1e-6


@pytest.mark.parametrize("fat", ["paper", "normalised", "identity", "none"])
def test_32_bits_are_the_network_itself_with_fat_on_inner_convolutions(fat):
    model = quantize(resnet().train(), QuantConfig(32, fat=fat), calibration=None)
    masked = {name for name, m in convolutions(model).items() if any(isinstance(c, FAT) for c in m.modules())}
    assert masked == (set() if fat == "none" else set(convolutions(model)) - {"conv"})
    assert not list(quantizers(model))
    assert type(model) is type(resnet())
    assert model.training


def test_32_bits_without_batch_norm_keep_the_scale():
    torch.manual_seed(0)
    model = Plain().eval()
    transformed = quantize(model, QuantConfig(32, fat="identity"), calibration=None)
    with torch.no_grad():  # identity takes the mean off, nothing else: so must the reference
        for conv in (model.second, model.third):
            conv.weight -= conv.weight.mean()
        torch.testing.assert_close(transformed(images()), model(images()))


@pytest.mark.parametrize("bits", [4, 32])
def test_new_layers_are_where_the_network_is(bits):
    model = quantize(resnet().to("meta"), QuantConfig(bits, fat="none"), calibration=None)
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}


def test_pixels_are_read_in_steps_of_one_255th():
    model = quantize(resnet(), 4, calibration=[images()])
    (quantizer,) = quantizers(model.get_submodule("x_quant"))
    assert quantizer.fixed
    torch.testing.assert_close(quantizer(images())[0], images())


@pytest.mark.parametrize("fat", ["paper", "normalised", "identity", "none"])
def test_fat_stands_on_inner_convolutions_alone(fat):
    model = quantize(resnet(), QuantConfig(4, fat=fat), calibration=[images(8)])
    with_fat = {name for name, m in convolutions(model).items() if any(isinstance(c, FAT) for c in m.modules())}
    assert with_fat == (set() if fat == "none" else set(convolutions(model)) - {"conv"})


def test_the_original_is_left_alone():
    model = resnet().train()
    before = copy.deepcopy(model.state_dict())
    quantised = quantize(model, 4, calibration=[images()])
    assert model.training
    assert quantised.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert type(model.act) is nn.ReLU
    own = {p.data_ptr() for p in model.parameters()}
    assert not own & {p.data_ptr() for p in quantised.parameters()}


def test_a_convolution_behind_which_two_read_has_one_quantiser_and_a_narrower_one_behind():
    model = quantize(Branched(), 3, calibration=[images()])
    assert input_bits(model) == {"conv1": 8, "conv2": 3, "conv3": 3, "fc": 8}
    (addition,) = (n for n in model.graph.nodes if n.target is torch.add)
    assert [quantiser_above(model, source).bits for source in addition.all_input_nodes] == [8, 8]
    (bn,) = (n for n in model.graph.nodes if n.target == "bn")
    (wide,) = bn.users
    (conv2,) = (n for n in model.graph.nodes if n.target == "conv2")
    (narrow,) = conv2.all_input_nodes
    assert set(wide.users) == {addition, narrow}


def test_calibration_averages_over_batches_and_leaves_the_mode():
    model = resnet().train()
    calibrate(model, [images(seed=1), images(seed=2)], estimate_statistics=True)
    assert model.training
    assert model.bn.momentum == 0.1
    with torch.no_grad():
        means = [model.conv(images(seed=seed)).mean((0, 2, 3)) for seed in (1, 2)]
    torch.testing.assert_close(model.bn.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)


def test_requantize_changes_inner_widths_and_keeps_weights():
    model = quantize(resnet(), 5, calibration=[images()]).eval()
    expected = model(images())
    narrower = requantize(model, 2, calibration=[images()]).eval()
    widths, reads = bits_per_layer(narrower), input_bits(narrower)
    assert (widths["conv"], widths["fc"], reads["conv"], reads["fc"]) == (8, 8, 8, 8)
    assert {widths["layer2.0.conv1"], reads["layer2.0.conv1"]} == {2}
    assert torch.equal(model(images()), expected)
    wider, fresh = (made.eval()(images()) for made in (
        requantize(model, 8, calibration=[images()]), quantize(resnet(), 8, calibration=[images()])))  # fmt: skip
    assert relative(wider, fresh) < 0.1  # its biases were rounded to a coarser grid before
    with pytest.raises(ModelError, match="expected bits from 2 to 8"):
        requantize(model, 1, calibration=[images()])


def test_an_attack_leaves_mode_and_parameters_as_found():
    model = quantize(resnet(), 3, calibration=[images()]).train()
    model.bn.eval()
    model.fc.bias.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    asked = [p.requires_grad for p in model.parameters()]
    x, y = images(8), torch.zeros(8, dtype=torch.int64)
    pgd(model, x, y, threat=Threat("linf", 8 / 255), config=PgdConfig(steps=2))
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert all(getattr(module, "computed", None) is None for module in model.modules())
    model(x).sum().backward()
    assert model.get_submodule("layer1.0.conv1").parametrizations.weight.original.grad is not None


def test_a_frozen_network_is_the_same_network():
    model = quantize(resnet(), 3, calibration=[images()]).eval()
    expected = model(images())
    with frozen(model):
        assert torch.equal(model(images()), expected)
        assert torch.equal(model(images()), expected)  # weights computed before


def small(*layers):
    return nn.Sequential(nn.Conv2d(1, 4, 3), *layers)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.conv(self.conv(x))


@pytest.mark.parametrize("bits", [1, 9, 16])
def test_refuses_other_widths(bits):
    with pytest.raises(ModelError, match=f"expected bits from 2 to 8 .*got {bits}"):
        quantize(resnet(), bits, calibration=[images()])
    with pytest.raises(ModelError, match="expected no activation_bits beside bits=32, got 4; leave them out"):
        quantize(resnet(), QuantConfig(32, activation_bits=4), calibration=[images()])


@pytest.mark.parametrize("bits", [3, {"*": 3, "second": 8}, 32], ids=str)
def test_bits_alone_stand_for_a_config(bits):
    torch.manual_seed(0)
    model = Plain().eval()
    alone, config = (quantize(model, one, calibration=[images()]) for one in (bits, QuantConfig(bits)))
    assert bits_per_layer(alone) == bits_per_layer(config)
    assert torch.equal(alone.eval()(images()), config.eval()(images()))


def test_refuses_unknown_settings():
    with pytest.raises(ModelError, match="got 'normalized'; did you mean 'normalised'"):
        quantize(resnet(), QuantConfig(fat="normalized"), calibration=[images()])
    with pytest.raises(ModelError, match="expected edge_layers 'int8' or 'float', got 'int4'"):
        quantize(resnet(), QuantConfig(edge_layers="int4"), calibration=[images()])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Conv1d(8, 2, 8), nn.Flatten()), "expected a network that takes images"),
        (
            nn.Sequential(nn.BatchNorm2d(1), nn.Flatten()),
            "expected a network with a convolution or a linear layer, got",
        ),
        (
            small(parametrizations.weight_norm(nn.Conv2d(4, 4, 3))),
            "^1: expected a plain weight, got a parametrised one",
        ),
        (quantize(Plain(), calibration=None), "expected a float network, got a quantised one; call requantize"),
        (quantize(Plain(), 32, calibration=None), "^second: expected a plain weight, .*; call quant.fold_fat for FAT"),
        (Twice(), "expected layers called once, got conv twice"),
    ],
)
def test_refuses_networks_without_a_quantised_form(model, message):
    with pytest.raises(ModelError, match=message):
        quantize(model, calibration=[images()])


WITHOUT_INTEGERS = [
    (nn.Sequential(nn.GroupNorm(2, 4)), r"1\.0: no integer form of GroupNorm, of which there are: Conv2d"),
    (nn.ConvTranspose2d(4, 4, 3), "1: no integer form of ConvTranspose2d"),
    (Does(F.softplus), "1: no integer form of softplus"),
    (Does(lambda x: F.pad(x, (1, 1), value=0.5)), "1: no integer form of pad"),
    (Does(lambda x: x / (x + 2)), "1: no integer form of div"),
    (nn.Hardtanh(-1, 2), "1: no integer form of Hardtanh"),
    (nn.AdaptiveAvgPool2d(4), "1: no integer form of AdaptiveAvgPool2d"),
]


@pytest.mark.parametrize(("inside", "message"), WITHOUT_INTEGERS, ids=[message for _, message in WITHOUT_INTEGERS])
def test_what_has_no_integer_form_stays_in_float_or_is_refused(inside, message):
    model = small(inside).eval()
    with pytest.raises(ModelError, match=f'^{message}.*unsupported="float"$'):
        quantize(model, QuantConfig(8, unsupported="refuse"), calibration=images())
    made = quantize(model, QuantConfig(8, fat="none"), calibration=images()).eval()
    assert relative(made(images()), model(images())) < 0.05
    assert all(bits == 8 for bits in bits_per_layer(made).values())


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.0), (0.0, 2.64)])
def test_refuses_normalised_images(low, high):
    x = images() * (high - low) + low
    with pytest.raises(ModelError, match=r"expected calibration images in \[0, 1\], got .*unnormalised"):
        quantize(resnet(), calibration=[x])


def test_refuses_no_images_and_images_that_are_no_numbers():
    with pytest.raises(ModelError, match="expected at least one batch of calibration images, got none"):
        quantize(resnet(), calibration=[])
    with pytest.raises(ModelError, match=r"expected calibration images in \[0, 1\], got \[nan"):
        quantize(resnet(), calibration=[images() * torch.nan])
