"""The first activation of networks of every build."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qrobust import models
from qrobust.errors import ModelError
from qrobust.models.inference import frozen
from qrobust.quant import quantize
from qrobust.spectrum import first_activation


def images(channels=3):
    return torch.rand(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def built(name="resnet8", **options):
    torch.manual_seed(0)
    model = models.build(name, in_channels=3, classes=3, **options)
    with torch.no_grad():
        model.bn.bias.uniform_(-0.5, 0.5)
    return model.eval()


class Functional(nn.Module):
    """No module activates: what batch-norm gives is the last that a module gives."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3))


@pytest.mark.parametrize("activation", ["relu", "hardtanh", "silu"])
def test_it_is_act_of_bn_of_conv(activation):
    model, x = built(activation=activation), images()
    with torch.no_grad():
        expected = model.act(model.bn(model.conv(x)))
    assert torch.equal(first_activation(model, x), expected)
    with frozen(model):
        assert torch.allclose(first_activation(model, x), expected, atol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_quantised_activation_counts_with_its_rounding():
    model, x, seen = quantize(built(), 4, calibration=[images()]).eval(), images(), []
    handle = model.get_submodule("act").register_forward_hook(lambda module, inputs, output: seen.append(output))
    found = first_activation(model, x)
    handle.remove()
    assert torch.equal(found, seen[0])
    assert found.min() == 0
    assert 4 < len(found.unique()) <= 256


def test_functions_and_identities_are_not_seen():
    model, x = Functional().eval(), images()
    with torch.no_grad():
        expected = model.norm(model.first(x))
    torch.testing.assert_close(first_activation(model, x), expected)  # computed channels last
    chain = nn.Sequential(model.first, nn.Identity(), model.norm, nn.Dropout(0.0), nn.ReLU()).eval()
    assert first_activation(nn.Sequential(chain[0], chain[1], chain[2], chain[4]).eval(), x).min() == 0


def test_networks_that_cannot_be_asked():
    with pytest.raises(ModelError, match="expected a network with a convolution"):
        first_activation(nn.Flatten().eval(), images())
    with pytest.raises(ModelError, match="expected a network in eval mode"):
        first_activation(built().train(), images())
