"""Artifacts of two classes whose exact worst case is known: linear, for a camera, and with a gradient that misleads."""

import numpy as np
import onnx
from onnx import numpy_helper

from ..test_runtime import WEIGHT, edit, model_bytes, suite_arrays, write

MATRIX = np.stack([-WEIGHT, WEIGHT], axis=1)
BIAS = -0.5 * MATRIX.sum(axis=0)
PLAIN = model_bytes()
HEADER = '<ir_version: 10, opset_import: ["": 20]>'
# A quantiser that is always saturated adds the same to both logits, and, to who does not look, a huge gradient.
MASKED = f"""{HEADER} g (float[batch, 1, 4, 4] images) => (float[batch, 2] logits) {{
    flat = Flatten (images)
    true = Gemm (flat, weight, bias)
    steep = Gemm (flat, decoy, far)
    steps = QuantizeLinear (steep, scale, zero)
    flatly = DequantizeLinear (steps, scale, zero)
    logits = Add (true, flatly)
}}"""
CAMERA = f"""{HEADER} g (uint8[batch, 4, 4, 1] images) => (float[batch, 2] logits) {{
    turned = Transpose <perm = [0, 3, 1, 2]> (images)
    unit = DequantizeLinear (turned, scale, zero)
    flat = Flatten (unit)
    logits = Gemm (flat, weight, bias)
}}"""


def file_of(text, **constants):
    model = onnx.parser.parse_model(text)
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model.SerializeToString()


def masked():
    more = {"decoy": -1000 * MATRIX, "far": np.full(2, 1e6, np.float32), "scale": np.float32(1 / 255)}
    return file_of(MASKED, weight=MATRIX, bias=BIAS, zero=np.uint8(0), **more)


def camera():
    return file_of(CAMERA, weight=MATRIX, bias=BIAS, scale=np.float32(1 / 255), zero=np.uint8(0))


def artifact(folder, model=PLAIN, change=lambda manifest: None):
    """A folder with a model, the suite that is its exact worst case, and manifest."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    write(folder, suite_arrays(), model)
    edit(folder, change)
    return folder


def takes_bytes(manifest):
    manifest["input"] |= {"shape": [4, 4, 1], "layout": "NHWC", "range": [0, 255], "dtype": "uint8"}
