"""A LiteRT file out of a quantised ONNX graph: the same integers in int8, channels last."""

from .converting import Converted, to_tflite

__all__ = ["Converted", "to_tflite"]
