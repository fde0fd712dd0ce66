"""Quantisation-aware networks: learned-clip quantisers in Brevitas layers, FAT on their weights."""

from .biases import first_unrounded, round_biases
from .convert import BITS, EDGE_LAYERS, calibrate, quantize, requantize
from .cost import Cost, cost
from .layers import FAT, fold_fat, set_export_form, weights_first
from .qcdq import INPUT, OPSET, OUTPUT, write_qcdq
from .quantizers import (
    STRAIGHT_THROUGH,
    LearnedClip,
    Quantizer,
    best_clip,
    quantizers,
    set_straight_through,
    straight_through,
)
from .regularise import kurtosis, lipschitz
from .training import bits_per_layer, latent_weights, mask_statistics, parameter_groups
from .widths import EVERY

__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "EVERY",
    "FAT",
    "INPUT",
    "OPSET",
    "OUTPUT",
    "STRAIGHT_THROUGH",
    "Cost",
    "LearnedClip",
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
    "quantize",
    "quantizers",
    "requantize",
    "round_biases",
    "set_export_form",
    "set_straight_through",
    "straight_through",
    "weights_first",
    "write_qcdq",
]
