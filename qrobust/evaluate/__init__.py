"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

from .compare import compare
from .doubt import DOUBTS, Flag, doubt
from .evaluation import evaluate
from .judge import judge, predict
from .outcomes import Outcomes, read_outcomes
from .statistics import mcnemar

__all__ = [
    "DOUBTS",
    "Flag",
    "Outcomes",
    "compare",
    "doubt",
    "evaluate",
    "judge",
    "mcnemar",
    "predict",
    "read_outcomes",
]
