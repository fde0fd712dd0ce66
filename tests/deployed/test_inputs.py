"""Images and sources for an attack on a file."""

import numpy as np
import pytest

from qrobust.deployed.model import find_images, find_sources, open_deployed
from qrobust.errors import DataError, RecipeError, RunError

from ..onnx_module.helpers import text_model
from ..test_runtime import WEIGHT, model_bytes, suite_arrays
from .linear import PLAIN, artifact, masked

SUITE = suite_arrays()


@pytest.fixture
def deployed(tmp_path):
    return open_deployed(artifact(tmp_path / "run" / "qm-4" / "artifact"))


def test_the_suites_clean_images(deployed):
    found = find_images(deployed)
    assert np.array_equal(found.x.numpy(), SUITE["x.clean"])
    assert np.array_equal(found.y.numpy(), SUITE["y"])


def test_arrays_of_ones_own(deployed, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=SUITE["x.clean"][:5], y=SUITE["y"][:5].astype(np.uint8))
    found = find_images(deployed, str(path))
    assert len(found) == 5
    assert np.array_equal(found.y.numpy(), SUITE["y"][:5])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (SUITE["x.clean"], SUITE["y"].astype(float), "expected arrays x and y"),
        (SUITE["x.clean"], np.array([{}] * 64), "expected arrays x and y"),
        (SUITE["x.clean"].astype(np.float32), SUITE["y"], "torch.uint8"),
        (SUITE["x.clean"], SUITE["y"][:3], "labels"),
        (SUITE["x.clean"], SUITE["y"] + 2, "expected labels in"),
        (SUITE["x.clean"], SUITE["y"] - 1, "labels"),
        (SUITE["x.clean"][:0], SUITE["y"][:0], "at least one image"),
        (np.array(["a"]), SUITE["y"], "expected arrays x and y"),
    ],
)
def test_arrays_that_will_not_do(deployed, tmp_path, x, y, expected):
    path = tmp_path / "mine.npz"
    np.savez(path, x=x, y=y)
    with pytest.raises(DataError, match=expected):
        find_images(deployed, str(path))


def test_no_archive_and_another_ones_names(deployed, tmp_path):
    path = tmp_path / "mine.npz"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="expected arrays x and y"):
        find_images(deployed, str(path))
    np.savez(path, images=SUITE["x.clean"])
    with pytest.raises(DataError, match="expected arrays x and y"):
        find_images(deployed, str(path))
    np.save(tmp_path / "one.npy", SUITE["y"])
    (tmp_path / "one.npy").rename(path)
    with pytest.raises(DataError, match="expected arrays x and y"):
        find_images(deployed, str(path))


@pytest.mark.parametrize("place", ["run/qm-32/artifact", "run/qm-4/qm-32"])
def test_the_float_network_beside_is_found(deployed, tmp_path, place):
    assert find_sources(deployed) == ()
    artifact(tmp_path / place, model_bytes(np.roll(WEIGHT, 1)))
    (source,) = find_sources(deployed)
    assert source.path.parent == (tmp_path / place).resolve()


def test_named_sources_are_files_artifacts_and_runs(deployed, tmp_path):
    for bits, shift in ((2, 1), (32, 2)):
        artifact(tmp_path / f"run/qm-{bits}/artifact", model_bytes(np.roll(WEIGHT, shift)))
    assert len(find_sources(deployed, [tmp_path / "run"])) == 2  # its own is not among them
    assert len(find_sources(deployed, [tmp_path / "run" / "qm-2"])) == 1
    (tmp_path / "other.onnx").write_bytes(model_bytes(-WEIGHT))
    found = find_sources(deployed, [tmp_path / "run/qm-2/artifact", tmp_path / "run/qm-2", tmp_path / "other.onnx"])
    assert [source.name for source in found] == ["linear", "other"]


def test_a_float_source_comes_first(deployed, tmp_path):
    (tmp_path / "float.onnx").write_bytes(model_bytes(-WEIGHT))
    (tmp_path / "rounded.onnx").write_bytes(masked())
    found = find_sources(deployed, [tmp_path / "rounded.onnx", tmp_path / "float.onnx"])
    assert [source.name for source in found] == ["float", "rounded"]


def test_sources_of_other_images_are_refused(deployed, tmp_path):
    (tmp_path / "other.onnx").write_bytes(text_model("a = Relu (x)").SerializeToString())
    with pytest.raises(RecipeError, match=r"expected a source for images and classes \(1, 4, 4, 2\), got other"):
        find_sources(deployed, [tmp_path / "other.onnx"])
    with pytest.raises(RunError, match="expected an artifact or a run with artifacts"):
        find_sources(deployed, [tmp_path / "nowhere"])


def test_a_bare_file_has_no_images_and_no_neighbours(tmp_path):
    (tmp_path / "bare.onnx").write_bytes(PLAIN)
    bare = open_deployed(tmp_path / "bare.onnx")
    assert find_sources(bare) == ()
    with pytest.raises(RecipeError, match=r"expected images for bare\.onnx"):
        find_images(bare)
