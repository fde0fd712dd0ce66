"""What is installed: a wheel's contents, its data files, and the public names."""

from __future__ import annotations

import os
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
        "from qrobust import resources as r; print(r.find('recipes', 'digits')); print(r.find('export', 'ort-cpu'))\n"
        "print(r.find('recipes', 'spectral/cifar10-resnet18-at')); print(*dict(r.listing('recipes')).values())"
    )
    done = subprocess.run([str(python), "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert len(lines) == 3 + sum(1 for _ in (ROOT / "recipes").rglob("*.toml"))
    for line in lines:
        assert Path(line).is_relative_to(tmp_path / "env" / "share" / "qrobust")


def test_a_checkout_finds_its_own_recipes(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    program += "from qrobust import resources as r; print(r.find('recipes', 'digits'))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == str(ROOT / "recipes" / "digits.toml"), done.stderr


def test_public_names() -> None:
    assert sorted(qrobust.__all__) == [
        "Artifact", "Threat", "__version__", "evaluate", "export_model", "quantize",
    ]  # fmt: skip
    for name in qrobust.__all__:
        assert getattr(qrobust, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qrobust.nothing
    assert callable(qrobust.deployed.twin)


def test_names_stay_what_they_are_once_their_homes_are_imported() -> None:
    """A package is set where the function of its name stood."""
    program = "import qrobust; from qrobust.evaluate import compare; a, b = qrobust.evaluate, qrobust.evaluate\n"
    program += "try: b()\nexcept TypeError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert "evaluate() missing" in done.stdout, done.stderr


def test_the_runtime_is_one_file_that_imports_nothing_of_the_package() -> None:
    text = Path(runtime.__file__).read_text()
    assert "from ." not in text
    assert "import qrobust" not in text


def test_versions_agree() -> None:
    import configparser

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["metadata"]["version"] == qrobust.__version__
