"""From a trained network to the file that is deployed."""

from .artifact import Contents, optimised_ops, write_artifact
from .lowering import export_model, lower
from .suite import make_suite
from .target import Target, load_target

__all__ = [
    "Contents",
    "Target",
    "export_model",
    "load_target",
    "lower",
    "make_suite",
    "optimised_ops",
    "write_artifact",
]
