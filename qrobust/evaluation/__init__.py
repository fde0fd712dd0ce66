"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

import sys
from types import ModuleType
from typing import Any

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


class _Room(ModuleType):
    """This package, which may be called: imported, it stands where `qrobust.evaluate` names the function."""

    def __call__(self, *args: Any, **settings: Any) -> Outcomes:
        """`evaluate` itself."""
        return evaluate(*args, **settings)


sys.modules[__name__].__class__ = _Room
