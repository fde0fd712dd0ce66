"""The steps of every format, in their order."""

from functools import partial

import numpy as np
import pytest

from qrobust.export import passes

from .helpers import data_of, float_conv, images, model_of, pixels, run, side_by_side, small_network
from .quant_op import evaluate

CASES = [(kind, storage, camera) for kind in passes.FORMATS for storage in passes.STORAGE for camera in (False, True)]


def name(step):
    return (step.func if isinstance(step, partial) else step).__name__


@pytest.mark.parametrize(("kind", "storage", "camera"), CASES)
def test_after_each_step_nothing_is_left_to_it(kind, storage, camera):
    """A step says whether it changed the graph; done once, it finds nothing more to do."""
    model = small_network()
    for step in passes.steps(kind, storage=storage, opset=25, takes_bytes=camera):
        before = data_of(model)
        assert step(model) or data_of(model) == before, f"{name(step)} changed the graph and does not say so"
        once = data_of(model)
        assert not step(model), f"{name(step)} finds more to do"
        assert data_of(model) == once, f"{name(step)} changed the graph again"


@pytest.mark.parametrize(("kind", "storage", "camera"), CASES)
def test_all_steps_together_keep_the_function(kind, storage, camera):
    assert_kept(small_network(), kind, storage, camera)


@pytest.mark.parametrize("camera", [False, True])
@pytest.mark.parametrize("kind", [kind for kind in passes.FORMATS if kind != "symmetric"])
def test_integer_and_float_layers_may_read_one_image(kind, camera):
    assert_kept(side_by_side(), kind, "cast", camera)


def assert_kept(model, kind, storage, camera):
    expected = run(model, images())
    for step in passes.steps(kind, storage=storage, opset=25, takes_bytes=camera):
        step(model)
    got = (evaluate if kind == "qonnx" else run)(model, pixels() if camera else images())
    assert np.abs(got - expected).max() <= (0.2 if kind == "float16" else 1e-4)
    assert expected.std() > 1


@pytest.mark.parametrize("kind", passes.FORMATS)
def test_a_float_network_may_pass_through_all_of_them(kind):
    model = model_of(*float_conv(True, output="y"))
    expected = run(model, images())
    for step in passes.steps(kind, storage="cast", opset=25):
        step(model)
    np.testing.assert_allclose(run(model, images()), expected, atol=1e-2 if kind == "float16" else 0)


def test_storage_decides_whether_weights_are_narrowed():
    def narrowing(kind, storage):
        return [step.keywords for step in passes.steps(kind, storage=storage, opset=21) if isinstance(step, partial)]

    assert narrowing("integer", "cast") == [{"opset": 21, "cast": True}]
    assert narrowing("compact", "direct") == [{"opset": 21, "cast": False}]
    assert narrowing("integer", "bytes") == narrowing("float", "cast") == []


def test_the_camera_comes_after_folding_and_before_what_reads_pixels():
    steps = [name(step) for step in passes.steps("symmetric", storage="bytes", opset=20, takes_bytes=True)]
    assert steps[len(passes.FOLDED) :][:2] == ["byte_input", "pixels_as_floats"]
    assert "byte_input" not in [name(step) for step in passes.steps("symmetric", storage="bytes", opset=20)]
