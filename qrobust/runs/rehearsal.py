"""A width's untrained network, quantised, written, opened and run as the trained one will be: a second or some.

Files depend on a network's structure alone, but for the values of its weights: what an export would refuse shows here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, fx, nn

from .. import data, quant
from ..data import Images
from ..deployed import twin
from ..deployed.serving import as_floats
from ..errors import ExportError, GraphError, ModelError, QrobustError
from ..evaluate.judge import check_logits
from ..export import Target, lower
from ..export.optimised import check_ops, open_session, present_provider
from ..runtime import MAX_FILE_BYTES

SEVERAL = 4  # images that go through


def rehearse(model: nn.Module, images: Images, target: Target, bits: int, *, input: str, attacked: bool) -> int:
    """The size in bytes of a network's file. Raises ModelError for one that does not suit the images, ExportError for
    one that cannot be written or that onnxruntime does not run, GraphError for a file that cannot be attacked, if it is
    to be.

    model: on the CPU, from `quantize` below 32 bits, its clips and biases placed here. input: as in `lower`.
    """
    some = images.take(torch.linspace(0, len(images) - 1, SEVERAL).long()).x.cpu()
    camera = input == "uint8-nhwc"
    _check_forward(model.eval(), data.to_unit(some, "cpu", channels_last=True))
    with tempfile.TemporaryDirectory() as folder, _of_width(bits):
        path = Path(folder) / "model.onnx"
        path.write_bytes(lower(model, data.to_unit(some, "cpu"), target, input=input))
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ExportError(
                f"expected a model.onnx of up to {MAX_FILE_BYTES} bytes, got {size}; take a smaller model"
            )
        if target.executable:
            _check_session(path, some, target, camera=camera)
            if isinstance(model, fx.GraphModule):
                check_ops(path, target, model)
            if attacked:
                _check_gradient(path, camera=camera)
    return size


def _check_forward(model: nn.Module, x: Tensor) -> None:
    try:
        if isinstance(model, fx.GraphModule):
            quant.calibrate(model, [x])
            quant.round_biases(model)
        with torch.no_grad():
            model(x)
    except QrobustError:
        raise
    except Exception as error:  # torch's errors share no base
        shape, told = tuple(x.shape[1:]), str(error).splitlines()[0]
        raise ModelError(f"expected a network for images of {shape}, got: {told}; choose another model.name") from error
    check_logits(model, x)


def _check_session(path: Path, some: Tensor, target: Target, *, camera: bool) -> None:
    pixels = some.permute(0, 2, 3, 1) if camera else data.to_unit(some, "cpu")
    session = open_session(path, target.session.graph_optimization_level, present_provider(target))
    session.run(None, {quant.INPUT: np.ascontiguousarray(pixels.numpy())})


def _check_gradient(path: Path, *, camera: bool) -> None:
    try:
        twin(as_floats(path.read_bytes()) if camera else path)
    except GraphError as error:
        told = str(error).partition("; ")[0]
        raise GraphError(f"{told}; choose another export.target, or remove the table attack") from error


@contextmanager
def _of_width(bits: int) -> Iterator[None]:
    """Errors say of which network they speak; those of onnxruntime become one line."""
    try:
        yield
    except QrobustError as error:
        raise type(error)(f"QM-{bits}: {error}") from error
    except Exception as error:  # onnxruntime's share no base
        told = str(error).splitlines()[0]
        raise ExportError(
            f"QM-{bits}: expected a file that onnxruntime runs, got: {told}; choose another export.target"
        ) from error
