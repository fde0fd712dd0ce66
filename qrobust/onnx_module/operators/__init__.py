"""What an `OnnxModule` can compute: one table, operator → function."""

from . import layers, pointwise, quantising, shaping
from .quantising import fake_quantise
from .table import CONTRIB, LARGEST, TABLE, Function, find, title

__all__ = [
    "CONTRIB",
    "LARGEST",
    "TABLE",
    "Function",
    "fake_quantise",
    "find",
    "layers",
    "pointwise",
    "quantising",
    "shaping",
    "title",
]
