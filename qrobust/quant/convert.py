"""Putting quantisers into a trained network, by its traced graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from ..data import image_batches
from ..devices import device_of
from ..errors import ModelError, did_you_mean
from ..models.inference import in_eval_mode, statistics_anew
from ..spectrum import FAT_FORMS
from ..spectrum.fat import FAT, fold_fat, transformed_conv
from .capture import check_capture, check_pools
from .graph import ORIGIN, Shape, capture, example_images
from .layers import round_biases
from .placement import BITS, FLOAT_BITS, SUM_BITS, Bits, Placement, Style, check_bits, fat_for, layer_widths
from .quantizer import CALIBRATORS, calibrating, quantizers
from .reading import UNSUPPORTED, Reading

__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "SUM_BITS",
    "Origin",
    "QuantConfig",
    "calibrate",
    "quantize",
    "requantize",
]

EDGE_LAYERS = ("int8", "float")
CHOICES = {
    "edge_layers": EDGE_LAYERS,
    "classifier": (None, *EDGE_LAYERS, "n"),
    "shortcuts": ("float", "int8", "n"),
    "activation_range": ("narrow", "full"),
    "unsupported": UNSUPPORTED,
    "calibrator": tuple(CALIBRATORS),
}
LEAST = "qrobust.least_bits"  # in the graph's `meta`: see Placement.least


@dataclass(frozen=True)
class QuantConfig:
    """How `quantize` makes QM-n of a network; its bits alone stand for all of it.

    bits: 2 to 8, or widths by patterns of module names, of which the last that matches decides:
    `{"*": 4, "layer3.*": 8, "layer1.0.conv1": 32}`; "*" is n, 32 leaves weight and input in float. 32 alone quantises
    nothing: the network is the same but for FAT, which `fold_fat` puts into its weights for good. activation_bits: the
    same for what layers read, if that is not to be their weight's width; of layers that read one activation the largest
    width holds. fat: "paper", "normalised", "identity" (standardised weights without a mask) or "none"; for inner
    convolutions. edge_layers: the first layers and the classifier keep "int8" or "float" weights and inputs, unless a
    pattern other than "*" names them. per_channel: one weight clip per output channel.
    classifier: "int8", "float" or "n" for the classifier alone; None: as edge_layers. shortcuts: what residual sums
    read and give. "n": what a layer reads too has its width there, else 8 bits. "int8": 8 bits always, behind which
    layers have a quantiser of their own. "float": as in the papers on FAT; convolutions that a sum reads run in float
    then, which targets that require integer convolutions (ort-cpu) refuse. activation_range: of signed inner
    activations (hardtanh), "narrow" from -(2^(n-1) - 1), or "full" with one level more below. unsupported: what has no
    integer form (a LayerNorm, attention, a transposed convolution) stays "float" between quantisers, or is a ModelError
    ("refuse"). calibrator: what places clips: "mse", the least squared error, "min-max", or "percentile-99.9" and
    "percentile-99.99" of activations, weights then by their largest.
    Raises ModelError for settings out of range.
    """

    bits: Bits = 4
    activation_bits: Bits | None = None
    fat: str = "normalised"
    edge_layers: str = "int8"
    per_channel: bool = True
    classifier: str | None = None
    shortcuts: str = "n"
    activation_range: str = "narrow"
    unsupported: str = "float"
    calibrator: str = "mse"

    def __post_init__(self) -> None:
        if self.bits != FLOAT_BITS:
            check_bits(self.bits)
        elif self.activation_bits is not None:
            raise ModelError(f"expected no activation_bits beside bits=32, got {self.activation_bits}; leave them out")
        if self.fat not in (*FAT_FORMS, "none"):
            raise ModelError(f"expected a form of FAT, got {self.fat!r}{did_you_mean(self.fat, (*FAT_FORMS, 'none'))}")
        for name, known in CHOICES.items():
            if (given := getattr(self, name)) not in known:
                expected = " or ".join(repr(one) for one in known if one is not None)
                raise ModelError(f"expected {name} {expected}, got {given!r}")


@dataclass(frozen=True)
class Origin:
    """What a quantised network was made from: the float one, its weights left out, and how.

    Enough to make its modules again, which cannot be pickled themselves, since Brevitas makes classes as it goes.
    """

    network: nn.Module
    config: QuantConfig
    shape: Shape | None = None  # of its images, (c, h, w)

    @staticmethod
    def details(model: nn.Module) -> dict[str, Any]:
        """What changed since `quantize`, JSON-ready: width and backward form of each quantiser; is FAT folded?"""
        found = list(quantizers(model))
        folded = not any(isinstance(module, FAT) for module in model.modules())
        return {"bits": [one.bits for one in found], "backward": [one.backward for one in found], "folded": folded}

    def rebuild(self, details: Mapping[str, Any]) -> nn.Module:
        """The quantised network with `details`, on the CPU, all weights 0."""
        network = copy.deepcopy(self.network).to_empty(device="cpu")
        for tensor in network.state_dict().values():
            tensor.zero_()
        graph = _quantised(_read(capture(network, self.shape), self.config), self.config)
        graph.meta[ORIGIN] = self
        for quantizer, bits, backward in zip(quantizers(graph), details["bits"], details["backward"], strict=True):
            quantizer.set_bits(bits)
            quantizer.backward = backward
        return fold_fat(graph) if details["folded"] else graph

    def restore(
        self, tensors: Mapping[str, Tensor], details: Mapping[str, Any], modes: Mapping[str, bool], fixed: set[str]
    ) -> nn.Module:
        """The network that was pickled. modes: whether in train mode, by module; fixed: parameters without gradient."""
        model = self.rebuild(details)
        model.load_state_dict(tensors, assign=True)
        for quantizer in quantizers(model):
            quantizer.to(quantizer.unit)  # what a state leaves out
        for name, module in model.named_modules():
            module.training = modes.get(name, model.training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in fixed)
        return model

    def reduce(self, model: nn.Module) -> tuple[Any, ...]:
        """What pickle asks of a network made from this."""
        modes = {name: module.training for name, module in model.named_modules()}
        fixed = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        return self.restore, (model.state_dict(), self.details(model), modes, fixed)


def quantize(
    model: nn.Module,
    config: QuantConfig | Bits = QuantConfig(),
    *,
    calibration: object,
    shape: Shape | None = None,
    estimate_statistics: bool | None = None,
) -> nn.Module:
    """QM-n: a copy of a trained network whose inner layers have n-bit weights and read n-bit inputs.

    model: any convolutional network that torch.fx can trace, of the modules in `reading.SUPPORTED` or the
    functions that do the same. config: or its bits alone, as in `quantize(model, 4, calibration=images)`.
    calibration: images (n, c, h, w) in [0,1] or uint8 that place the clips, or batches of them, as
    `data.image_batches` takes them (labels are not read); None leaves the clips for weights that are loaded next.
    estimate_statistics: take batch-norm's from these images too; None: where FAT changes weights, behind which the old
    ones are far off. Else they stay: 64 images know them so badly that an 8-bit network gives other labels. Ask for it
    at 2 and 3 bits, with hundreds of images, where no training follows: so coarse weights move the statistics further
    than that.

    What sums, products, concatenations, pools and functions like SiLU read has 8 bits: they hold no product
    of weights, and at n bits a sum would lose its small part. Biases are rounded (`round_biases`), so that what is
    evaluated is what `export_model` writes; `fit` and `export_artifact` do the same.
    Raises ModelError for settings out of range, for patterns that name nothing, for a module without a quantised
    form, by name, and where the captured graph does not compute what the network does, with the first module apart.

    >>> import torch, qrobust
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
    >>> qm4 = qrobust.quantize(net.eval(), 4, calibration=torch.rand(16, 1, 8, 8))
    >>> sorted({quantizer.bits for quantizer in qrobust.quant.quantizers(qm4)})  # edge layers keep 8
    [8]
    """
    config = config if isinstance(config, QuantConfig) else QuantConfig(config)
    if any(True for _ in quantizers(model)):
        raise ModelError("expected a float network, got a quantised one; call requantize for another width")
    batches = iter(()) if calibration is None else calibration_images(model, calibration)
    images = next(batches, None)
    shape = shape if images is None else tuple(images.shape[1:])
    captured = capture(model, shape)
    reading = _read(captured, config)
    if config.bits != FLOAT_BITS:  # else the network itself is returned, not its graph
        given = example_images(model, shape) if images is None else images
        check_capture(model, captured, given)
        check_pools(captured, given)
    with device_of(model):  # where new layers are made
        made = _transformed(model, reading, config.fat) if config.bits == FLOAT_BITS else _quantised(reading, config)
    if isinstance(made, fx.GraphModule):
        made.meta[ORIGIN] = Origin(copy.deepcopy(model).to("meta"), config, shape)
    if images is not None:
        anew = config.fat != "none" if estimate_statistics is None else estimate_statistics
        calibrate(made, chain([images], batches), estimate_statistics=anew, calibrator=config.calibrator)
        _round(made)
    return made


def requantize(
    model: nn.Module, bits: int, *, calibration: object, estimate_statistics: bool | None = None
) -> nn.Module:
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
    behind_fat = any(isinstance(module, FAT) for module in copied.modules())
    origin = getattr(copied, "meta", {}).get(ORIGIN)
    calibrate(
        copied,
        calibration,
        estimate_statistics=behind_fat if estimate_statistics is None else estimate_statistics,
        calibrator=origin.config.calibrator if origin else "mse",
    )
    _round(copied)
    return copied


@torch.no_grad()
def calibrate(model: nn.Module, batches: object, *, estimate_statistics: bool = False, calibrator: str = "mse") -> None:
    """Place clips by batches of images in [0,1], and batch-norm's statistics if asked; leaves the mode as it was.
    calibrator: as of `QuantConfig`.

    Biases should be rounded then (`round_biases`), as `quantize` does: the steps of their grid follow the clips.
    """
    with statistics_anew(model) if estimate_statistics else in_eval_mode(model), calibrating(model, calibrator):
        for x in calibration_images(model, batches):
            model(x)


def calibration_images(model: nn.Module, calibration: object) -> Iterator[Tensor]:
    """Batches (n, c, h, w), of the network's type and on its device. Raises ModelError unless they are images."""
    like, count = next(model.parameters()), 0
    for x in image_batches(calibration):
        if x.dim() != 4 or not len(x) or not x.is_floating_point():
            raise ModelError(
                "expected calibration images as floats or bytes (n, c, h, w), "
                f"got {x.dtype} {tuple(x.shape)}; pass batches of them"
            )
        if not (x.min() >= 0 and x.max() <= 1):  # so that NaN is refused too
            raise ModelError(
                f"expected calibration images in [0, 1], got [{x.min():.3g}, {x.max():.3g}]; pass unnormalised images"
            )
        yield x.to(like)
        count += 1
    if not count:
        raise ModelError("expected at least one batch of calibration images, got none; pass some")


