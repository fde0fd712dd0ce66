"""Recipes: how a network is trained, quantised, evaluated and exported; checked before anything runs."""

from .parts import Average, Awp, Data, Export, Extra, Mix, Model, Sar, ThreatModel, TrainingAttack
from .reading import checked, difference, dump, load, located, made, parse, portable, read
from .schema import Quantisation, Recipe, Schedule, Training
from .values import CallSize, Count, Int, Name, Positive, Seconds, Table, Threads

__all__ = [
    "Average",
    "Awp",
    "CallSize",
    "Count",
    "Data",
    "Export",
    "Extra",
    "Int",
    "Mix",
    "Model",
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
    "made",
    "parse",
    "portable",
    "read",
]
