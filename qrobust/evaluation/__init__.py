"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

from .accuracy import evaluate, judge, predict
from .outcomes import Outcomes, compare, mcnemar, read_outcomes
from .sanity import CHEAP, DOUBTS, Flag, examine
from .sanity_measures import Subject

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
