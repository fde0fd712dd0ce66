"""Imports point down: which packages may import which, and no circle among modules, lazy imports included."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches")]

import house  # noqa: E402

# From the bottom up; what stands in one layer does not import each other.
LAYERS = (
    {"errors", "runtime", "straight_through", "torchvision_cpu"},
    {"devices", "distributed", "headline", "objectives", "onnx_module", "progress", "resources", "spectrum", "storage",
     "threat"},
    {"models", "recipe", "data", "tables"},
    {"attacks", "quant"},
    {"evaluation", "train"},
    {"export"},
    {"bench", "deployed", "zoo"},
    {"runs"},
    {"analysis"},
    {"report", "cli_options", "cli_output"},
    {"cli_files", "cli_zoo"},
    {"cli"},
    {"__main__"},
)  # fmt: skip
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


@pytest.fixture(scope="module")
def below_root():
    return house.below_root(house.imports(ROOT))


def upward(graph):
    """Imports that do not point down, as text."""
    return sorted(
        f"{name} imports {other}"
        for name, read in house.packages(graph).items()
        for other in read
        if not LEVEL[other] < LEVEL[name]
    )


def test_every_package_has_a_layer(below_root):
    assert set(house.packages(below_root)) == set(LEVEL)


def test_imports_point_down(below_root):
    assert upward(below_root) == []


def test_no_modules_import_each_other(below_root):
    assert house.circles(below_root) == []


@pytest.mark.parametrize("source", ["from .runs.run import Run", "def lazy():\n    from .runs.run import Run"])
def test_an_import_that_points_up_is_seen(tmp_path, source):
    package = tmp_path / "qrobust"
    (package / "runs").mkdir(parents=True)
    for name in ("__init__", "runs/__init__"):
        (package / f"{name}.py").touch()
    (package / "storage.py").write_text(source)
    (package / "runs" / "run.py").write_text("from ..storage import write_json")
    graph = house.imports(tmp_path)
    assert upward({name: read for name, read in graph.items() if name}) == ["storage imports runs"]
    assert house.circles(graph) == [["runs.run", "storage"]]


def test_sessions_are_opened_in_one_place():
    """Besides the artifact's own contract, which needs nothing of the package."""
    opening = [path for path in (ROOT / "qrobust").rglob("*.py") if "InferenceSession(" in path.read_text()]
    assert sorted(path.relative_to(ROOT / "qrobust").as_posix() for path in opening) == [
        "export/sessions.py",
        "runtime.py",
    ]
