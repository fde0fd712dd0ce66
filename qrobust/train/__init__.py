"""Adversarial training that continues where it stopped."""

from .checkpoint import State, is_whole, load_weights, read_metadata, save_weights
from .job import AUGMENTATION, Job, first_epoch, learning_rate
from .methods import METHODS
from .trainer import AVERAGE, MODEL, fit, plain_images

__all__ = [
    "AUGMENTATION",
    "AVERAGE",
    "METHODS",
    "MODEL",
    "Job",
    "State",
    "first_epoch",
    "fit",
    "is_whole",
    "learning_rate",
    "load_weights",
    "plain_images",
    "read_metadata",
    "save_weights",
]
