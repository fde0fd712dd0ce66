"""Networks with Brevitas' own quantisers come in: their integers are those of Brevitas' own QCDQ file."""

import copy
import functools
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from brevitas.inject.enum import ScalingImplType
from brevitas.nn import QuantConv1d, QuantConv2d, QuantConvTranspose2d, QuantIdentity, QuantLinear, QuantReLU, QuantTanh
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int16Bias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.float import Fp8e4m3Weight
from onnx import numpy_helper
from torch import nn

from qrobust.errors import ExportError
from qrobust.export.target import load_target
from qrobust.export.write import check_ops, lower, written

from ..conftest import evidence
from ..quant.helpers import images
from .helpers import runtime_logits

X = images(12, side=8, channels=4)  # three would be four in some files
PER_CHANNEL = {"weight_quant": Int8WeightPerChannelFloat}
FIXED = {"scaling_impl_type": ScalingImplType.CONST, "scaling_init": 0.8}  # of an activation


def plain(**weights):
    """Activations and weights of few bits, learned scales. A bias of its own would be rounded to its layer's steps."""
    return nn.Sequential(
        QuantIdentity(bit_width=8), QuantConv2d(4, 6, 3, padding=1, bias=False, weight_bit_width=4, **weights),
        QuantReLU(bit_width=4), nn.MaxPool2d(2),
        QuantConv2d(6, 6, 3, groups=2, bias=False, weight_bit_width=3, **weights), QuantReLU(bit_width=5),
        nn.Flatten(), QuantLinear(24, 4, weight_bit_width=8, bias=True, **weights),
    )  # fmt: skip


def shifted():
    """Zero points other than 0, in activations and weights."""
    return nn.Sequential(
        QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat),
        QuantConv2d(4, 6, 3, weight_quant=ShiftedUint8WeightPerTensorFloat),
        QuantIdentity(act_quant=ShiftedUint8ActPerTensorFloat, bit_width=4), nn.Flatten(), nn.Linear(216, 4),
    )  # fmt: skip


def around():
    """Quantisers inside of layers, and scales that are fixed."""
    return nn.Sequential(
        QuantConv2d(
            4, 6, 3, weight_quant=Int8WeightPerTensorFixedPoint, input_quant=Int8ActPerTensorFloat,
            output_quant=Uint8ActPerTensorFloat, output_bit_width=3,
        ),
        QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=6, narrow_range=True, **FIXED),
        nn.Flatten(), QuantLinear(216, 4, bias=False, weight_bit_width=2, **PER_CHANNEL),
    )  # fmt: skip


def learned(model):
    """In eval mode, after scales have seen images; biases that are not 0."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    with torch.no_grad():
        for _ in range(3):
            model.train()(X)
    return model.eval()


NETWORKS = {"per tensor": plain, "per channel": lambda: plain(**PER_CHANNEL), "zero points": shifted, "inside": around}


@functools.cache
def network(name):
    """Not to be changed."""
    return learned(NETWORKS[name]())


@functools.cache
def theirs(name):
    """Weights and activations of Brevitas' own file, as integers less their zero points."""
    evidence("onnxoptimizer")
    evidence("onnxscript")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brevitas.export import export_onnx_qcdq

        path, model = Path(folder) / "theirs.onnx", copy.deepcopy(network(name))
        export_onnx_qcdq(model, args=X, export_path=str(path), opset_version=20, dynamo=False)
        return integers(onnx.load(path))


def integers(proto):
    """By the order of execution: of weights, and of what flows between, for these images."""
    from onnx.reference import ReferenceEvaluator

    nodes = list(proto.graph.node)
    dequantisers = [node for node in nodes if node.op_type == "DequantizeLinear"]
    wanted = {name for node in dequantisers for name in node.input}
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    made = [name for node in nodes for name in node.output if name in wanted]
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    values = ReferenceEvaluator(exposed).run(None, {proto.graph.input[0].name: X.numpy()})
    known = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    known |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in nodes if node.op_type == "Constant"
    }
    known |= dict(zip(made, values[1:], strict=True))
    weights, activations = [], []
    for node in dequantisers:
        found = np.asarray(known[node.input[0]]).astype(np.int64)
        if len(found) != len(X):
            if known[node.input[0]].dtype != np.int32:  # biases are compared through what follows
                weights.append(found - _zero(known, node, found))
        else:
            activations.append(found - _zero(known, node, found))
    return weights, activations


