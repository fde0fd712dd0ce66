"""Graphs of every make, prepared for an artifact: their logits are those that they gave, or one line says why not."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from qrobust.data import Images
from qrobust.deployed.model import open_deployed
from qrobust.deployed.prepare import prepare
from qrobust.deployed.source import Normalisation, size_of, weight_bits
from qrobust.errors import GraphError
from qrobust.export.sessions import BareFile
from qrobust.runtime import load_session

from .others import text_file

RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(48, 3)).astype(np.float32)
X = RNG.integers(0, 256, (6, 3, 4, 4)).astype(np.uint8)
UNIT = X.astype(np.float32) / np.float32(255)
PIXELS = Images(torch.from_numpy(X), torch.zeros(6, dtype=torch.int64))
LOGITS = UNIT.reshape(6, -1) @ WEIGHT  # of most graphs below
FLATLY = "f = Flatten (x) logits = MatMul (f, w)"


def run(found, x=X):
    """What the stored file gives for images of bytes."""
    session = load_session(found.data, "CPUExecutionProvider", 1)
    fed = x.transpose(0, 2, 3, 1) if found.input["dtype"] == "uint8" else x.astype(np.float32) / np.float32(255)
    return session.run([found.output], {found.input["name"]: np.ascontiguousarray(fed)})[0]


def prepared(tmp_path, text, constants=None, **settings):
    return prepare(text_file(tmp_path / "f.onnx", text, **(constants or {"w": WEIGHT})), PIXELS, **settings)


def quantised_softmax():
    more = {"s": np.float32(1 / 16), "z": np.int8(0), "ps": np.float32(1 / 256), "pz": np.int8(-128)}
    body = """f = Flatten (x) v = MatMul (f, w) q = QuantizeLinear (v, s, z)
        p = com.microsoft.QLinearSoftmax <axis = -1, opset = 21> (q, s, z, ps, pz) y = DequantizeLinear (p, ps, pz)"""
    return f"g (float[N, 3, 4, 4] x) => (float[N, 3] y) {{ {body} }}", {"w": WEIGHT, **more}


CASES = {  # text, constants, what the manifest says was done
    "as it is": (f"g (float[N, 3, 4, 4] x) => (float[N, 3] logits) {{ {FLATLY} }}", None, []),
    "sizes open": (f"g (float[N, C, H, W] x) => (float[N, 3] logits) {{ {FLATLY} }}", None, ["sizes of an image"]),
    "a batch of one": (f"g (float[1, 3, 4, 4] x) => (float[1, 3] logits) {{ {FLATLY} }}", None, ["batch of 1"]),
    "a batch of three": (f"g (float[3, 3, 4, 4] x) => (float[3, 3] logits) {{ {FLATLY} }}", None, ["batch of 3"]),
    "reshaped to one": (
        "g (float[1, 3, 4, 4] x) => (float[1, 3] logits) { f = Reshape (x, shape) logits = MatMul (f, w) }",
        {"w": WEIGHT, "shape": np.array([1, 48])}, ["batch of 1", "shapes made open"],
    ),
    "reshaped to one by a node": (
        """g (float[1, 3, 4, 4] x) => (float[1, 3] logits) {
            s = Constant <value = int64[2] {1, -1}> () f = Reshape (x, s) logits = MatMul (f, w) }""",
        None, ["batch of 1", "shapes made open"],
    ),
    "reshaped to rows of all images": (
        """g (float[1, 3, 4, 4] x) => (float[1, 3] logits) { r = Reshape <allowzero = 1> (x, rows)
            f = Reshape <allowzero = 1> (r, shape) logits = MatMul (f, w) }""",
        {"w": WEIGHT, "rows": np.array([3, 16]), "shape": np.array([1, 48])}, ["batch of 1", "shapes made open"],
    ),
    "softmax": (
        "g (float[N, 3, 4, 4] x) => (float[N, 3] p) { f = Flatten (x) v = MatMul (f, w) p = Softmax (v) }",
        None, ["logits taken before Softmax", "value 'v'"],
    ),
    "softmax behind an identity": (
        """g (float[N, 3, 4, 4] x) => (float[N, 3] y) {
            f = Flatten (x) v = MatMul (f, w) p = Softmax (v) y = Identity (p) }""",
        None, ["logits taken before Softmax", "value 'v'"],
    ),
    "float16": (
        "g (float16[N, 3, 4, 4] x) => (float16[N, 3] y) { f = Flatten (x) y = MatMul (f, w) }",
        {"w": WEIGHT.astype(np.float16)}, ["images cast to FLOAT16", "logits cast to FLOAT"],
    ),
    "double": (
        "g (double[N, 3, 4, 4] x) => (double[N, 3] y) { f = Flatten (x) y = MatMul (f, w) }",
        {"w": WEIGHT.astype(np.float64)}, ["images cast to DOUBLE", "logits cast to FLOAT"],
    ),
    "channels last": (
        """g (float[N, 4, 4, 3] x) => (float[N, 3] logits) {
            t = Transpose <perm = [0, 3, 1, 2]> (x) f = Flatten (t) logits = MatMul (f, w) }""",
        None, ["transposed to (batch, height, width, channels)"],
    ),
    "bytes, channels last": (
        """g (uint8[N, 4, 4, 3] x) => (float[N, 3] logits) { c = Cast <to = 1> (x) d = Div (c, most)
            t = Transpose <perm = [0, 3, 1, 2]> (d) f = Flatten (t) logits = MatMul (f, w) }""",
        {"w": WEIGHT, "most": np.float32(255)}, [],
    ),
    "bytes, channels first": (
        """g (uint8[1, 3, 4, 4] x) => (float[1, 3] logits) {
            c = Cast <to = 1> (x) d = Div (c, most) f = Flatten (d) logits = MatMul (f, w) }""",
        {"w": WEIGHT, "most": np.float32(255)}, ["batch of 1", "transposed to (batch, channels, height, width)"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_that_the_graph_gave(tmp_path, name):
    text, constants, changes = CASES[name]
    found = prepared(tmp_path, text, constants)
    atol = 2e-2 if name == "float16" else 1e-5
    np.testing.assert_allclose(run(found), LOGITS, atol=atol, rtol=1e-3)
    made = found.source["changes"]
    assert len(made) == len(changes)
    assert all(change in line for change, line in zip(changes, made, strict=True))
    assert made or found.data == (tmp_path / "f.onnx").read_bytes()
    assert found.classes == 3


def test_pixels_are_normalised_channel_by_channel(tmp_path):
    mean, std = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.25])
    shaped = [values.reshape(1, 3, 1, 1) for values in (mean, std)]
    expected = ((UNIT - shaped[0]) / shaped[1]).reshape(6, -1) @ WEIGHT
    for name in ("as it is", "channels last"):
        found = prepared(tmp_path, CASES[name][0], normalisation=Normalisation(tuple(mean), tuple(std)))
        np.testing.assert_allclose(run(found), expected, atol=1e-4)
    found = prepared(tmp_path, CASES["as it is"][0], normalisation=Normalisation(std=(1 / 255,)))  # for 0 to 255
    np.testing.assert_allclose(run(found), 255 * LOGITS, rtol=1e-4, atol=1e-3)


def test_logits_of_a_quantised_softmax_are_its_integers(tmp_path):
    text, constants = quantised_softmax()
    found = prepared(tmp_path, text, constants)
    np.testing.assert_allclose(run(found), np.clip(np.rint(LOGITS * 16), -128, 127) / 16, atol=1 / 16 + 1e-6)
    assert "logits taken before QLinearSoftmax" in found.source["changes"][0]


def test_of_two_outputs_one_is_named_and_so_may_be_a_value_inside(tmp_path):
    text = f"g (float[N, 3, 4, 4] x) => (float[N, 48] f, float[N, 3] logits) {{ {FLATLY} }}"
    with pytest.raises(GraphError, match=r"name of one of 'f', 'logits', got 2; name it by --output NAME"):
        prepared(tmp_path, text)
    found = prepared(tmp_path, text, output="logits")
    assert found.data == (tmp_path / "f.onnx").read_bytes()
    np.testing.assert_allclose(run(found), LOGITS, atol=1e-5)
    by_hand = """g (float[N, 3, 4, 4] x) => (float[N, 3] p) { f = Flatten (x) v = MatMul (f, w)
        e = Exp (v) s = ReduceSum <keepdims = 1> (e, axis) p = Div (e, s) }"""
    found = prepared(tmp_path, by_hand, {"w": WEIGHT, "axis": np.array([1])}, output="v")
    np.testing.assert_allclose(run(found), LOGITS, atol=1e-5)


def test_data_beside_the_file_are_put_inside(tmp_path):
    proto = onnx.load(text_file(tmp_path / "f.onnx", CASES["as it is"][0], w=WEIGHT))
    onnx.save(proto, tmp_path / "f.onnx", save_as_external_data=True, location="f.data", size_threshold=0)
    found = prepare(tmp_path / "f.onnx", PIXELS)
    np.testing.assert_allclose(run(found), LOGITS, atol=1e-5)
    assert found.source["changes"] == ["data of f.data put inside"]
    assert found.source["beside"]["f.data"]["size_bytes"] >= WEIGHT.nbytes
    np.testing.assert_allclose(open_deployed(tmp_path / "f.onnx").served()(torch.from_numpy(UNIT)), LOGITS, atol=1e-5)
    bare = BareFile(tmp_path / "f.onnx")
    np.testing.assert_allclose(bare.session().run(None, {"x": UNIT})[0], LOGITS, atol=1e-5)
    assert bare.size_bytes > WEIGHT.nbytes
    (tmp_path / "f.data").unlink()
    with pytest.raises(GraphError, match=r"data of f.onnx beside it, in f.data, .*one folder"):
        prepare(tmp_path / "f.onnx", PIXELS)


def test_data_outside_of_the_folder_are_not_read(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    proto = onnx.load(text_file(tmp_path / "inside" / "f.onnx", CASES["as it is"][0], w=WEIGHT))
    onnx.external_data_helper.set_external_data(proto.graph.initializer[0], "../secret")
    proto.graph.initializer[0].ClearField("raw_data")
    (tmp_path / "inside" / "f.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GraphError, match=r"expected the data of f.onnx beside it"):
        prepare(tmp_path / "inside" / "f.onnx", PIXELS)


REFUSED = {
    "several inputs": ("g (float[N, 3, 4, 4] x, float[N] b) => (float[N] b) { y = Flatten (x) }", "got 2: 'x', 'b'"),
    "no images": ("g (float[N, 48] x) => (float[N, 3] y) { y = MatMul (x, w) }", "got 2 dimensions; pass a classifier"),
    "no batch dimension": (
        "g (float[3, 4, 4] x) => (float[48] y) { y = Flatten (x) }", "no batch dimension; export it with",
    ),
    "integers": ("g (int32[N, 3, 4, 4] x) => (int32[N, 48] y) { y = Flatten (x) }", "got INT32; put a Cast before it"),
    "another size": ("g (float[N, 3, 5, 5] x) => (float[N, 75] y) { y = Flatten (x) }", r"them, \(3, 5, 5\), got"),
    "an unknown operator": ("g (float[N, 3, 4, 4] x) => (float[N, 3] y) { y = my.Own (x) }", "got my::Own"),
    "no logits": ("g (float[N, 3, 4, 4] x) => (float[N, 3, 4, 4] y) { y = Relu (x) }", r"logits \(batch, classes\)"),
    "a range of all images": (
        """g (float[N, 3, 4, 4] x) => (float[N, 48] y) {
            f = Flatten (x) q, s, z = DynamicQuantizeLinear (f) y = DequantizeLinear (q, s, z) }""",
        "got DynamicQuantizeLinear in f.onnx; quantise it with fixed ranges",
    ),
    "one image for good": (
        "g (float[1, 3, 4, 4] x) => (float[1, 3] y) { f = Flatten <axis = 0> (x) y = MatMul (f, w) }",
        "any number of images, got one for 1; export it with a dynamic batch axis",
    ),
    "integers at the end": (
        "g (float[N, 3, 4, 4] x) => (int64[N, 48] y) { f = Flatten (x) y = Cast <to = 7> (f) }", "got INT64; name",
    ),
    "what others do not depend on alone": (
        "g (float[N, 3, 4, 4] x) => (float[N, 48] y) { f = Flatten (x) m = ReduceMean (f) y = Div (f, m) }",
        "the same for images together and alone",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_prepared_is_refused_in_one_line(tmp_path, name):
    text, message = REFUSED[name]
    with pytest.raises(GraphError, match=message):
        prepared(tmp_path, text, {"w": WEIGHT})


@pytest.mark.parametrize("harm", ["Constant without a value", "Reshape without a size"])
def test_a_damaged_graph_is_refused_in_one_line(tmp_path, harm):
    proto = onnx.load(text_file(tmp_path / "f.onnx", CASES["reshaped to one by a node"][0], w=WEIGHT))
    (constant, reshape, _) = proto.graph.node
    if harm.startswith("Constant"):
        del constant.attribute[:]
    else:
        del reshape.input[1]
    (tmp_path / "f.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(GraphError, match="expected "):
        prepare(tmp_path / "f.onnx", PIXELS)


@pytest.mark.parametrize(
    ("normalisation", "message"),
    [
        (Normalisation((0.1, 0.2)), "expected 1 or 3 numbers as mean, got 2"),
        (Normalisation(std=(0.0,)), "std above 0"),
        (Normalisation((float("nan"),)), "finite mean"),
    ],
)
def test_a_normalisation_that_is_none(tmp_path, normalisation, message):
    with pytest.raises(GraphError, match=message):
        prepared(tmp_path, CASES["as it is"][0], normalisation=normalisation)
    with pytest.raises(GraphError, match=r"no mean and std for f.onnx, which takes bytes"):
        prepared(tmp_path, *CASES["bytes, channels last"][:2], normalisation=Normalisation((0.5,), (0.5,)))


def test_sizes_of_a_file_for_a_folder_of_images(tmp_path):
    sizes = {"as it is": (4, 4), "channels last": (4, 4), "sizes open": None}
    for name, expected in sizes.items():
        assert size_of(text_file(tmp_path / "f.onnx", CASES[name][0], w=WEIGHT)) == expected


def test_widths_of_weights(tmp_path):
    proto = onnx.load(text_file(tmp_path / "f.onnx", CASES["as it is"][0], w=WEIGHT))
    assert weight_bits(proto) == {}
    proto.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [2, 2], [1, 2, 3, 4]))
    proto.graph.node.append(helper.make_node("QuantizeLinear", ["w", "scale"], ["q"]))
    assert weight_bits(proto) == {"four": 4, "w": 8}
