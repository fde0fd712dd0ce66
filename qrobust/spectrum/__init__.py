"""Pure functions on tensors in the frequency domain, and what a network answers to them."""

from .fat import FAT, FAT_FORMS, fat_mask, fat_transform, filter_spectrum, fold_fat
from .filters import (
    check_bandwidth,
    fourier_basis,
    half_plane,
    high_pass,
    kernel_spectrum,
    log_spectrum,
    low_pass,
    low_to_high,
    magnitudes,
    mean_spectrum,
)
from .responses import banded, first_activation, heat_map, low_pass_accuracy, perturbed_accuracy
from .similarity import Alignment, layer_names, linear_cka, network_alignment, network_cka

__all__ = [
    "FAT",
    "FAT_FORMS",
    "Alignment",
    "banded",
    "check_bandwidth",
    "fat_mask",
    "fat_transform",
    "filter_spectrum",
    "first_activation",
    "fold_fat",
    "fourier_basis",
    "half_plane",
    "heat_map",
    "high_pass",
    "kernel_spectrum",
    "layer_names",
    "linear_cka",
    "log_spectrum",
    "low_pass",
    "low_pass_accuracy",
    "low_to_high",
    "magnitudes",
    "mean_spectrum",
    "network_alignment",
    "network_cka",
    "perturbed_accuracy",
]
