"""Images and labels: where they come from, how they are split, and how they reach the network.

    load(settings) ──▶ Dataset(train, validation, test) ──epoch_batches──▶ (x in [0,1], y) on the device

Images rest as uint8, in memory or in a mapped file, and become float32 in [0,1] on the device; normalisation
belongs inside the model.
"""

from .augment import MIXES, epoch_batches
from .extra import Extra, load_extra
from .given import Given, as_images, image_batches
from .images import Dataset, Images, Mapped, learning_batches, make_images, to_unit
from .loading import choose, load, stratified_order
from .sources import SOURCES
from .sources.registry import DataSettings, Settings

__all__ = [
    "MIXES",
    "SOURCES",
    "DataSettings",
    "Dataset",
    "Extra",
    "Given",
    "Images",
    "Mapped",
    "Settings",
    "as_images",
    "choose",
    "epoch_batches",
    "image_batches",
    "learning_batches",
    "load",
    "load_extra",
    "make_images",
    "stratified_order",
    "to_unit",
]
