"""What an `OnnxModule` can compute: one table, operator → function."""

from . import attention, fused, indexing, layers, pointwise, quantising, resizing, shaping
from .quantising import fake_quantise
from .table import CONTRIB, LARGEST, TABLE, Function, find, title

__all__ = [
    "CONTRIB",
    "LARGEST",
    "TABLE",
    "Function",
    "attention",
    "fake_quantise",
    "find",
    "fused",
    "indexing",
    "layers",
    "pointwise",
    "quantising",
    "resizing",
    "shaping",
    "title",
]
