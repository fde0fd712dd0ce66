"""Robustness numbers: attacks propose, `judge` decides, every number comes with n and an interval."""

from .evaluation import Outcomes, evaluate
from .judge import judge, predict

__all__ = ["Outcomes", "evaluate", "judge", "predict"]
