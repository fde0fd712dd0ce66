"""Pure functions on tensors in the frequency domain."""

from .alignment import spectral_distance
from .fat import FAT_FORMS, fat_mask, fat_transform

__all__ = ["FAT_FORMS", "fat_mask", "fat_transform", "spectral_distance"]
