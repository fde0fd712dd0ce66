"""What is installed: a wheel's contents, its data files, and the public names."""

from __future__ import annotations

import ast
import configparser
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import qrobust
from qrobust import resources, runtime

from .conftest import once

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once: two that build in the checkout disturb each other."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return next(once(tmp_path_factory, "wheel", make).glob("*.whl"))


def test_a_wheel_holds_the_package_the_recipes_and_the_targets(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = {str(path.relative_to(ROOT)) for path in (ROOT / "qrobust").rglob("*.py")}
    assert tracked <= names
    assert "qrobust/py.typed" in names
    shipped = {name.partition(".data/data/")[2] for name in names if ".data/data/" in name}
    for kind in resources.KINDS:
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / kind).rglob("*") if path.is_file()}
        assert {f"share/qrobust/{name}" for name in files} <= shipped
    assert not [name for name in names if name.startswith(("tests/", "benches/", "docs/"))]


def test_an_installed_wheel_finds_recipes_by_name(wheel: Path, tmp_path: Path) -> None:
    """Without its dependencies' weight: only the code that resolves names is run there."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", str(wheel)]
    apart = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # a checkout there is no wheel
    subprocess.run(pip, check=True, capture_output=True, env=apart)
    program = (
        "from qrobust import resources as r; print(r.find('export', 'ort-cpu')); print(r.find('recipes', 'digits'))\n"
        "print(r.find('recipes', 'spectral/cifar10-resnet18-at')); print(*dict(r.listing('recipes')).values())\n"
        "assert r.defaults('export')"
    )
    done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[2].endswith("/recipes/spectral.toml#cifar10-resnet18-at")
    assert len(lines) == 3 + len(dict(resources.listing("recipes")))
    for line in lines:
        assert Path(line).is_relative_to(tmp_path / "env" / "share" / "qrobust")


def test_a_checkout_finds_its_own_recipes(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    program += "from qrobust import resources as r; print(r.find('recipes', 'digits'))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "recipes" / "digits.toml"), done.stderr


def test_public_names() -> None:
    assert sorted(qrobust.__all__) == [
        "Artifact", "ExportConfig", "FileConfig", "Fitted", "QuantConfig", "Threat", "__version__", "attack", "check",
        "evaluate", "export_artifact", "export_file", "export_model", "fit", "load", "quantize", "save",
    ]  # fmt: skip
    for name in qrobust.__all__:
        assert getattr(qrobust, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qrobust.nothing


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    """A module of the same name would stand where the function was."""
    for module in pkgutil.walk_packages(qrobust.__path__, "qrobust."):
        importlib.import_module(module.name)
    for name in (name for name in qrobust.__all__ if name.islower() and name != "__version__"):
        with pytest.raises(TypeError, match=f"{name}\\(\\) missing"):
            getattr(qrobust, name)()
    assert qrobust.Threat("linf", 0.1).eps == 0.1


def test_the_runtime_is_one_file_that_imports_nothing_of_the_package() -> None:
    text = Path(runtime.__file__).read_text()
    assert "from ." not in text
    assert "import qrobust" not in text


def setup_of(root: Path) -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    return setup


def test_versions_agree() -> None:
    assert setup_of(ROOT)["metadata"]["version"] == qrobust.__version__


# Dependencies

PROJECTS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # whose module has another name
NOT_IMPORTED = {
    "onnxruntime-gpu": "its module is onnxruntime",
}
NOT_DECLARED = {
    "flatbuffers": "for the targets of LiteRT, in the extra litert",
    "openvino": "for the target openvino, in the extra openvino",
    "tensorrt": "for the target tensorrt, of an index of its own",
}
TOOLS = {"build", "mypy", "ruff", "pytest-timeout", "pytest-xdist"}  # that developers start, or pytest loads
OF_JUDGES = {"onnxoptimizer"}  # which Brevitas' exporter imports
IMPORTERS = {"import_module", "importorskip", "find_spec"}  # called with a name


def modules_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it and however; relative ones are its own."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            found |= {str(node.args[0].value)} if name in IMPORTERS else set()
    return found | ({"tensorboard"} if "torch.utils.tensorboard" in found else set())  # which is a front of it


def imported(*folders: str) -> set[str]:
    """Projects of others that the files of these folders import."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "fixtures" not in path.parts]
    names = {name.partition(".")[0] for path in files for name in modules_of(path)}
    names -= {*sys.stdlib_module_names, "qrobust", *(path.stem for path in files)}  # scripts import one another
    return {PROJECTS.get(name, name.replace("_", "-")) for name in names}


def declared(text: str) -> set[str]:
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in text.split("\n") if line}  # type: ignore[index]


def judges() -> set[str]:
    """What the Makefile installs without its dependencies."""
    return declared("\n".join(re.search(r"^JUDGES := (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()))  # type: ignore[index]


EXTRAS = {
    "hub": "huggingface-hub",
    **{name: name for name in ("tensorboard", "timm", "trackio")},
}  # of one project each


def test_what_is_imported_is_declared_and_nothing_else() -> None:
    setup, found = setup_of(ROOT), imported("qrobust")
    needed, extra = (
        declared(setup["options"]["install_requires"]),
        declared("".join(setup["options.extras_require"][name] for name in EXTRAS)),
    )
    assert needed == (found | set(NOT_IMPORTED)) - set(NOT_DECLARED) - extra
    assert set(NOT_DECLARED) <= found
    assert extra == set(EXTRAS.values()) <= found


def test_what_tests_and_benches_import_is_declared_for_developers() -> None:
    setup, found = setup_of(ROOT), imported("tests", "benches")
    needed, dev = (
        declared(setup[part][key]) for part, key in (("options", "install_requires"), ("options.extras_require", "dev"))
    )
    assert dev - TOOLS - OF_JUDGES == found - needed - judges()
    assert judges() <= found


def test_every_dependency_has_a_version_that_was_tested() -> None:
    setup = setup_of(ROOT)
    pinned = declared("\n".join(re.findall(r"^[^#].*==.*$", (ROOT / "constraints.txt").read_text(), re.M)))
    extras = "".join(setup["options.extras_require"].values())
    assert declared(setup["options"]["install_requires"] + extras) | judges() <= pinned
