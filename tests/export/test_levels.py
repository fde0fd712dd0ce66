"""Which tensor of a file belongs to which quantiser of a network, and how one's integers stand for the other's."""

import numpy as np
import onnx
import pytest
import torch
from torch import fx, nn

from qrobust.errors import ExportError
from qrobust.export.levels import (
    LOGITS,
    Levels,
    dynamic,
    executed_levels,
    exposing,
    force,
    found_levels,
    matched,
    named_levels,
    results,
    shown_first,
)
from qrobust.export.sessions import open_session
from qrobust.quant.layers import quantized_activation

from .tokens import Named, network

UINT8, INT8, HALF = onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16
# Hardswish on integers clips what a quantiser gives, and is no quantiser; a plain Clip behind one belongs to it.
CLIPS = """<ir_version: 10, opset_import: ["": 21]>
g (float[batch, 4] x) => (float[batch, 4] y) <float s = {0.1}, uint8 z = {128}, uint8 lo = {98}, uint8 hi = {158}> {
    q = QuantizeLinear (x, s, z)
    gate = Clip (q, lo, hi)
    f = DequantizeLinear (q, s, z)
    g = DequantizeLinear (gate, s, lo)
    product = Mul (f, g)
    q2 = QuantizeLinear (product, s, z)
    clipped = Clip (q2, lo, hi)
    y = DequantizeLinear (clipped, s, z)
}"""
TYPES = """<ir_version: 10, opset_import: ["": 21]>
g (float[batch, 4] x) => (float[batch, 4] y)
    <int8 z = {0}, float s = {0.1}, float16 t = {1}, float16 lo = {0}, float16 hi = {15}> {
    a = QuantizeLinear (x, s, z)
    f = DequantizeLinear (a, s, z)
    h = Cast <to = 10> (f)
    d = Div (h, t)
    b = Round (d)
    c = Clip (b, lo, hi)
    m = Mul (c, t)
    y = Cast <to = 1> (m)
}"""


def parsed(text):
    return onnx.parser.parse_model(text)


def test_a_clip_belongs_to_the_quantiser_that_it_alone_reads():
    assert found_levels(parsed(CLIPS)) == [Levels("q", UINT8, 128), Levels("clipped", UINT8, 128)]


def test_types_of_what_a_writer_names():
    named = [Named("one", "a", 0), Named("pixels", "", 0), Named("two", "c", 0), Named("three", "b", 0)]
    expected = [Levels("a", INT8, 0, "one"), Levels("c", HALF, 0, "two"), Levels("b", HALF, 0, "three")]
    assert named_levels(parsed(TYPES), named) == expected
    assert found_levels(parsed(TYPES)) == [Levels("a", INT8, 0), Levels("c", HALF, 0)]


def values(*paths):
    return [Levels(f"v{index}", UINT8, 0, path) for index, path in enumerate(paths)]


@pytest.mark.parametrize(
    ("executed", "paths", "places"),
    [
        (["a", "b", "c"], ["a", "b", "c"], [0, 1, 2]),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["a", "b", "a"], ["b", "a", "a"], [1, 0, 2]),  # called twice
        (["a", "b"], [None, None], [0, 1]),
        (["a", "b"], ["a.0", "b"], [0, 1]),  # replaced by layers of another path
    ],
)
def test_tensors_and_quantisers_are_matched_by_path_else_by_order(executed, paths, places):
    assert matched(executed, values(*paths), first_is_given=False) == places
    assert matched(["pixels", *executed], values(*paths), first_is_given=True) == [place + 1 for place in places]
    n = len(places)
    with pytest.raises(ExportError, match=rf"^expected {n + 1} quantised activations in the file, got {n}; export"):
        matched(["pixels", *executed], values(*paths), first_is_given=False)


def test_what_reads_a_forced_tensor_reads_an_input_whose_batch_may_stand_anywhere():
    proto = parsed(CLIPS)
    found = found_levels(proto)
    assert dynamic((4, 1, 8), (4, 2, 8)) == [4, None, 8]
    force(proto, found, [dynamic((1, 4), (2, 4)), dynamic((1, 4), (2, 4))])
    sizes = [size for given in proto.graph.input[1:] for size in given.type.tensor_type.shape.dim]
    assert [size.WhichOneof("value") for size in sizes] == [
        None,
        "dim_value",
    ] * 2  # names would say that they are equal
    session = open_session(exposing(proto, [each.name for each in found]), "all", "CPUExecutionProvider")
    x = np.full((3, 4), 0.5, np.float32)
    given = [each.integers(np.full((3, 4), levels)) for each, levels in zip(found, (20, -7), strict=True)]
    feeds = {"x": x} | {each.fed: integers for each, integers in zip(found, given, strict=True)}
    y, q, clipped = session.run(None, feeds)
    np.testing.assert_allclose(y, -0.7, rtol=1e-6)  # the second's
    assert (found[0].distances(q, np.full((3, 4), 20)) == 15).all()  # 0.5 is the fifth level
    assert (clipped == 158).all()  # 2 · (2 + 3) = 10 of the forced 20, which is level 100, clipped


def twice():
    """One quantiser that two layers pass."""
    torch.manual_seed(0)
    layers = {"one": nn.Linear(3, 3), "two": nn.Linear(3, 3), "three": nn.Linear(3, 2)}
    model = nn.ModuleDict({"q": quantized_activation(4, signed=True), **layers})
    graph = fx.Graph()
    x = graph.placeholder("x")
    for path in ("one", "q", "two", "q", "three"):
        x = graph.call_module(path, (x,))
    graph.output(x)
    return fx.GraphModule(model, graph).eval()


def test_torch_s_integers_come_in_the_order_of_execution_of_a_module_called_twice_two():
    model, x = twice(), torch.rand(5, 3)
    logits, seen = executed_levels(model, x)
    assert [each.path for each in seen] == ["q", "q"]
    expected = (model.q(model.one(x)) / seen[0].step).round().detach().numpy()
    np.testing.assert_array_equal(seen[0].levels, expected)
    assert (seen[0].bits, seen[0].levels.min() >= -8, seen[0].levels.max() <= 7) == (4, True, True)
    np.testing.assert_array_equal(logits, model(x).detach().numpy())


def test_a_tensor_shows_first_what_no_tensor_before_depends_on():
    shown = shown_first(network())
    assert shown["blocks.0.q1"] == ("embed", "blocks.0.norm1")
    assert shown["blocks.0.q3"] == ("blocks.0.proj", "blocks.0.norm2")
    assert shown["blocks.1.q1"] == ("blocks.0.fc2", "blocks.1.norm1")
    assert (shown["blocks.0.q4"], shown["q0"], shown[LOGITS]) == (("blocks.0.fc1",), (), ("head",))
    assert shown_first(nn.Linear(2, 2)) == {}


def test_what_layers_give_is_noted_of_a_folded_one_batch_norm_s_too():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    model = fx.symbolic_trace(layers).eval()
    model.get_submodule("1").running_mean.fill_(3)
    x = torch.rand(2, 1, 4, 4)
    with results(model, ["0", "3"]) as seen:
        y = model(x)
    conv, norm = seen["0"]
    np.testing.assert_allclose(norm, (conv - 3) / np.sqrt(1 + 1e-5), rtol=1e-4)
    np.testing.assert_array_equal(seen["3"], [y.detach().numpy()])
    assert not any(module._forward_hooks for module in model.modules())
