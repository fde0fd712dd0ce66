"""Work that a GPU records once and replays."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import distributed
from ..progress import detail, note

Tensors = Sequence[Tensor | None]
Work = Callable[..., Tensors]
Form = tuple[Hashable, ...]


class Replayed:
    """Work on tensors, as a CUDA graph: to launch a small network's kernels one by one takes longer than to run them.

    work: tensors (or None) and settings in, a sequence of tensors (or None) out; it may wait for nothing on the GPU,
    and all else that it reads (weights, statistics) must keep its place in memory. The second time in a row that
    inputs of one form (shapes, types, settings) come, they are recorded: so an epoch's last, smaller batch never is.
    On a CPU, among several processes, or where it cannot be recorded, work runs as it is.

    What a replay returns is overwritten by the next.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.recorded: dict[Form, _Recording] = {}
        self.last: Form | None = None
        self.possible = True

    def __call__(self, *inputs: Tensor | None, **settings: Hashable) -> Tensors:
        """What work gives for these inputs."""
        form = _form(inputs, settings)
        repeated, self.last = form == self.last, form
        if repeated and form not in self.recorded and self.possible and _can_record(inputs):
            self._record(form, inputs, settings)
        if form in self.recorded:
            return self.recorded[form].replay(inputs)
        return self.work(*inputs, **settings)

    def _record(self, form: Form, inputs: Tensors, settings: dict[str, Hashable]) -> None:
        try:
            self.recorded[form] = _Recording(self.work, inputs, settings)
            detail("a step of training is recorded as a CUDA graph")
        except RuntimeError as error:  # a network that reads numbers back while it computes, or too little memory
            self.possible = False
            torch.cuda.synchronize()
            note(f"not recorded as a CUDA graph, trains on slower: {str(error).splitlines()[0]}")


class _Recording:
    """A CUDA graph with the tensors that it reads and writes."""

    def __init__(self, work: Work, inputs: Tensors, settings: dict[str, Hashable]) -> None:
        self.inputs = [None if tensor is None else tensor.detach().clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with _nothing_collected(), torch.cuda.graph(self.graph):
            self.outputs = work(*self.inputs, **settings)

    def replay(self, inputs: Tensors) -> Tensors:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)
        self.graph.replay()
        return self.outputs


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Inside, no garbage is collected: an older graph among it would end the recording of this one."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _form(inputs: Tensors, settings: dict[str, Hashable]) -> Form:
    tensors = (None if tensor is None else (tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
    return (*tensors, *sorted(settings.items()))


def _can_record(inputs: Tensors) -> bool:
    return distributed.world() == 1 and any(tensor is not None and tensor.is_cuda for tensor in inputs)
