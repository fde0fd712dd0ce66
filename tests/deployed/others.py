"""Small files as other tools write them, all of one network, and images that it labels."""

import functools
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization as ort
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

SIDE, CLASSES, N = 8, 4, 36
FIXTURE = Path(__file__).parents[1] / "fixtures" / "nncf.onnx"  # by make_nncf.py beside it
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def _patches():
    """Pixels of images in which colours change slowly, as they do where a small change must not decide."""
    drawn = np.random.default_rng(0).integers(0, 256, (400, 3, 2, 2))
    return torch.from_numpy(np.repeat(np.repeat(drawn, SIDE // 2, 2), SIDE // 2, 3).astype(np.uint8))


@functools.cache
@torch.no_grad()
def network():
    """Every class is named about as often as any other, and no parameter is learned any more."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 4, 4), nn.ReLU(), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, CLASSES)
    model = nn.Sequential(*layers).eval().requires_grad_(requires_grad=False)
    logits = model(_patches().float() / 255)
    model[-1].bias.sub_(logits.mean(0)).div_(logits.std(0))
    model[-1].weight.div_(logits.std(0)[:, None])
    return model


@functools.cache
@torch.no_grad()
def images():
    """x uint8 (n, 3, side, side), and their labels: some lie near a boundary, most do not."""
    x = _patches()
    logits = network()(x.float() / 255)
    top = logits.topk(2, dim=1).values
    order = (top[:, 0] - top[:, 1]).argsort(descending=True)
    chosen = torch.cat([order[: N - N // 3], order[-N // 3 :]])
    return x[chosen].numpy(), logits.argmax(1)[chosen].numpy()


def exported(path, model=None, *, dynamo=False, dynamic=True, size=(2, 3, SIDE, SIDE), outputs=("logits",)):
    """By torch.onnx, of either kind; by dynamo the weights lie beside the file."""
    named = {"input_names": ["x"], "output_names": list(outputs), "dynamo": dynamo}
    if dynamo:
        named |= {"dynamic_shapes": ({0: torch.export.Dim("n")},) if dynamic else None, "verbose": False}
    elif dynamic:
        named["dynamic_axes"] = {name: {0: "n"} for name in ("x", *outputs)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export((model or network()).eval(), (torch.rand(size),), str(path), **named)
    return path


class _Batches(ort.CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": images()[0].astype(np.float32) / 255}])

    def get_next(self):
        return next(self.left, None)


def quantised(path, form):
    """By onnxruntime's static quantisation, in the one or the other format."""
    logging.getLogger().setLevel(logging.ERROR)
    source = exported(path.with_name("float.onnx"))
    ort.quantize_static(str(source), str(path), _Batches(), quant_format=form, per_channel=True, reduce_range=True)
    return path


class _ChannelsLast(nn.Module):
    """As a converter from TensorFlow leaves it: channels last, inputs normalised outside, probabilities at the end."""

    def __init__(self):
        super().__init__()
        self.network = network()

    def forward(self, x):
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        return self.network(x.permute(0, 3, 1, 2) * std + mean).softmax(1)


def channels_last(path):
    return exported(path, _ChannelsLast(), size=(2, SIDE, SIDE, 3), outputs=("probabilities",))


MAKERS = {
    "torch.onnx, legacy": exported,
    "torch.onnx, dynamo": lambda path: exported(path, dynamo=True),
    "onnxruntime, QDQ": lambda path: quantised(path, ort.QuantFormat.QDQ),
    "onnxruntime, QOperator": lambda path: quantised(path, ort.QuantFormat.QOperator),
    "NNCF": lambda path: Path(shutil.copy(FIXTURE, path)),
    "NHWC": channels_last,
}
PREPARED = {"NHWC": {"mean": MEAN, "std": STD}}  # of FileConfig
BITS = {"onnxruntime, QDQ": 8, "onnxruntime, QOperator": 8, "NNCF": 8}


def text_file(path, text, **constants):
    """A graph in ONNX's text form; constants by name are initialisers."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]> {text}')
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    path.write_bytes(model.SerializeToString())
    return path


def perturb(path, share=0.05):
    """Every float or 8-bit weight a little off, as a wrong conversion leaves it."""
    proto, rng = onnx.load(path), np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) < 2 or tensor.data_type not in (TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8):
            continue
        weight = numpy_helper.to_array(tensor)
        spread = share * weight.astype(np.float64).std() * rng.standard_normal(weight.shape)
        moved = weight + spread
        if weight.dtype.kind in "iu":
            limits = np.iinfo(weight.dtype)
            moved = np.clip(np.rint(moved), limits.min, limits.max)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(weight.dtype), tensor.name))
    path.write_bytes(proto.SerializeToString())


def rescale(path, factor=1.3):
    """Every other channel of each quantised weight larger, as scales that were written wrongly leave it."""
    proto, scales = onnx.load(path), set()
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "DequantizeLinear" and len(stored.get(node.input[0], TensorProto()).dims) > 1:
            scales.add(node.input[1])
        scales |= {node.input[4]} if node.op_type in ("QLinearConv", "QGemm") else set()
    for name in scales:
        scale = numpy_helper.to_array(stored[name]).copy()
        scale[::2] *= factor
        stored[name].CopyFrom(numpy_helper.from_array(scale, name))
    assert scales
    path.write_bytes(proto.SerializeToString())
