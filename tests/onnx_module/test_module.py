"""The module as a network: gradients, devices, batches, shapes, and what it leaves out of a file."""

import copy

import numpy as np
import pytest
import torch

from qrobust import attacks
from qrobust.errors import GraphError, ModelError
from qrobust.export.target import load_target
from qrobust.export.write import lower
from qrobust.onnx_module import FORMS, load_onnx
from qrobust.quant import quantize
from qrobust.threat import Threat

from ..quant.helpers import images
from .helpers import registry_file, registry_network, rounding_steps, runtime, text_model

random = np.random.default_rng(0)
WEIGHTS = {
    "s": np.float32(1 / 15), "z": np.uint8(0), "top": np.uint8(15), "zero": np.uint8(0), "ws": np.float32(0.02),
    "w": random.integers(-7, 8, size=(4, 3, 3, 3)).astype(np.int8), "wz": np.int8(0),
    "fc": random.normal(size=(5, 144)).astype(np.float32),
}  # fmt: skip
CHAIN = """q = QuantizeLinear (x, s, z)
    c = Clip (q, zero, top)
    d = DequantizeLinear (c, s, z)
    wd = DequantizeLinear (w, ws, wz)
    v = Conv (d, wd)
    f = Flatten (v)
    y = Gemm <transB = 1> (f, fc)"""


def chain(**settings):
    return text_model(CHAIN, WEIGHTS, flat=False, **settings).SerializeToString()


def uniform(n, low=0.0, high=1.0):
    return low + (high - low) * torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def gradient(network, x):
    x = x.clone().requires_grad_(True)
    network(x)[:, 0].sum().backward()
    return x.grad


def float_chain(x):
    weight = torch.from_numpy(WEIGHTS["w"]).float() * 0.02
    return torch.nn.functional.conv2d(x, weight).flatten(1) @ torch.from_numpy(WEIGHTS["fc"]).T


def test_identity_is_the_gradient_of_the_network_without_rounding():
    x = uniform(3, -0.5, 1.5)
    torch.testing.assert_close(gradient(load_onnx(chain()), x), gradient(float_chain, x))


def test_clipped_is_zero_outside_and_identity_inside():
    network, x = load_onnx(chain(), backward="clipped"), uniform(3, -0.5, 1.5)
    outside = (x < 0) | (x > 1)
    expected = gradient(float_chain, x).masked_fill(outside, 0)
    torch.testing.assert_close(gradient(network, x), expected)
    assert outside.any()


def test_soft_weighs_by_the_slope_of_the_staircase():
    network, x = load_onnx(chain(), backward="soft"), uniform(3)
    slope = 1 - 0.9 * torch.cos(2 * torch.pi * x * 15)
    torch.testing.assert_close(gradient(network, x), gradient(float_chain, x) * slope, atol=1e-5, rtol=1e-4)


def test_the_form_is_switched_in_place_and_copies_are_their_own():
    network, x = load_onnx(chain()), uniform(2, -1, 2)
    other = copy.deepcopy(network)
    seen = []
    for form in FORMS:
        network.backward_form = form
        seen.append(gradient(network, x))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert other.backward_form == "identity"
    with pytest.raises(ModelError, match="expected a backward form, got 'softer'; did you mean 'soft'"):
        network.backward_form = "softer"
    with pytest.raises(ModelError, match="expected a backward form"):
        load_onnx(chain(), backward="none")


@pytest.mark.parametrize("bits", [4, 32])
def test_channels_last_changes_nothing_but_time(bits):
    network, x = load_onnx(registry_file("resnet8", bits)), images(4, 16, 3)
    with torch.no_grad():
        expected = network(x)
        moved = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    close = (moved - expected).abs().amax(1) < 1e-4
    assert close.float().mean() >= 0.75  # a value between two steps may fall to the other


def test_it_moves_as_one():
    network = load_onnx(registry_file("resnet8", 4))
    assert not list(network.parameters())
    moved = network.to("meta")
    assert {buffer.device.type for buffer in moved.buffers()} == {"meta"}
    assert moved(torch.empty(5, 3, 16, 16, device="meta")).shape == (5, 10)


def test_images_do_not_depend_on_their_batch():
    network, x = load_onnx(registry_file("resnet8", 32)), images(5, 16, 3)
    with torch.no_grad():
        alone = torch.cat([network(one[None]) for one in x])
        torch.testing.assert_close(network(x), alone, atol=1e-5, rtol=1e-5)


def test_a_file_for_one_image_takes_any_number():
    data = chain(shape="1, 3, 8, 8")
    x = uniform(5)
    with torch.no_grad():
        assert torch.allclose(load_onnx(data)(x), load_onnx(chain())(x), atol=1e-5)


def test_a_file_that_reshapes_to_one_image_is_run_one_by_one():
    text = "v = Reshape (x, flat) \n y = Gemm <transB = 1> (v, fc)"
    weights = {"flat": np.array([1, 192]), "fc": np.ones((5, 192), np.float32)}
    network = load_onnx(text_model(text, weights, flat=False).SerializeToString())
    assert network.plan.batch == 1
    x = uniform(4)
    torch.testing.assert_close(network(x)[:, 0], x.sum((1, 2, 3)))


