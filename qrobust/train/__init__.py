"""Adversarial training that continues where it stopped."""

from .checkpoint import load_weights, read_metadata, save_weights
from .loop import Job, fit
from .schedule import learning_rate, sar_starts

__all__ = ["Job", "fit", "learning_rate", "load_weights", "read_metadata", "sar_starts", "save_weights"]