def _zero(known, node, found):
    zero = known[node.input[2]].astype(np.int64) if len(node.input) > 2 else np.int64(0)
    return zero.reshape(-1, *[1] * (found.ndim - 1)) if zero.ndim else zero


@pytest.mark.parametrize("target", ["openvino", "ort-cpu", pytest.param("compact", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NETWORKS)
def test_integers_are_those_of_brevitas_own_file(name, target):
    weights, activations = theirs(name)
    ours = integers(onnx.load_from_string(lower(network(name), X[:1], load_target(target))))
    assert len(weights) == len(ours[0]) > 0
    assert len(activations) == len(ours[1]) > 1
    for one, other in zip(weights, ours[0], strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(activations, ours[1], strict=True):
        np.testing.assert_array_equal(one.reshape(-1), other.reshape(-1))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_computes_what_brevitas_does_and_the_network_stays(name):
    model = network(name)
    with torch.no_grad():
        expected = model(X).numpy()
    data = lower(model, X[:1], load_target("ort-cpu"))
    assert np.abs(runtime_logits(data, X.numpy()) - expected).max() < 0.02 * np.abs(expected).max()
    assert type(model[1]).__module__.startswith("brevitas")
    with torch.no_grad():
        np.testing.assert_array_equal(model(X).numpy(), expected)


def test_batch_norm_folds_into_their_layers_too():
    model = nn.Sequential(
        QuantIdentity(), QuantConv2d(4, 6, 3, bias=False, **PER_CHANNEL), nn.BatchNorm2d(6), QuantTanh(),
        QuantConvTranspose2d(6, 3, 3, weight_bit_width=4, **PER_CHANNEL), nn.Flatten(2), QuantReLU(),
        QuantConv1d(3, 2, 3, weight_bit_width=4), nn.Flatten(),
    )  # fmt: skip
    model = learned(model)
    nn.init.uniform_(model[2].weight, -1.5, 1.5)
    with torch.no_grad():
        expected = model(X).numpy()
    for target in ("ort-cpu", "ort-cpu-float"):
        data = lower(model, X[:1], load_target(target))
        assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(data).graph.node}
        assert np.abs(runtime_logits(data, X.numpy()) - expected).max() < 0.02 * np.abs(expected).max()


def test_what_the_file_calls_their_activations():
    model = learned(around())
    found = written(model, X[:1], load_target("ort-cpu")).activations
    assert [one.module for one in found] == ["0.input_quant", "0.output_quant", "1"]
    assert [one.value for one in found] == ["x.q", "0.clip", "0.dq.clip"]


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (QuantConv2d(4, 2, 3, weight_quant=Fp8e4m3Weight), "0: expected integers of 2 to 8 bits"),
        (QuantConv2d(4, 2, 3, weight_float_to_int_impl_type="FLOOR"), "0: expected rounding to the nearest level, got"),
        (QuantIdentity(bit_width=12), "0: expected integers of 2 to 8 bits"),
        (QuantConv2d(4, 2, 3, bias_quant=Int16Bias), ""),
    ],
)
def test_what_no_scale_and_zero_point_describe_is_refused(layer, message):
    model = nn.Sequential(layer, nn.Flatten())
    if not message:  # a bias in steps of its layer's sums is what every file has
        lower(model.eval(), X[:1], load_target("ort-cpu"))
        return
    with pytest.raises(ExportError, match=f"^ort-cpu: {message}"):
        lower(model.eval(), X[:1], load_target("ort-cpu"))


def test_their_convolutions_run_on_integers():
    model = learned(plain(**PER_CHANNEL))
    target = load_target("ort-cpu")
    check_ops(lower(model, X[:1], target), target.model_copy(update={"forbidden_ops": ("Conv", "FusedConv")}), model)
