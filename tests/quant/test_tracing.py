"""The traced form of networks, against the networks themselves."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust.errors import ModelError
from qrobust.models import build
from qrobust.progress import set_volume
from qrobust.quant import QuantConfig, quantize
from qrobust.quant.graph import capture
from qrobust.torchvision_cpu import import_torchvision

from .helpers import Dense, Does, Functional, Plain, Shuffled, Squeezed, images, resnet, shake_norms

NETWORKS = {
    "plain": Plain,
    "functional": Functional,
    "dense": Dense,
    "squeezed": Squeezed,
    "shuffled": Shuffled,
    "resnet": resnet,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_traced_network_computes_the_same(name):
    torch.manual_seed(0)
    model = NETWORKS[name]()
    shake_norms(model)
    for mode in (False, True):
        model.train(mode)
        graph = capture(copy.deepcopy(model), (1, 8, 8))
        assert graph.training == mode
        outcomes = []
        for network in (model, graph):
            torch.manual_seed(1)  # dropout
            outcomes.append(network(images()))
        torch.testing.assert_close(*outcomes)


FORMS = {
    "relu": (F.relu, nn.ReLU),
    "torch.relu": (torch.relu, nn.ReLU),
    ".relu": (lambda x: x.relu(), nn.ReLU),
    ".relu_": (lambda x: (x * 1).relu_(), nn.ReLU),
    "relu6": (F.relu6, nn.ReLU6),
    "hardtanh": (lambda x: F.hardtanh(x, -0.5, max_val=0.5), nn.Hardtanh),
    "silu": (F.silu, nn.SiLU),
    "sigmoid": (torch.sigmoid, nn.Sigmoid),
    ".sigmoid": (lambda x: x.sigmoid(), nn.Sigmoid),
    "hardswish": (F.hardswish, nn.Hardswish),
    "hardsigmoid": (F.hardsigmoid, nn.Hardsigmoid),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), nn.LeakyReLU),
    "gelu": (lambda x: F.gelu(x, approximate="tanh"), nn.GELU),
    "elu": (lambda x: F.elu(x, 0.5), nn.ELU),
    "tanh": (torch.tanh, nn.Tanh),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, (2, 2)), nn.AdaptiveAvgPool2d),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 3, 2, 1, False, False), nn.AvgPool2d),
    "max_pool2d": (lambda x: F.max_pool2d(x, 3, 2, padding=1), nn.MaxPool2d),
    "torch.max_pool2d": (lambda x: torch.max_pool2d(x, 3, 2, 1), nn.MaxPool2d),
    "mean": (lambda x: x.mean([2, 3], keepdim=True), nn.AdaptiveAvgPool2d),
    "mean of negative dims": (lambda x: torch.mean(x, dim=(-1, -2)), nn.AdaptiveAvgPool2d),
}


@pytest.mark.parametrize("name", FORMS)
def test_functions_become_modules(name):
    function, kind = FORMS[name]
    x = images() - 0.5
    graph = capture(Does(function), x.shape[1:])
    assert any(isinstance(module, kind) for module in graph.modules())
    torch.testing.assert_close(graph(x), function(x))


def test_shapes_may_be_traced_and_channels_last_viewed():
    def function(x):
        n, c = x.size(0), x.shape[1]
        y = x.view(n, c // 2, 2, -1).transpose(1, 2).contiguous().reshape(x.size()).permute(0, 2, 3, 1)
        return y.flatten(1).unsqueeze(2).squeeze(2).chunk(2, dim=1)[1]

    x = images(5, channels=4)
    graph = capture(Does(function), x.shape[1:])
    assert not any(node.op == "call_method" for node in graph.graph.nodes)
    assert torch.equal(graph(x), function(x))
    assert torch.equal(graph(x.contiguous(memory_format=torch.channels_last)), function(x))


def test_nothing_happens_in_place():
    """Values are shared between readers, which the original's order kept apart."""
    graph = capture(nn.Sequential(nn.Conv2d(1, 2, 3), nn.SiLU(inplace=True), nn.Dropout(inplace=True)))
    assert not any(getattr(module, "inplace", False) for module in graph.modules())


def test_one_activation_called_twice_becomes_two():
    graph = capture(Plain())
    assert {"relu", "relu_2"} <= {str(node.target) for node in graph.graph.nodes}