def _round(model: nn.Module) -> None:
    """Biases on their grid, in a network that has integers."""
    if isinstance(model, fx.GraphModule):
        round_biases(model)


def _transformed(model: nn.Module, reading: Reading, form: str) -> nn.Module:
    """A copy with FAT on its inner convolutions; not the graph, so that what it does in train mode stays too."""
    copied = copy.deepcopy(model)
    for node in reading.layers:
        fat = fat_for(reading, node, form)
        if fat is not None:
            path = str(node.target)
            copied.set_submodule(path, transformed_conv(cast(nn.Conv2d, copied.get_submodule(path)), fat))
    return copied


def _read(captured: fx.GraphModule, config: QuantConfig) -> Reading:
    return Reading(captured, config.unsupported, config.shortcuts)


def _quantised(reading: Reading, config: QuantConfig) -> fx.GraphModule:
    names = {str(node.target): node for node in reading.layers}
    edges = {str(node.target): config.edge_layers for node in reading.edges}
    if config.classifier is not None:
        edges |= {str(node.target): config.classifier for node in reading.classifiers}
    edges = {name: apart for name, apart in edges.items() if apart != "n"}
    widths = layer_widths(names, edges, bits=config.bits, activation_bits=config.activation_bits)
    style = Style(config.fat, config.per_channel, config.shortcuts, config.activation_range == "full")
    placement = Placement(reading, {names[name]: width for name, width in widths.items()}, style)
    placement.run()
    reading.graph.meta[LEAST] = placement.least
    reading.graph.recompile()
    return reading.graph
