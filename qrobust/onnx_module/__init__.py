"""An ONNX graph as a torch module that computes what its runtime computes, with gradients whose form can be chosen.

What needs torch loads it when first used: a file alone (`file`) is read without.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .building import covered
    from .module import OnnxModule, load_onnx
    from .node import FORMS

_HOMES = {"FORMS": ".node", "OnnxModule": ".module", "covered": ".building", "load_onnx": ".module"}
__all__ = ["FORMS", "OnnxModule", "covered", "load_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
