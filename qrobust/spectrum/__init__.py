"""Pure functions on tensors in the frequency domain."""

from .alignment import spectral_distance
from .fat import FAT_FORMS, fat_mask, fat_transform, filter_spectrum
from .filters import high_pass, low_pass

__all__ = ["FAT_FORMS", "fat_mask", "fat_transform", "filter_spectrum", "high_pass", "low_pass", "spectral_distance"]
