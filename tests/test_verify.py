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


def _verify(python: Path, artifact: Path, *options: object) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-I", str(artifact / "verify.py"), str(artifact), "--queries", "50", *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, cwd=artifact.parent)


def _replace(artifact: Path, name: str, data: bytes) -> None:
    """Another file in an artifact, with a manifest that agrees."""
    (artifact / name).write_bytes(data)
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    (artifact / "manifest.json").write_text(json.dumps(manifest))


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


def test_labels_of_other_images_are_exit_code_2(bare_python: Path, artifact: Path) -> None:
    with np.load(artifact / "suite.npz") as suite:
        arrays = dict(suite)
    arrays["y"] = np.roll(arrays["y"], 1)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    _replace(artifact, "suite.npz", buffer.getvalue())
    done = _verify(bare_python, artifact)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "labels of clean that are right in" in done.stderr


def test_another_network_in_the_file_is_exit_code_1(bare_python: Path, artifact: Path, small_run: Path) -> None:
    _replace(artifact, "model.onnx", (small_run / "qm-2" / "artifact" / "model.onnx").read_bytes())
    done = _verify(bare_python, artifact, "--junit", artifact.parent / "check.xml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "broken label_flips" in done.stdout
    assert "<failure" in (artifact.parent / "check.xml").read_text()


def test_it_pins_a_baseline_and_refuses_one_of_other_images(bare_python: Path, artifact: Path) -> None:
    baseline = artifact.parent / "baseline.json"
    pinned = _verify(bare_python, artifact, "--update-baseline", "--reason", "first", "--baseline", baseline)
    assert pinned.returncode == 0, pinned.stderr
    table = json.loads(baseline.read_text())
    assert table["reason"] == "first"
    baseline.write_text(json.dumps(table | {"images": "0" * 64}))
    done = _verify(bare_python, artifact, "--baseline", baseline)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected images 0000" in done.stderr
