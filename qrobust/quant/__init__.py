"""Quantisation-aware networks: learned-clip quantisers in Brevitas layers, FAT on their weights.

Names below load what they need when first used: Brevitas alone takes more time than torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..spectrum.fat import FAT, fold_fat
from .quantizer import (
    STRAIGHT_THROUGH,
    LearnedClip,
    Quantizer,
    best_clip,
    quantizers,
    set_straight_through,
    straight_through,
)
from .training import (
    bits_per_layer,
    kurtosis,
    latent_weights,
    lipschitz,
    mask_statistics,
    parameter_groups,
    present_names,
)

if TYPE_CHECKING:
    from .convert import EDGE_LAYERS, Origin, QuantConfig, calibrate, quantize, requantize
    from .costs import Cost, cost
    from .layers import first_unrounded, round_biases
    from .placement import BITS, EVERY
    from .posttraining import LayerError, PtqConfig, ptq

_WITH_BREVITAS = {
    "BITS": "placement",
    "Cost": "costs",
    "EDGE_LAYERS": "convert",
    "EVERY": "placement",
    "LayerError": "posttraining",
    "Origin": "convert",
    "PtqConfig": "posttraining",
    "QuantConfig": "convert",
    "calibrate": "convert",
    "cost": "costs",
    "first_unrounded": "layers",
    "ptq": "posttraining",
    "quantize": "convert",
    "requantize": "convert",
    "round_biases": "layers",
}
__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "EVERY",
    "FAT",
    "STRAIGHT_THROUGH",
    "Cost",
    "LayerError",
    "LearnedClip",
    "Origin",
    "PtqConfig",
    "QuantConfig",
    "Quantizer",
    "best_clip",
    "bits_per_layer",
    "calibrate",
    "cost",
    "first_unrounded",
    "fold_fat",
    "kurtosis",
    "latent_weights",
    "lipschitz",
    "mask_statistics",
    "parameter_groups",
    "present_names",
    "ptq",
    "quantize",
    "quantizers",
    "requantize",
    "round_biases",
    "set_straight_through",
    "straight_through",
]


def __getattr__(name: str) -> Any:
    if name not in _WITH_BREVITAS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_WITH_BREVITAS[name]}", __name__), name)
