"""Putting quantisers into a trained network, by its traced graph."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import ModelError, did_you_mean
from ..models.statistics import statistics_anew
from ..spectrum import FAT_FORMS
from .placement import SUM_BITS, Placement
from .quantizers import calibrating, quantizers
from .reading import Reading
from .tracing import trace
from .widths import BITS, Bits, check_bits, layer_widths

__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "SUM_BITS",
    "calibrate",
    "quantize",
    "requantize",
]

EDGE_LAYERS = ("int8", "float")
LEAST = "qrobust.least_bits"  # in the graph's `meta`: see Placement.least


def quantize(
    model: nn.Module,
    bits: Bits = 4,
    *,
    fat: str = "normalised",
    edge_layers: str = "int8",
    per_channel: bool = True,
    activation_bits: Bits | None = None,
    calibration: Iterable[Tensor] | None,
) -> nn.Module:
    """QM-n: a copy of a trained network whose inner layers have n-bit weights and read n-bit inputs.

    model: any convolutional network that torch.fx can trace, of the modules in `rules.SUPPORTED` or the
    functions that do the same. bits: 2 to 8, or widths by patterns of module names, of which the last that
    matches decides: `{"*": 4, "layer3.*": 8, "layer1.0.conv1": 32}`; "*" is n, 32 leaves weight and input
    in float. activation_bits: the same for what layers read, if that is not to be their weight's width; of
    layers that read one activation the largest width holds.
    fat: "paper", "normalised", "identity" (standardised weights without a mask) or "none"; for inner
    convolutions. edge_layers: the first layers and the classifier keep "int8" or "float" weights and
    inputs, unless a pattern other than "*" names them. per_channel: one weight clip per output channel.
    calibration: batches (n, c, h, w) in [0,1] that place the clips and batch-norm's statistics, the network
    should then be trained on; None leaves them for weights that are loaded next.

    What sums, products, concatenations, pools and functions like SiLU read has 8 bits: they hold no product
    of weights, and at n bits a sum would lose its small part. Raises ModelError for settings out of range,
    for patterns that name nothing, and for a module without a quantised form, by name.
    """
    _check(model, bits, fat, edge_layers)
    reading = Reading(trace(model))
    names = {str(node.target): node for node in reading.layers}
    edges = {str(node.target) for node in reading.edges}
    widths = layer_widths(names, edges, bits=bits, activation_bits=activation_bits, edge_layers=edge_layers)
    placement = Placement(reading, {names[name]: width for name, width in widths.items()}, fat, per_channel)
    placement.run()
    reading.graph.meta[LEAST] = placement.least
    reading.graph.recompile()
    if calibration is not None:
        calibrate(reading.graph, calibration)
    return reading.graph


def requantize(model: nn.Module, bits: int, *, calibration: Iterable[Tensor]) -> nn.Module:
    """QM-n from another QM-m: a copy with the same weights and masks, another inner width and new clips.

    model: from `quantize`. Layers that a pattern other than "*" named keep their width. Other arguments and
    errors as there.
    """
    if not isinstance(bits, int):
        raise ModelError(f"expected one width to change the network's n to, got {bits!r}; pass 2 to 8")
    check_bits(bits)
    copied = copy.deepcopy(model)
    for quantizer in quantizers(copied):
        if quantizer.inner:
            quantizer.set_bits(bits)
    for name, least in getattr(copied, "meta", {}).get(LEAST, {}).items():
        for quantizer in quantizers(copied.get_submodule(name)):
            quantizer.set_bits(max(bits, least))
    calibrate(copied, calibration)
    return copied


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Place clips and batch-norm statistics by batches of images in [0,1]; leaves the mode as it was."""
    count = 0
    with statistics_anew(model), calibrating(model):
        for x in batches:
            if not (x.min() >= 0 and x.max() <= 1):  # so that NaN is refused too
                raise ModelError(
                    f"expected calibration images in [0, 1], got [{x.min():.3g}, {x.max():.3g}]; "
                    "pass unnormalised images"
                )
            model(x)
            count += 1
    if not count:
        raise ModelError("expected at least one batch of calibration images, got none; pass some")


def _check(model: nn.Module, bits: Bits, fat: str, edge_layers: str) -> None:
    check_bits(bits)
    if fat not in (*FAT_FORMS, "none"):
        raise ModelError(f"expected a form of FAT, got {fat!r}{did_you_mean(fat, (*FAT_FORMS, 'none'))}")
    if edge_layers not in EDGE_LAYERS:
        raise ModelError(f"expected edge_layers 'int8' or 'float', got {edge_layers!r}")
    if any(True for _ in quantizers(model)):
        raise ModelError("expected a float network, got a quantised one; call requantize for another width")
