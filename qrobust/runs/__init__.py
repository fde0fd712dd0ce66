"""A run: its folder, the stages that fill it, and their order."""

from .folder import FLOAT, NetworkFolder, RunFolder
from .run import Run
from .stages import Stage

__all__ = ["FLOAT", "NetworkFolder", "Run", "RunFolder", "Stage"]
