"""Quantisation-aware networks: learned-clip quantisers in Brevitas layers, FAT on their weights."""

from .convert import EDGE_LAYERS, QuantConfig, calibrate, quantize, requantize
from .cost import Cost, cost
from .layers import FAT, first_unrounded, fold_fat, round_biases, set_export_form
from .placement import BITS, EVERY
from .quantizer import (
    STRAIGHT_THROUGH,
    LearnedClip,
    Quantizer,
    best_clip,
    quantizers,
    set_straight_through,
    straight_through,
)
from .training import bits_per_layer, kurtosis, latent_weights, lipschitz, mask_statistics, parameter_groups

__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "EVERY",
    "FAT",
    "STRAIGHT_THROUGH",
    "Cost",
    "LearnedClip",
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
    "quantize",
    "quantizers",
    "requantize",
    "round_biases",
    "set_export_form",
    "set_straight_through",
    "straight_through",
]
