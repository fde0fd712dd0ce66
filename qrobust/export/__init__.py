"""From a trained network to the file that is deployed."""

from .artifact import Contents, write_artifact
from .lowering import INPUTS, export_model, lower
from .optimised import optimised_ops
from .suite import make_suite
from .target import Target, load_target

__all__ = [
    "INPUTS",
    "Contents",
    "Target",
    "export_model",
    "load_target",
    "lower",
    "make_suite",
    "optimised_ops",
    "write_artifact",
]
