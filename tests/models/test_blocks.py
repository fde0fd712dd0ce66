"""Blocks and shortcuts: what they compute where one branch is silent, and what they refuse."""

import pytest
import torch
from torch import nn

from qrobust.errors import ModelError
from qrobust.models.resnet import BasicBlock, Bottleneck, PadShortcut, PreActBlock, initialise, make_activation


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("before", "after"), [(2, 4), (2, 5)])
def test_option_a_takes_every_second_pixel_and_fills_with_zeros(before, after):
    x = torch.rand(2, before, 4, 4)
    y = PadShortcut(before, after, 2)(x)
    assert y.shape == (2, after, 2, 2)
    assert torch.equal(y[:, 1 : 1 + before], x[:, :, ::2, ::2])
    assert not y[:, 0].any()
    assert not y[:, 1 + before :].any()


@pytest.mark.parametrize(("kind", "last"), [(BasicBlock, "bn2"), (Bottleneck, "bn3"), (PreActBlock, "conv2")])
def test_a_block_without_its_branch_gives_what_it_reads(kind, last):
    block = kind(8, 8, 1, activation="relu").eval()
    nn.init.zeros_(getattr(block, last).weight)
    x = torch.rand(2, 8, 4, 4)
    torch.testing.assert_close(block(x), x)


def test_a_block_before_activation_may_give_negative_values():
    block = PreActBlock(8, 8, 1, activation="relu").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(block(x), x)


def test_where_the_shape_changes_the_shortcut_reads_the_activated_input():
    block = PreActBlock(4, 8, 2, activation="relu").eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    activated = (x / (1 + block.bn1.eps) ** 0.5).clamp(min=0)[:, :, ::2, ::2]
    expected = torch.einsum("oi,nihw->nohw", block.shortcut.weight[:, :, 0, 0], activated)
    torch.testing.assert_close(block(x), expected)


def test_a_bottleneck_works_on_a_quarter_of_its_outputs():
    block = Bottleneck(16, 32, 2, activation="relu")
    shapes = [tuple(conv.weight.shape) for conv in (block.conv1, block.conv2, block.conv3)]
    assert shapes == [(8, 16, 1, 1), (8, 8, 3, 3), (32, 8, 1, 1)]
    assert [conv.stride for conv in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]
    assert block(torch.rand(2, 16, 6, 6)).shape == (2, 32, 3, 3)


@pytest.mark.parametrize(("name", "kind"), [("relu", nn.ReLU), ("hardtanh", nn.Hardtanh), ("silu", nn.SiLU)])
def test_activations_by_name(name, kind):
    assert type(make_activation(name)) is kind
    assert make_activation(name) is not make_activation(name)


def test_convolutions_start_with_he_variance():
    conv = nn.Conv2d(16, 64, 3, bias=False)
    initialise(conv)
    assert float(conv.weight.detach().var()) == pytest.approx(2 / (9 * 64), rel=0.1)


def test_unknown_choices_are_refused():
    with pytest.raises(ModelError, match=r"^expected an activation of relu, hardtanh, silu, got 'gelu'$"):
        make_activation("gelu")
    with pytest.raises(ModelError, match=r"^expected shortcut 'A' or 'B', got 'C'$"):
        BasicBlock(4, 4, 1, activation="relu", shortcut="C")
