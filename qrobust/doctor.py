"""What this machine has for qrobust."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import metadata

from .errors import one_line

NEEDED = (
    "torch",
    "torchvision",
    "brevitas",
    "onnx",
    "onnxscript",
    "onnxoptimizer",
    "numpy",
    "safetensors",
    "pydantic",
)


@dataclass(frozen=True)
class Finding:
    """One thing looked for: whether it is there, what was found, what to do if not."""

    name: str
    passed: bool
    reason: str
    hint: str = ""


def findings() -> list[Finding]:
    """Packages, runtime providers, accelerator, compiler."""
    packages = [_package(name) for name in NEEDED]
    return [*packages, _runtime(), _accelerator(), _compiler()]


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, False, "not installed", f"pip install {name}")


def _runtime() -> Finding:
    try:
        import onnxruntime
    except ImportError as error:
        return Finding("onnxruntime", False, one_line(error), "pip install onnxruntime")
    providers = ", ".join(onnxruntime.get_available_providers())
    return Finding("onnxruntime", True, f"{onnxruntime.__version__} with {providers}")


def _accelerator() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that it needs may be missing
        return Finding("accelerator", False, one_line(error), "pip install torch")
    if torch.cuda.is_available():
        return Finding("accelerator", True, torch.cuda.get_device_name())
    return Finding("accelerator", True, f"none; {torch.get_num_threads()} CPU threads")


def _compiler() -> Finding:
    found = shutil.which("c++") or shutil.which("g++") or shutil.which("cl")
    return Finding("C++ compiler", True, found or "none; needed for torch.compile only")
