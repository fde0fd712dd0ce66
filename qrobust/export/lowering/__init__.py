"""From a network that torch.export has read to an ONNX graph: every name, scale and width is known here."""

from .forms import FORMS
from .lowering import Quantised
from .program import Names, lower_program

__all__ = ["FORMS", "Names", "Quantised", "lower_program"]
