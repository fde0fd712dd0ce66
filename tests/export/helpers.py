"""What the tests of the export share: networks and the runtime."""

import functools

import numpy as np
import torch

from qrobust.export.sessions import open_session
from qrobust.export.target import load_target
from qrobust.export.write import INPUT, OUTPUT, lower
from qrobust.quant import QuantConfig, quantize, quantizers, round_biases

from ..quant.helpers import images, resnet


@functools.cache
def network(bits=4, activation="relu", shortcut="B", fat="normalised", edge_layers="int8"):
    """A resnet8 as it is exported: in eval mode, its biases on the grid. Not to be changed."""
    model = resnet(activation=activation, shortcut=shortcut)
    if bits == 32:
        return model
    model = quantize(model, QuantConfig(bits, fat=fat, edge_layers=edge_layers), calibration=[images()]).eval()
    stir_clips(model)
    round_biases(model)
    return model


@torch.no_grad()
def stir_clips(model):
    """Clips as training leaves them: those of calibration can put means right between two steps."""
    generator = torch.Generator().manual_seed(3)
    for quantizer in quantizers(model):
        if not quantizer.fixed:
            quantizer.clip.mul_(1 + 0.05 * torch.rand(quantizer.clip.shape, generator=generator))


@functools.cache
def lowered(*args, target="ort-cpu", **settings):
    """The bytes of its file."""
    return lower(network(*args, **settings), images(1), load_target(target))


@torch.no_grad()
def torch_logits(model, x):
    return model(x).numpy()


def runtime_logits(data, x):
    session = open_session(data, "all", "CPUExecutionProvider")
    (logits,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(x)})
    return logits
