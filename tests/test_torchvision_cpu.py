"""torchvision imports beside a CPU-only torch, however often and in whatever order it is asked for."""

import subprocess
import sys

import pytest
import torch

from qrobust import torchvision_cpu
from qrobust.torchvision_cpu import import_torchvision


def test_imports_and_is_idempotent():
    first = import_torchvision()
    kept = list(torchvision_cpu._kept)
    assert import_torchvision() is first
    assert torchvision_cpu._kept == kept


def test_what_the_toolkit_needs_works():
    torchvision = import_torchvision()
    assert torchvision.models.resnet18(num_classes=3).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert torchvision.datasets.CIFAR10.base_folder == "cifar-10-batches-py"


def test_the_operator_exists_afterwards():
    import_torchvision()
    assert torchvision_cpu._operators_exist()


@pytest.mark.parametrize(
    ("cuda", "exists", "loads"), [("13.0", False, False), (None, True, False), (None, False, True)]
)
def test_declares_nothing_where_torchvision_can_help_itself(monkeypatch, cuda, exists, loads):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torchvision_cpu, "_operators_exist", lambda: exists)
    monkeypatch.setattr(torchvision_cpu, "_library_loads", lambda: loads)
    monkeypatch.setattr(torchvision_cpu, "_declare", lambda: pytest.fail("declared"))
    monkeypatch.setattr(torchvision_cpu.importlib, "import_module", lambda name: name)
    assert import_torchvision() == "torchvision"


def test_no_library_where_torchvision_is_not_installed(monkeypatch):
    monkeypatch.setattr(torchvision_cpu.importlib.util, "find_spec", lambda name: None)
    assert torchvision_cpu._library_path() is None


def test_recovers_from_an_import_that_failed_before():
    """A user may have tried `import torchvision` first; a fresh process, because operators last."""
    code = (
        "try:\n    import torchvision\nexcept RuntimeError:\n    pass\n"
        "from qrobust.torchvision_cpu import import_torchvision\n"
        "print(import_torchvision().__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "torchvision\n", done.stderr
