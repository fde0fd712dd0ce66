"""Images and labels: where they come from, how they are split, and how they reach the network.

    load(settings) ──▶ Dataset(train, validation, test) ──epoch_batches──▶ (x in [0,1], y) on the device

Images rest as uint8, in memory or in a mapped file, and become float32 in [0,1] on the device; normalisation
belongs inside the model.
"""

from .batches import epoch_batches
from .choice import choose, stratified_order
from .given import Given, as_images, image_batches
from .images import Dataset, Images, learning_batches, make_images, to_unit
from .loading import load
from .mapped import Mapped
from .mixing import MIXES
from .settings import DataSettings, Settings
from .sources import SOURCES

__all__ = [
    "MIXES",
    "SOURCES",
    "DataSettings",
    "Dataset",
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
    "make_images",
    "stratified_order",
    "to_unit",
]
