"""An ONNX graph as a torch module that computes what a runtime computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .building import Plan, execute, plan
from .node import Backward, rounded_to
from .reading import read


class OnnxModule(nn.Module):
    """Images (n, c, h, w) in [0,1] to logits (n, classes), on the device of its buffers; made by `load_onnx`."""

    def __init__(self, built: Plan) -> None:
        super().__init__()
        self.plan = replace(built, constants={})
        # Integers that are left are sizes and indices, which torch wants on the CPU; but those of quantisation
        # (zero points) are computed with, as floats.
        self.sizes = {name: value for name, value in built.constants.items() if not _computed_with(value)}
        self.homes: dict[str, str] = {}
        for name, value in built.constants.items():
            if _computed_with(value):
                self.homes[name] = f"constant{len(self.homes)}"
                values = value if value.is_floating_point() else value.float()
                self.register_buffer(self.homes[name], values.contiguous())

    @property
    def backward_form(self) -> str:
        """How gradients pass rounding: a name of `FORMS`; may be set at any time."""
        return self.plan.backward.form

    @backward_form.setter
    def backward_form(self, form: str) -> None:
        self.plan.backward.choose(form)

    def forward(self, x: Tensor) -> Tensor:
        """The logits; a graph for a fixed number of images is run once per so many."""
        self._check(x)
        parts = torch.split(x, self.plan.batch) if self.plan.batch else [x]
        logits = [self._run(part, keep=False)[self.plan.output] for part in parts]
        return (logits[0] if len(logits) == 1 else torch.cat(logits)).float()

    def inside(self, x: Tensor) -> Mapping[str, Tensor]:
        """All values of one pass by their names in the file: to see where two runtimes part.

        A quantiser that was fused with what dequantises it shows the dequantised value alone.
        """
        self._check(x)
        return self._run(x, keep=True)

    def _run(self, x: Tensor, keep: bool) -> Mapping[str, Tensor]:
        values = {**self.sizes, **{name: self.get_buffer(home) for name, home in self.homes.items()}}
        images = self.plan.images
        fed = rounded_to(x.to(images.dtype), images.narrow)
        return execute(self.plan.steps, {**values, images.name: fed}, keep=keep)

    def _check(self, x: Tensor) -> None:
        sizes = self.plan.images.shape[1:]
        named = [size or got for size, got in zip(sizes, x.shape[1:], strict=False)]
        each = self.plan.batch or 1
        if x.dim() != len(sizes) + 1 or named != list(x.shape[1:]) or not len(x) or len(x) % each:
            count = "batch" if each == 1 else f"a multiple of {each}"
            expected = ", ".join([count, *("any" if size is None else str(size) for size in sizes)])
            raise ModelError(f"expected images ({expected}), got {tuple(x.shape)}; the file fixes the shape")


def _computed_with(value: Tensor) -> bool:
    return value.is_floating_point() or value.dtype in (torch.int8, torch.uint8, torch.int16)


def load_onnx(source: str | Path | bytes, *, backward: str = "identity", output: str | None = None) -> OnnxModule:
    """A torch network built from an ONNX file (a path or its bytes) alone, for white-box attacks on it.

    The forward pass means what ONNX says: rounding half to even, saturation, zero points, scales per channel; it
    differs from onnxruntime by float32 rounding, and by a step of a quantiser where a value lies between two. A file
    that measures a range on what it is given (DynamicQuantizeLinear) takes one image at a time: in a batch, the logits
    of one would depend on the others. Values of 16 bits are held in float32 and rounded, so that gradients do not
    underflow.
    backward: how gradients pass each QuantizeLinear, switched by `.backward_form`: all of them ("identity"), those
    inside its range ("clipped"), or those by the slope of a smooth staircase ("soft"). output: the graph's output
    that gives logits, if it has several.

    Raises GraphError for a file that cannot be read, that refers to data outside it, or that holds an operator
    that is not covered, which it names; ModelError for an unknown backward form.
    """
    form = Backward()
    form.choose(backward)
    return OnnxModule(plan(read(source, output), form)).eval()
