"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

from .accuracy import evaluate, judge, predict
from .outcomes import Outcomes, compare, mcnemar, read_outcomes
from .sanity import CHEAP_CHECKS, SANITY_CHECKS, Flag, check_sanity
from .sanity_measures import CheckedModel

__all__ = [
    "CHEAP_CHECKS",
    "SANITY_CHECKS",
    "CheckedModel",
    "Flag",
    "Outcomes",
    "check_sanity",
    "compare",
    "evaluate",
    "judge",
    "mcnemar",
    "predict",
    "read_outcomes",
]
