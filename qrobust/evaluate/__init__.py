"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

from .compare import compare
from .doubt import CHEAP, DOUBTS, Flag, examine
from .evaluation import evaluate
from .judge import judge, predict
from .outcomes import Outcomes, read_outcomes
from .statistics import mcnemar
from .subject import Subject

__all__ = [
    "CHEAP",
    "DOUBTS",
    "Flag",
    "Outcomes",
    "Subject",
    "compare",
    "evaluate",
    "examine",
    "judge",
    "mcnemar",
    "predict",
    "read_outcomes",
]
