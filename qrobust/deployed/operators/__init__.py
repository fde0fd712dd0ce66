"""What a twin can compute: one table, operator → function."""

from . import layers, pointwise, pooling, quantising, shaping
from .elements import LARGEST
from .quantising import fake_quantise
from .table import CONTRIB, TABLE, Function, find, title

__all__ = [
    "CONTRIB",
    "LARGEST",
    "TABLE",
    "Function",
    "fake_quantise",
    "find",
    "layers",
    "pointwise",
    "pooling",
    "quantising",
    "shaping",
    "title",
]
