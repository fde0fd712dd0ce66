"""Where twin and session part: the first quantiser whose values differ by more than a step."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from ..runtime import load_session
from .fusing import FAKE
from .serving import Array, Deployed, rounding

STEP = 1.01  # a value between two steps may fall to either


@torch.no_grad()
def first_apart(deployed: Deployed, x: Tensor) -> str | None:
    """The value's name in the file, on images x (n, c, h, w) in [0,1]; None if no quantiser is to blame."""
    inside = deployed.twin.inside(deployed.gradient().fed(x))
    proto = onnx.load(str(deployed.path), load_external_data=False)
    held = {name for node in proto.graph.node for name in node.output}
    watched = [node for node in rounding(deployed.twin) if node.outputs[0] in held]
    theirs = _session_values(deployed, proto, [node.outputs[0] for node in watched], x)
    for node, value in zip(watched, theirs, strict=True):
        name = node.outputs[0]
        unit = float(inside[node.inputs[1]].min()) if node.op == FAKE else 1.0
        if float(((inside[name].cpu() - torch.from_numpy(value)) / unit).abs().max()) > STEP:
            return str(name)
    return None


def _session_values(deployed: Deployed, proto: onnx.ModelProto, names: Sequence[str], x: Tensor) -> list[Array]:
    if not names:  # of which a session would give all
        return []
    known = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names if name not in known)
    pixels = x.contiguous().cpu().numpy()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(proto.SerializeToString())
        session = load_session(path, deployed.provider, None, deployed.session_options)
        feed = deployed.artifact.feed(pixels) if deployed.artifact else pixels
        found = session.run([*names], {session.get_inputs()[0].name: feed})
    return [np.asarray(value, np.float32) for value in found]
