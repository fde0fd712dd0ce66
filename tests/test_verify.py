"""`verify.py` in a virtual environment with numpy and onnxruntime only, as a device has them."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest

from qrobust import runtime

# What onnxruntime and numpy need; linked into the bare environment instead of being downloaded again.
PACKAGES = ("numpy", "numpy.libs", "onnxruntime", "flatbuffers", "google", "packaging")


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python3.*")) / "site-packages"
    installed = Path(sysconfig.get_path("purelib"))
    for name in PACKAGES:
        if (installed / name).exists():
            (site / name).symlink_to(installed / name)
    return folder / "bin" / "python"


@pytest.fixture
def artifact(small_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_run / "qm-4" / "artifact", tmp_path / "artifact")


def _verify(python: Path, artifact: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", str(artifact / "verify.py"), str(artifact), "--queries", "40"]
    return subprocess.run(command, capture_output=True, text=True, cwd=artifact.parent)


def test_the_copy_is_byte_equal(artifact: Path) -> None:
    assert (artifact / "verify.py").read_bytes() == Path(runtime.__file__).read_bytes()


def test_torch_is_not_there(bare_python: Path) -> None:
    assert subprocess.run([str(bare_python), "-c", "import torch"], capture_output=True).returncode == 1


def test_a_sound_artifact_holds(bare_python: Path, artifact: Path) -> None:
    done = _verify(bare_python, artifact)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().endswith("held")


def test_one_changed_byte_is_exit_code_2(bare_python: Path, artifact: Path) -> None:
    data = bytearray((artifact / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (artifact / "model.onnx").write_bytes(data)
    done = _verify(bare_python, artifact)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


def test_swapped_labels_are_exit_code_1(bare_python: Path, artifact: Path) -> None:
    """A suite that is whole, but whose labels belong to other images."""
    with np.load(artifact / "suite.npz") as suite:
        arrays = dict(suite)
    arrays["y"] = np.roll(arrays["y"], 1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (artifact / "suite.npz").write_bytes(buffer.getvalue())
    manifest = json.loads((artifact / "manifest.json").read_text())
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    manifest["files"]["suite.npz"] = {"sha256": digest, "size_bytes": len(buffer.getvalue())}
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    done = _verify(bare_python, artifact)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken" in done.stdout
