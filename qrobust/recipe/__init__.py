"""Recipes: how a network is trained, quantised, evaluated and exported; checked before anything runs."""

from .reading import checked, difference, dump, load, located, parse, read
from .schema import Average, Awp, Data, Quantisation, Recipe, Sar, Schedule, ThreatModel, Training, TrainingAttack
from .values import CallSize, Count, Int, Name, Positive, Seconds, Table, Threads

__all__ = [
    "Average",
    "Awp",
    "CallSize",
    "Count",
    "Data",
    "Int",
    "Name",
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
    "TrainingAttack",
    "checked",
    "difference",
    "dump",
    "load",
    "located",
    "parse",
    "read",
]