def test_a_fixed_batch_takes_its_multiples():
    network = load_onnx(chain(shape="2, 3, 8, 8"))
    assert network(uniform(6)).shape == (6, 5)
    with pytest.raises(GraphError, match="expected Conv"):
        load_onnx(chain(shape="2, 4, 8, 8"))
    with pytest.raises(ModelError, match=r"expected images \(a multiple of 2, 3, 8, 8\), got \(3, 3, 8, 8\)"):
        network(uniform(3))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 9), (2, 192), (0, 3, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ModelError, match=r"expected images \(batch, 3, 8, 8\), got .*; the file fixes the shape"):
        load_onnx(chain())(torch.zeros(shape))


def test_open_sizes_are_open():
    text = "p = GlobalAveragePool (x) \n y = Flatten (p)"
    network = load_onnx(text_model(text, flat=False, shape="N, 3, H, W").SerializeToString())
    assert network(torch.rand(2, 3, 5, 9)).shape == (2, 3)
    assert network.plan.classes is None
    assert load_onnx(chain()).plan.classes == 5


def test_half_precision_inside_is_float_outside():
    text = "h = Cast <to = 10> (x) \n p = GlobalAveragePool (h) \n y = Flatten (p)"
    x = uniform(2)
    logits = load_onnx(text_model(text, flat=False).SerializeToString())(x)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, x.mean((2, 3)), atol=1e-3, rtol=1e-3)


def test_one_of_several_outputs_is_chosen():
    model = text_model("a = Relu (x) \n p = GlobalAveragePool (x) \n z = Flatten (p)")
    model.graph.output.append(type(model.graph.output[0])(name="z"))
    data = model.SerializeToString()
    assert load_onnx(data, output="z")(torch.ones(2, 3, 8, 8)).shape == (2, 3)
    with pytest.raises(GraphError, match="expected an output of y, z, got None; pass output=NAME"):
        load_onnx(data)


def test_values_inside_have_the_names_of_the_file():
    values = load_onnx(chain()).inside(torch.full((1, 3, 8, 8), 0.52))
    assert values["d"].unique().tolist() == pytest.approx([8 / 15])
    assert values["v"].shape == (1, 4, 6, 6)


def test_an_attack_runs_on_it():
    network, x = load_onnx(registry_file("resnet8", 4)), images(8, 16, 3)
    with torch.no_grad():
        y = network(x).argmax(1)
    x_adv = attacks.pgd(network, x, y, threat=Threat("linf", 16 / 255), config=attacks.PgdConfig(steps=5))
    with torch.no_grad():
        margin = [network(one).gather(1, y[:, None]).mean() for one in (x, x_adv)]
    assert margin[1] < margin[0]


@pytest.mark.parametrize(
    "target",
    [
        "tensorrt",
        "ort-cuda",
        *(pytest.param(one, marks=pytest.mark.slow) for one in ("ort-cpu-float", "compact", "openvino")),
    ],
)
def test_rounding_in_float_arithmetic_has_the_logits_and_gradients_of_quantisers(target):
    model = quantize(registry_network("resnet8"), 4, calibration=[images(8, 16, 3)]).eval()
    float_file = lower(model, images(1, 16, 3), load_target(target))
    other, whole = load_onnx(float_file), load_onnx(lower(model, images(1, 16, 3), load_target("ort-cpu")))
    x = images(4, 16, 3, seed=3)
    assert len(rounding_steps(other)) == len(rounding_steps(whole))
    if target == "ort-cuda":  # float16, in which gradients of a confident label would be 0
        assert (other(x) - runtime(float_file, x)).norm() < 0.1 * whole(x).norm()
        faint, plain = (gradient(lambda one, scale=scale: other(one) * scale, x) for scale in (1e-9, 1.0))
        torch.testing.assert_close(faint * 1e9, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))
        return
    torch.testing.assert_close(other(x), whole(x), rtol=1e-3, atol=1e-3)
    for form in FORMS:
        other.backward_form = whole.backward_form = form
        theirs, ours = gradient(other, x), gradient(whole, x)
        assert (theirs - ours).norm() < 0.05 * ours.norm()


def test_integer_arithmetic_on_a_cast_image_lets_its_gradient_pass():
    """Fewer grey levels before a classifier: floor(255·x / 64), in integers."""
    text = """m = Mul (x, byte)
        i = Cast <to = 6> (m)
        q = Div (i, step)
        c = Cast <to = 1> (q)
        f = Flatten (c)
        y = Gemm <transB = 1> (f, w)"""
    values = {"byte": np.float32(255), "step": np.int32(64), "w": random.normal(size=(5, 192)).astype(np.float32)}
    data = text_model(text, values, flat=False).SerializeToString()
    x, weight = uniform(20), torch.from_numpy(values["w"])
    squeezed = (x * 255).trunc() // 64
    torch.testing.assert_close(load_onnx(data)(x), squeezed.flatten(1) @ weight.T, rtol=1e-4, atol=1e-3)
    expected = (weight[0] * (255 / 64)).expand(20, -1).view_as(x)
    torch.testing.assert_close(gradient(load_onnx(data), x), expected, rtol=1e-3, atol=1e-3)
