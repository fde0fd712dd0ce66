"""Quantisation-aware networks: learned-clip quantisers in Brevitas layers, FAT on their weights."""

from .biases import round_biases
from .convert import BITS, EDGE_LAYERS, calibrate, quantize, requantize
from .layers import FAT, fold_fat, set_export_form
from .qcdq import INPUT, OPSET, OUTPUT, write_qcdq
from .quantizers import STRAIGHT_THROUGH, LearnedClip, Quantizer, best_clip, quantizers, straight_through
from .training import bits_per_layer, latent_weights, parameter_groups

__all__ = [
    "BITS",
    "EDGE_LAYERS",
    "FAT",
    "INPUT",
    "OPSET",
    "OUTPUT",
    "STRAIGHT_THROUGH",
    "LearnedClip",
    "Quantizer",
    "best_clip",
    "bits_per_layer",
    "calibrate",
    "fold_fat",
    "latent_weights",
    "parameter_groups",
    "quantize",
    "quantizers",
    "requantize",
    "round_biases",
    "set_export_form",
    "straight_through",
    "write_qcdq",
]
