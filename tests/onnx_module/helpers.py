"""Small graphs in ONNX's text form, networks of the registry as files, and the runtime that they are held to."""

import functools
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from qrobust.export.sessions import open_session
from qrobust.export.target import load_target
from qrobust.export.write import lower
from qrobust.models import build
from qrobust.models.inference import estimate_statistics
from qrobust.onnx_module.building import execute
from qrobust.quant import quantize

from ..quant.helpers import images, shake_norms


def text_model(body, constants=(), *, opset=21, shape="N, 3, 8, 8", flat=True):
    """A file: `x` to `y`, (n, any) flattened from `a`; constants by name are initialisers."""
    body = f"{body}\ny = Flatten (a)" if flat else body
    header = f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>'
    model = onnx.parser.parse_model(f"{header} g (float[{shape}] x) => (float[N, M] y) {{ {body} }}")
    for name, value in dict(constants).items():
        tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        model.graph.initializer.append(tensor)
    return model


def session(data, level="disable"):
    return open_session(data, level, "CPUExecutionProvider")


def runtime(data, x, level="disable"):
    """The logits that onnxruntime gives, unfused unless told otherwise."""
    opened = session(data, level)
    return torch.from_numpy(opened.run(None, {opened.get_inputs()[0].name: x.numpy()})[0])


@functools.cache
def registry_network(name, side=16):
    """Not to be changed: in eval mode, with statistics of the images."""
    torch.manual_seed(0)
    model = build(name, in_channels=3, classes=10)
    shake_norms(model)
    estimate_statistics(model, [images(8, side, 3)])
    return model.eval()


@functools.cache
def registry_file(name, bits, side=16):
    """The bytes that our exporter writes."""
    model = registry_network(name, side)
    if bits < 32:
        model = quantize(model, bits, calibration=[images(8, side, 3)]).eval()
    return lower(model, images(1, side, 3), load_target("ort-cpu"))


def rounding_steps(network):
    return [step for step in network.plan.steps if step.node.op in ("FakeQuantize", "QuantizeLinear")]


def shown_values(data, names, x, level):
    """What a session computes for values inside the graph."""
    if not names:  # of which a session would give all
        return {}
    model = onnx.load_from_string(data)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    opened = session(model.SerializeToString(), level)
    found = opened.run([*names], {opened.get_inputs()[0].name: x.numpy()})
    return {name: torch.from_numpy(value).float() for name, value in zip(names, found, strict=True)}


@torch.no_grad()
def steps_apart(network, data, x, level="disable"):
    """For each quantiser, how many steps the module is off if it reads what the session computed before; and the logits
    that it then gives.
    """
    theirs = shown_values(data, [step.node.outputs[0] for step in rounding_steps(network)], x, level)
    values = {**network.sizes, **{name: network.get_buffer(home) for name, home in network.homes.items()}, "x": x}
    apart = {}
    for step in network.plan.steps:
        execute([replace(step, frees=())], values)
        name = step.node.outputs[0]
        if name in theirs:
            unit = values[step.node.inputs[1]] if step.node.op == "FakeQuantize" else 1
            apart[name] = ((values[name] - theirs[name]) / unit).abs()
            values[name] = theirs[name]
    return apart, values[network.plan.output]
