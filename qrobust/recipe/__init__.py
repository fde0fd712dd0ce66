"""Recipes: how a network is trained, quantised, evaluated and exported; checked before anything runs."""

from .differences import difference
from .reading import checked, dump, load, parse
from .tables import (
    Average,
    Awp,
    CallSize,
    Count,
    Craft,
    Data,
    Int,
    Positive,
    Quantisation,
    Recipe,
    Sar,
    Schedule,
    Seconds,
    Table,
    Threads,
    ThreatModel,
    Training,
)

__all__ = [
    "Average",
    "Awp",
    "CallSize",
    "Count",
    "Craft",
    "Data",
    "Int",
    "Positive",
    "Quantisation",
    "Recipe",
    "Sar",
    "Schedule",
    "Seconds",
    "Table",
    "Threads",
    "ThreatModel",
    "Training",
    "checked",
    "difference",
    "dump",
    "load",
    "parse",
]
