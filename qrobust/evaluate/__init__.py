"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

import sys
from types import ModuleType
from typing import Any

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


class _Room(ModuleType):
    """This package, which may be called: imported, it stands where `qrobust.evaluate` names the function."""

    def __call__(self, *args: Any, **settings: Any) -> Outcomes:
        """`evaluate` itself."""
        return evaluate(*args, **settings)


sys.modules[__name__].__class__ = _Room
