"""Small networks of one thing each, and what their file computes."""

import numpy as np
import torch
from torch import nn

from qrobust.export.target import load_target
from qrobust.export.write import written

from ...quant.helpers import Does
from ..helpers import runtime_logits


def numbers(*shape, seed=0):
    """Of both signs, for networks that are no classifiers of images."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network_of(layer):
    """A module, or a function, in eval mode; parameters of its own are shaken, so that none is 0 or 1."""
    model = layer if isinstance(layer, nn.Module) else Does(layer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * numbers(*parameter.shape, seed=1))
    return model.eval()


def file_of(model, x, target="ort-cpu", **settings):
    return written(model, x[:1], load_target(target), **settings).data


@torch.no_grad()
def assert_equal(layer, x, tolerance=1e-5):
    """The file gives what torch does, for several images and for one."""
    model = network_of(layer)
    data = file_of(model, x)
    for images in (x, x[:1]):
        expected = model(images.clone()).numpy()
        got = runtime_logits(data, images.numpy())
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * max(1, np.abs(expected).max()))
    return data
