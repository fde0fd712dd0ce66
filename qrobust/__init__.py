"""qrobust: from a recipe to a quantised ONNX network whose robustness is known before and after export.

    recipe ──train──▶ float net ──quantize──▶ QM-n ──evaluate──▶ numbers ──export──▶ artifact ──check──▶ verdict

Names below load what they need when first used, so `import qrobust` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .evaluation import evaluate
    from .export.write import export_model
    from .quant import quantize
    from .runtime import Artifact
    from .threat import Threat

_HOMES = {
    "Artifact": ".runtime",
    "Threat": ".threat",
    "evaluate": ".evaluation",
    "export_model": ".export.write",
    "quantize": ".quant",
}
__all__ = ["Artifact", "Threat", "__version__", "evaluate", "export_model", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qrobust' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
