"""Files that are none, or that want more than to be read: one line, nothing opened, nothing run."""

import builtins
import io
import os
import pathlib
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from qrobust.errors import GraphError, QrobustError
from qrobust.onnx_module import load_onnx
from qrobust.onnx_module.reading import read

from .helpers import text_model
from .test_module import chain, uniform


def refused(model, match):
    data = model if isinstance(model, bytes) else model.SerializeToString()
    with pytest.raises(GraphError, match=match) as caught:
        load_onnx(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_a_path_is_read_like_its_bytes(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(chain())
    x = uniform(2)
    for source in (path, str(path)):
        assert torch.equal(load_onnx(source)(x), load_onnx(chain())(x))


def test_no_file(tmp_path):
    with pytest.raises(
        GraphError, match=r"expected an ONNX file at .*, got: No such file or directory; check the path"
    ):
        load_onnx(tmp_path / "missing.onnx")
    with pytest.raises(GraphError, match=r"expected an ONNX file at .*, got: Is a directory"):
        load_onnx(tmp_path)


def test_no_onnx():
    refused(b"\xff" * 100, "expected an ONNX file, got 100 bytes that are none")
    refused(b"", "expected an ONNX file of opset 7 to .*, got 0; convert its version")
    refused(chain()[:-200], "expected an ONNX file, got")


@pytest.mark.parametrize("opset", [6, 99])
def test_opsets_of_other_times(opset):
    model = text_model("a = Relu (x)")
    model.opset_import[0].version = opset
    refused(model, f"expected an ONNX file of opset 7 to .*, got {opset}; convert its version")


@pytest.mark.parametrize("place", ["initialiser", "constant", "attribute"])
def test_data_outside_the_file_are_never_opened(place, monkeypatch):
    outside = TensorProto(name="k", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../../../etc/passwd")
    model = text_model("d = Shape (x) \n a = Add (x, k)" if place == "initialiser" else "a = Relu (x)")
    if place == "initialiser":
        model.graph.initializer.append(outside)
    elif place == "constant":
        model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], value=outside))
    else:
        model.graph.node.insert(0, helper.make_node("ConstantOfShape", ["x"], ["k"], value=outside))

    def forbidden(*args, **kwargs):
        raise AssertionError(args)

    data = model.SerializeToString()
    with monkeypatch.context() as patch:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (pathlib.Path, "open")):
            patch.setattr(module, name, forbidden)
        with pytest.raises(GraphError, match="got k stored outside it; save it in one file"):
            read(data)


def test_names_from_a_file_cannot_redraw_a_terminal():
    model = text_model("a = Relu (x)")
    model.graph.node[0].name = "\x1b[2J" + "n" * 500
    model.graph.node[0].op_type = "Evil\nop"
    refused(model, r"got 'Evil\\nop' \(1\)")


def test_broken_tensors():
    short = numpy_helper.from_array(np.zeros(4, np.float32), "k")
    short.dims[0] = 10**12
    refused(text_model("a = Add (x, k)", {"k": short}), "expected numbers in tensor k, got")
    strings = helper.make_tensor("k", TensorProto.STRING, [1], [b"text"])
    refused(text_model("a = Add (x, k)", {"k": strings}), "expected numbers in tensor k, got: element type 8")
    refused(
        text_model('c = Constant <value_string = "x"> () \n a = Relu (x)'), "got value_string; write a dense tensor"
    )


def test_graphs_that_are_no_graphs():
    unordered = text_model("b = Relu (x) \n a = Relu (b)")
    unordered.graph.node[0].input[0] = "later"
    refused(unordered, "expected nodes in order, but Relu .* reads later, which none before gives")
    twice = text_model("b = Relu (x) \n a = Relu (b)")
    twice.graph.node[1].output[0] = "b"
    refused(twice, r"but Relu \(node b\) gives b again")
    silent = text_model("a = Relu (x)")
    silent.graph.node[0].ClearField("output")
    refused(silent, "expected a value from every node, got none from Relu")
    sparse = text_model("a = Relu (x)")
    sparse.graph.sparse_initializer.add()
    refused(sparse, "expected dense initialisers")


def test_inputs_that_are_no_images():
    two = text_model("a = Relu (x)")
    two.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    refused(two, "expected a graph with one input, images, got 2: x, z; pass a classifier")
    whole = text_model("a = Relu (x)")
    whole.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    refused(whole, "expected images as floats")
    refused(text_model("a = Relu (x)", shape="N, 3, 100000, 100000"), "expected images as floats")


def test_no_damage_does_more_than_refuse():
    """Every byte may be wrong; what still builds may be anything, but runs or is refused in one line."""
    assert fuzzed(150, seed=0) > 50


@pytest.mark.slow
def test_no_damage_does_more_than_refuse_at_length():
    assert fuzzed(10_000, seed=1) > 3000


def fuzzed(cases, seed):
    """How many of these damaged files were refused."""
    generator, whole, count = random.Random(seed), chain(), 0
    for _ in range(cases):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 8)):  # the graph's structure, not the weights at its end
            data[generator.randrange(700)] = generator.randrange(256)
        if generator.random() < 0.1:
            del data[generator.randrange(len(data)) :]
        with suppress(QrobustError):
            count += 1
            load_onnx(bytes(data))
            count -= 1
    return count