def test_relu_moves_before_pooling_and_dropout_and_relu6_before_pooling_alone():
    def order(activation):
        graph = capture(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout2d(), nn.MaxPool2d(2), activation))
        return [node.target for node in graph.graph.nodes if node.op == "call_module"]

    assert order(nn.ReLU()) == ["0", "3", "1", "2"]
    assert order(nn.ReLU6()) == ["0", "1", "3", "2"]


def test_relu_stays_where_others_read_what_it_does():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = nn.MaxPool2d(2)

        def forward(self, x):
            x = self.pool(x)
            return F.relu(x) + x

    x = images() - 0.5
    assert torch.equal(capture(Shared())(x), Shared()(x))


def test_dropout_follows_the_mode_however_it_is_written():
    for function in (lambda x: F.dropout(x, 0.5), nn.Dropout(0.5)):
        graph = capture(Does(function))
        assert (graph.train()(images()) == 0).float().mean() > 0.4
        assert torch.equal(graph.eval()(images()), images())
    never = capture(Does(lambda x: F.dropout(x, 0.5, training=False)))
    assert torch.equal(never.train()(images()), images())


def test_stochastic_depth_stays_unless_it_never_drops():
    def network(p):
        return nn.Sequential(import_torchvision().ops.StochasticDepth(p, "row"))

    graph = capture(network(0.5))
    kept = graph.train()(images(64)).amax((1, 2, 3)) > 0
    assert 0.25 < kept.float().mean() < 0.75
    assert torch.equal(graph.eval()(images()), images())
    assert not [node for node in capture(network(0.0)).graph.nodes if node.op.startswith("call")]


class Unsteady(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Unsteady(), "Unsteady"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.ReLU(), Unsteady())), r"1\.1"),
    ],
)
def test_the_module_that_cannot_be_traced_is_named(model, where):
    message = (
        rf"^{where}: expected a network that torch.export can capture, got .*data-dependent.*; make its forward static$"
    )
    with pytest.raises(ModelError, match=message) as caught:
        capture(model)
    assert "\n" not in str(caught.value)


class Outputs(NamedTuple):
    logits: torch.Tensor
    aux: torch.Tensor


@pytest.mark.parametrize(
    ("give", "name"),
    [
        (lambda x: (x, x.mean()), "[1]"),
        (lambda x: Outputs(x, x * 2), "aux"),
        (lambda x: {"out": x, "aux": x}, "['aux']"),
    ],
)
def test_auxiliary_heads_of_training_are_left_out_and_named(give, name, capsys):
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            x = self.conv(x)
            return give(x) if self.training else x

    set_volume(verbose=True)
    try:
        assert isinstance(capture(Headed().train())(images()), torch.Tensor)
    finally:
        set_volume()
    assert capsys.readouterr().err.strip() == f"quantised without what training alone gives: {name}"


def test_the_original_is_left_alone():
    model = build("mobilenet_v2", in_channels=1, classes=4).train()
    capture(model)
    assert all(module.training for module in model.modules())
    assert any(getattr(module, "inplace", False) for module in model.modules())


class ActiveNorm(nn.BatchNorm2d):
    """As timm's: batch-norm with its activation inside."""

    def forward(self, x):
        given = (self.weight, self.bias, self.training)
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, *given, self.momentum, self.eps).relu()


@pytest.mark.parametrize("affine", [True, False])
def test_a_subclass_of_batch_norm_becomes_a_module(affine):
    torch.manual_seed(0)
    norms = [ActiveNorm(width, eps=1e-3, affine=affine) for width in (4, 6)]
    parts = [nn.Conv2d(1, 4, 3), norms[0], nn.Conv2d(4, 6, 3), norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    network, x = nn.Sequential(*parts, nn.Linear(6, 5)), torch.rand(32, 1, 8, 8)
    network(x)
    network.eval()
    traced = capture(network)
    with torch.no_grad():
        assert torch.equal(traced(x), network(x))
        quantised = quantize(network, QuantConfig(8, fat="none"), calibration=x)
        assert (quantised(x) - network(x)).abs().max() < 0.02 * network(x).abs().max()
    names = [module for module in traced.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [module.eps for module in names] == [1e-3, 1e-3]
    traced.train()(x)
    assert all(module.num_batches_tracked == 1 for module in names)
