"""An ONNX graph as a torch module that computes what its runtime computes, with gradients whose form can be chosen."""

from .building import covered
from .module import OnnxModule, load_onnx
from .node import FORMS

__all__ = [
    "FORMS",
    "OnnxModule",
    "covered",
    "load_onnx",
]
