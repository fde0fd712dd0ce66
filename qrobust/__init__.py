"""qrobust: from a recipe to a quantised ONNX network whose robustness is known before and after export.

    recipe ──train──▶ float net ──quantize──▶ QM-n ──evaluate──▶ numbers ──export──▶ artifact ──check──▶ verdict

Names below load what they need when first used, so `import qrobust` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .deployed.attack import attack
    from .deployed.given import FileConfig, export_file
    from .evaluation import evaluate
    from .export.given import ExportConfig, export_artifact
    from .export.target import check
    from .export.write import export_model
    from .quant import QuantConfig, quantize
    from .runs.saved import load, save
    from .runtime import Artifact
    from .threat import Threat
    from .train.fitting import Fitted, fit

_HOMES = {
    "Artifact": ".runtime",
    "ExportConfig": ".export.given",
    "FileConfig": ".deployed.given",
    "Fitted": ".train.fitting",
    "QuantConfig": ".quant",
    "Threat": ".threat",
    "attack": ".deployed.attack",
    "check": ".export.target",
    "evaluate": ".evaluation",
    "export_artifact": ".export.given",
    "export_file": ".deployed.given",
    "export_model": ".export.write",
    "fit": ".train.fitting",
    "load": ".runs.saved",
    "quantize": ".quant",
    "save": ".runs.saved",
}
__all__ = [
    "Artifact",
    "ExportConfig",
    "FileConfig",
    "Fitted",
    "QuantConfig",
    "Threat",
    "__version__",
    "attack",
    "check",
    "evaluate",
    "export_artifact",
    "export_file",
    "export_model",
    "fit",
    "load",
    "quantize",
    "save",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qrobust' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
