"""A whole run at reduced size, made once and shared; and the command line as a user calls it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there: tests are small, and machines have other work
SMALL = (
    "train.epochs=3", "train.milestones=[2]", "train.batch_size=128", "train.attack.steps=2",
    "train.validation.steps=2", "quant.epochs=1", "quant.milestones=[]", "data.test_size=120",
    "evaluate.n=120", "evaluate.attacks=['gn','pgd-5']", "export.suite_n=120", "export.suite_attacks=['pgd-5']",
    "bench.seconds=0.1", "attack.n=40", "attack.attacks=['pgd-5', 'square-20']",
)  # fmt: skip
Command = Callable[..., subprocess.CompletedProcess[str]]


def overrides(*more: str) -> list[str]:
    """The reduced size as `-o KEY=VALUE` arguments; later ones win."""
    return [part for setting in (*SMALL, *more) for part in ("-o", setting)]


def call(arguments: Sequence[str], cwd: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """`qrobust ARGUMENTS` in a process of its own, warnings silent as for a user."""
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "qrobust", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, env=environment)


def docs_generator() -> ModuleType:
    """docs/generate.py, which is no part of a package."""
    path = Path(__file__).resolve().parent.parent / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on digits: QM-32, QM-4 and QM-2."""
    folder = tmp_path_factory.mktemp("small") / "run"
    done = call(["run", "digits", *overrides(), "--out", str(folder)], folder.parent)
    passed = json.loads((folder / "report.json").read_text())["passed"]  # which three epochs need not have
    assert done.returncode == (0 if passed else 1), done.stderr
    return folder
