"""A whole run at reduced size, made once and shared; the command line; what a test may need and not find."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
from filelock import FileLock

from qrobust.__main__ import main

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is there: tests are small, and every worker has a core
SMALL = (
    "train.epochs=3", "train.milestones=[2]", "train.batch_size=128", "train.attack.steps=2",
    "train.validation.steps=2", "quant.epochs=1", "quant.milestones=[]", "data.test_size=120", "data.train_size=800",
    "evaluate.n=120", "evaluate.attacks=['gn','pgd-5']", "export.suite_n=120", "export.suite_attacks=['pgd-5']",
    "bench.seconds=0.1", "attack.n=40", "attack.attacks=['pgd-5', 'square-20']",
    "analyze.figures=['mean-spectrum']", "analyze.n=40",
)  # fmt: skip
CommandLine = Callable[..., tuple[int, str, str]]


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


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all workers; not to be changed by a test."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    made = folder / ".made"
    with FileLock(folder.with_suffix(".lock")):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by another worker's error
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def ended(*arguments: str) -> int:
    """The exit code of `qrobust ARGUMENTS` in this process, seconds faster than in its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["qrobust", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on digits: QM-32, QM-4 and QM-2. Not to be changed."""

    def make(folder: Path) -> None:
        code = ended("run", "digits", *overrides(), "--out", str(folder / "run"))
        passed = json.loads((folder / "run" / "report.json").read_text())["passed"]  # which few epochs need not have
        assert code == (0 if passed else 1)

    return once(tmp_path_factory, "small", make) / "run"


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """`qrobust ARGUMENTS` in this process and in tmp_path: exit code, output, errors, those of a child too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: (ended(*arguments), *capfd.readouterr())


# What a test may need and not find

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NODE = Path(__file__).resolve().parent / "javascript"  # what `npm ci --ignore-scripts` there installs
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PACKAGES = {"ai-edge-litert": "ai_edge_litert", "foolbox": "foolbox", "lightning": "lightning",
            "onnxoptimizer": "onnxoptimizer", "onnxscript": "onnxscript", "openvino": "openvino", "pyyaml": "yaml",
            "scipy": "scipy", "torchattacks": "torchattacks", "trackio": "trackio"}  # fmt: skip
EVIDENCE: dict[str, tuple[Callable[[], object], str]] = {
    "browser": (lambda: next(filter(None, map(shutil.which, BROWSERS)), None), f"one of {', '.join(BROWSERS)}"),
    "compiler": (lambda: shutil.which("c++"), "a C++ compiler, c++"),
    "node": (
        lambda: (NODE / "node_modules" / "onnxruntime-web").is_dir() and shutil.which("node"),
        "node, and `npm ci --ignore-scripts` in tests/javascript",
    ),
    "images": (lambda: SHARED.is_dir() and SHARED, "real images in ../shared/data, next to the repository"),
    **{group: (partial(importlib.util.find_spec, module), f"package {group}") for group, module in PACKAGES.items()},
}


def asked_for(text: str) -> set[str]:
    """The groups that QROBUST_EVIDENCE names: `all`, or some with commas between them."""
    asked = {name.strip() for name in text.split(",")} - {""}
    if unknown := asked - {"all", *EVIDENCE}:
        raise pytest.UsageError(
            f"expected QROBUST_EVIDENCE as all or some of {', '.join(EVIDENCE)}, got {', '.join(sorted(unknown))}"
        )
    return set(EVIDENCE) if "all" in asked else asked


def evidence(group: str) -> object:
    """What a group's tests need; where it is missing they are skipped, or fail if QROBUST_EVIDENCE asks for it.

    Called in a test, in a fixture, or at the top of a module, whose tests it then stands for.
    """
    look, what = EVIDENCE[group]
    if found := look():
        return found
    if group in asked_for(os.environ.get("QROBUST_EVIDENCE", "")):
        pytest.fail(f"QROBUST_EVIDENCE asks for {group}: expected {what}; install it, or leave {group} out")
    return pytest.skip(f"needs {what} (evidence: {group})", allow_module_level=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the small run first: one worker's share, so that none waits while another makes it."""
    items.sort(key=lambda item: "small_run" not in getattr(item, "fixturenames", ()))


def pytest_configure() -> None:
    asked_for(os.environ.get("QROBUST_EVIDENCE", ""))  # a slip in a name asks for nothing, and would be silent
