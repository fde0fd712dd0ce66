"""Files of every network that we export, against onnxruntime: layer by layer, and as wholes."""

import onnx
import pytest
import torch

from qrobust.export.target import load_target
from qrobust.export.write import lower, optimised_ops
from qrobust.models import names
from qrobust.onnx_module import load_onnx
from qrobust.quant import quantize

from ..export.helpers import lowered
from ..quant.helpers import Dense, Functional, Plain, Shuffled, Squeezed, images
from .helpers import registry_file, rounding_steps, runtime, shown_values, steps_apart

SMALL, WIDTHS = ("resnet8", "resnet20"), (2, 3, 4, 5, 6, 7, 8, 32)
FAST = {("resnet8", 2), ("resnet8", 4), ("resnet8", 8), ("resnet8", 32), ("resnet20", 4)}
GRID = [(name, bits) for name in names() for bits in (WIDTHS if name in SMALL else (2, 4, 8, 32))]
CASES = [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in GRID]


def compared(name, bits):
    x = images(6, 16, 3, seed=5)
    data = registry_file(name, bits)
    return load_onnx(data), data, x


@pytest.mark.parametrize("level", ["disable", "all"])
@pytest.mark.parametrize(("name", "bits"), CASES)
def test_no_layer_is_more_than_a_step_off(name, bits, level):
    """Reading what the session computed before, so that a step here is no step there."""
    network, data, x = compared(name, bits)
    apart, logits = steps_apart(network, data, x, level)
    off = torch.cat([steps.flatten() for steps in apart.values()]) if apart else torch.zeros(1)
    assert float(off.max()) < 1.01
    assert float((off > 0.01).float().mean()) < 1e-4
    expected = runtime(data, x, level)
    size = max(1.0, float(expected.abs().max()))
    # Without quantisers the whole network's rounding is in the logits: 4e-4 after the 152 layers of the deepest.
    torch.testing.assert_close(logits, expected, atol=(1e-3 if bits == 32 else 1e-4) * size, rtol=1e-3)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_labels_agree_where_the_runtime_agrees_with_itself(name, bits):
    network, data, _ = compared(name, bits)
    x = images(24, 16, 3, seed=6)
    with torch.no_grad():
        got = network(x)
    plain, fused = (runtime(data, x, level) for level in ("disable", "all"))
    own = (plain.argmax(1) != fused.argmax(1)).float().mean()
    for expected in (plain, fused):
        top = expected.topk(2).values
        clear = top[:, 0] - top[:, 1] > 3 * (plain - fused).abs().amax(1) + 0.05 * expected.std()
        wrong = (got.argmax(1) != expected.argmax(1))[clear].float().mean()
        assert not wrong > 0.1 + 2 * own  # nor where no image is clear


@pytest.mark.parametrize("kind", [Plain, Functional, Dense, Squeezed, Shuffled])
def test_networks_of_every_kind(kind):
    """With concatenations, attention over channels, shuffled channels, and functions for modules."""
    torch.manual_seed(0)
    model = quantize(kind().eval(), 4, calibration=[images()]).eval()
    data, x = lower(model, images(1), load_target("ort-cpu")), images(50, seed=5)
    apart, logits = steps_apart(load_onnx(data), data, x)
    assert max(float(steps.max()) for steps in apart.values()) < 1.01
    torch.testing.assert_close(logits, runtime(data, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("activation", "shortcut"), [("hardtanh", "A"), ("silu", "B")])
def test_every_activation_and_shortcut(activation, shortcut):
    data, x = lowered(4, activation, shortcut), images(50, seed=5)
    apart, logits = steps_apart(load_onnx(data), data, x)
    assert max(float(steps.max()) for steps in apart.values()) < 1.01
    torch.testing.assert_close(logits, runtime(data, x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"fat": "none"}, {"edge_layers": "float"}, {"target": "ort-cpu-int8"}])
def test_other_settings(settings):
    data, x = lowered(3, **settings), images(50, seed=5)
    _, logits = steps_apart(load_onnx(data), data, x)
    torch.testing.assert_close(logits, runtime(data, x), atol=1e-4, rtol=1e-4)


def test_the_comparison_reads_a_session_that_is_fused(tmp_path):
    """Values shown as outputs could keep onnxruntime from fusing; then nothing would have been compared."""
    data = registry_file("resnet8", 4)
    shown = [step.node.outputs[0] for step in rounding_steps(load_onnx(data))]
    model = onnx.load_from_string(data)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shown)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert optimised_ops(path, load_target("ort-cpu"))["QLinearConv"] == 9
    assert set(shown_values(data, shown, images(2, 16, 3), "all")) == set(shown)
