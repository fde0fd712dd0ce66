"""Somebody's ONNX file as an artifact stores it: images in [0,1] or bytes go in, logits come out, for any number.

F.onnx ─ data beside it put inside ─ batch made open ─ nodes before it: cast, transpose, normalise ─ logits chosen

Nothing that stands in the graph is taken away: what is new stands before it, or is one more output.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..data import Images
from ..errors import GraphError, shown
from ..export.artifact import GivenFile
from ..onnx_module.file import file_bytes, reason
from ..onnx_module.module import load_onnx
from ..onnx_module.qoperators import DYNAMIC
from ..runtime import load_session
from .model import CPU, Array, as_floats
from .source import DYNAMIC_BATCH, FLOATS, NCHW, NHWC, Normalisation, Source, open_file, weight_bits

PASSED = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")  # what may stand behind a softmax
BATCH = "batch"
SAME = 1e-2  # of their length: logits of images passed together and alone differ by what float32 and ties round


@dataclass
class _Change:
    """A copy of a graph while it is changed. notes: what was done, a line each."""

    proto: ModelProto
    before: list[NodeProto] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> GraphProto:
        return self.proto.graph

    def unused(self, wanted: str) -> str:
        """A name that no value of the graph has."""
        nodes = self.graph.node
        taken = {one.name for one in (*self.graph.input, *self.graph.initializer, *self.graph.output)}
        taken |= {name for node in (*nodes, *self.before) for name in (*node.input, *node.output)}
        while wanted in taken:
            wanted += "_"
        return wanted

    def prepend(self, op: str, source: str, *more: Array, **attributes: Any) -> str:
        """A node before the graph that reads `source` and constants; returns the name of what it gives."""
        names = [source]
        for value in more:
            names.append(self.unused(f"{op}.constant"))
            tensor = numpy_helper.from_array(value, names[-1])
            self.before.append(helper.make_node("Constant", [], [names[-1]], value=tensor))
        given = self.unused(f"{op}.of_images")
        self.before.append(helper.make_node(op, names, [given], **attributes))
        return given


def prepare(
    path: Path, images: Images, *, normalisation: Normalisation = Normalisation(), output: str | None = None
) -> GivenFile:
    """The file for images of this shape. output: name of what gives logits, any value of the graph; None for the only
    output.

    Raises GraphError for a graph that cannot take any number of these images, whose logits cannot be told from
    probabilities, with an operator that `OnnxModule` does not cover, or that gives something else once changed.
    """
    source = open_file(path)
    wanted = source.logits(output)
    if source.takes_bytes and normalisation != Normalisation():
        raise GraphError(
            f"expected no mean and std for {path.name}, which takes bytes and normalises them itself; leave them out"
        )
    tried: list[GraphError] = []
    for layout in source.layouts(images.shape[1:]):
        for reshaped in (False, True):
            try:
                found = _changed(source, layout, images.shape[1:], normalisation, wanted, reshaped=reshaped)
            except GraphError as error:
                tried.append(error)
                continue
            except Exception as error:  # a damaged graph makes anything fail
                raise GraphError(
                    f"expected a graph as ONNX defines it in {path.name}, got: {reason(error)}; export it again"
                ) from error
            _expect_same(source, found, layout, images, normalisation, wanted)
            return found
    raise tried[0]


def _changed(
    source: Source,
    layout: str,
    shape: Sequence[int],
    normalisation: Normalisation,
    wanted: str,
    *,
    reshaped: bool,
) -> GivenFile:
    """The graph for one layout; reshaped: its shapes for a fixed batch made open too."""
    change = _Change(_copied(source.proto))
    change.notes += [f"data of {name} put inside" for name in source.record["beside"]]
    _open_batch(change, source, reshaped=reshaped)
    name = _prepend_all(change, source, layout, shape, normalisation)
    logits = _as_floats(change, _before_softmax(change, wanted))
    data = bytes(change.proto.SerializeToString(deterministic=True)) if change.notes else file_bytes(source.path)
    plan = load_onnx(as_floats(data) if source.takes_bytes else data, output=logits).plan
    _expect_any_number(source, plan)
    assert plan.classes is not None  # sizes are known
    channels, height, width = shape
    stated: dict[str, Any] = {"shape": [*shape], "layout": NCHW, "range": [0, 1], "dtype": "float32"}
    if source.takes_bytes:
        stated = {"shape": [height, width, channels], "layout": NHWC, "range": [0, 255], "dtype": "uint8"}
    record = {**source.record, "input": source.name, "output": wanted, "changes": change.notes}
    return GivenFile(data, {"name": name, **stated}, logits, plan.classes, weight_bits(source.proto), record)


def _copied(proto: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(proto)
    return copied


def _expect_any_number(source: Source, plan: Any) -> None:
    if plan.batch is None:
        return
    if any(step.node.op == DYNAMIC for step in plan.steps):
        raise GraphError(
            f"expected logits of an image that do not depend on those beside it, got {DYNAMIC} in {source.path.name}; "
            "quantise it with fixed ranges (onnxruntime.quantization.quantize_static)"
        )
    raise GraphError(f"expected a graph for any number of images, got one for {plan.batch}; {DYNAMIC_BATCH}")


def _open_batch(change: _Change, source: Source, *, reshaped: bool) -> None:
    """Let the first size of images and outputs be open, and with `reshaped` that of constant shapes."""
    fixed = source.shape[0]
    if fixed is None and not reshaped:
        return
    if fixed is not None:
        change.notes.append(f"batch of {fixed} made open")
    del change.graph.value_info[:]  # what was inferred for that batch
    own = next(value for value in change.graph.input if value.name == source.name)
    for value in (own, *change.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and (dims[0].HasField("dim_value") or fixed is None):
            dims[0].dim_param = BATCH
    if reshaped:
        change.notes.append("shapes made open in their batch")
        _open_shapes(change.graph, fixed or 1)


def _open_shapes(graph: GraphProto, fixed: int) -> None:
    """Constants that reshape to a size with this batch in it leave that size open; what comes of it is tried."""
    constants = {one.name: one for one in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and [one.name for one in node.attribute] == ["value"]:
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            tensor = constants[node.input[1]]
            copies = not any(one.name == "allowzero" and one.i for one in node.attribute)
            sizes = _opened(numpy_helper.to_array(tensor).reshape(-1).tolist(), fixed, copies=copies)
            tensor.CopyFrom(numpy_helper.from_array(np.array(sizes, np.int64), tensor.name))


def _opened(sizes: list[int], fixed: int, *, copies: bool) -> list[int]:
    """The sizes with that of the batch, or of the first axis, as -1: as many as are left. copies: 0 stands for the size
    that was there, for sizes that leave another to -1.
    """
    at = sizes.index(fixed) if fixed in sizes else 0
    if sizes and -1 not in sizes:
        return [*sizes[:at], -1, *sizes[at + 1 :]]
    return [0, *sizes[1:]] if copies and sizes[:1] == [fixed] else sizes


def _prepend_all(
    change: _Change, source: Source, layout: str, shape: Sequence[int], normalisation: Normalisation
) -> str:
    """What makes of an artifact's images those of the file; returns the name of the input."""
    own = next(value for value in change.graph.input if value.name == source.name)
    first = last = change.unused("images")
    constants = normalisation.constants(shape[0])
    if constants is not None:
        last = change.prepend("Sub", last, constants[0])
        last = change.prepend("Div", last, constants[1])
        mean, std = (value.ravel().tolist() for value in constants)
        change.notes.append(f"normalised by mean {_numbers(mean)}, std {_numbers(std)}")
    if layout == NHWC and not source.takes_bytes:
        last = change.prepend("Transpose", last, perm=[0, 2, 3, 1])
        change.notes.append("images transposed to (batch, height, width, channels)")
    if layout == NCHW and source.takes_bytes:
        last = change.prepend("Transpose", last, perm=[0, 3, 1, 2])
        change.notes.append("images transposed to (batch, channels, height, width)")
    if not source.takes_bytes and source.kind != TensorProto.FLOAT:
        last = change.prepend("Cast", last, to=source.kind)
        change.notes.append(f"images cast to {TensorProto.DataType.Name(source.kind)}")
    if None in source.shape[1:]:
        change.notes.append(f"sizes of an image fixed to {tuple(shape)}")
    channels, height, width = shape
    sizes = (height, width, channels) if source.takes_bytes else tuple(shape)
    if not change.before:
        for dim, size in zip(own.type.tensor_type.shape.dim[1:], sizes, strict=True):
            dim.dim_value = size
        return source.name
    change.before[-1].output[0] = source.name
    after = list(change.graph.node)
    del change.graph.node[:]
    change.graph.node.extend([*change.before, *after])
    kind = TensorProto.UINT8 if source.takes_bytes else TensorProto.FLOAT
    own.CopyFrom(helper.make_tensor_value_info(first, kind, [BATCH, *sizes]))
    return first


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _before_softmax(change: _Change, wanted: str) -> str:
    """The name of what gives logits: what a softmax at the end reads."""
    makers = {name: node for node in change.graph.node for name in node.output}
    node, name = makers.get(wanted), wanted
    while node is not None and node.op_type in PASSED:
        name = node.input[0]
        node = makers.get(name)
    if node is None or node.op_type not in ("Softmax", "QLinearSoftmax"):
        return wanted
    change.notes.append(f"logits taken before {node.op_type} (node {shown(node.name or node.output[0])})")
    if node.op_type == "Softmax":
        return str(node.input[0])
    logits = change.unused("logits")
    change.graph.node.append(helper.make_node("DequantizeLinear", node.input[:3], [logits]))
    return logits


def _as_floats(change: _Change, name: str) -> str:
    """An output of the graph in float32 that holds these values."""
    outputs = [value.name for value in change.graph.output]
    kind = _kind_of(change, name)
    if kind == TensorProto.FLOAT:
        if name not in outputs:
            change.graph.output.append(helper.make_tensor_value_info(name, kind, [BATCH, None]))
            change.notes.append(f"value {shown(name)} made an output")
        return name
    if kind not in FLOATS:
        raise GraphError(
            f"expected logits as floats in {shown(name)}, got {TensorProto.DataType.Name(kind)}; name another value by "
            "--output NAME"
        )
    logits = change.unused("logits")
    change.graph.node.append(helper.make_node("Cast", [name], [logits], to=TensorProto.FLOAT))
    change.graph.output.append(helper.make_tensor_value_info(logits, TensorProto.FLOAT, [BATCH, None]))
    change.notes.append("logits cast to FLOAT")
    return logits


def _kind_of(change: _Change, name: str) -> int:
    """The element type of an output, as the file says, or what it follows from."""
    graph = change.graph
    with suppress(Exception):  # it raises anything for what `load_onnx` then names
        graph = onnx.shape_inference.infer_shapes(change.proto).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return kinds.get(name) or TensorProto.FLOAT  # of operators that ONNX does not know: a session will tell


def _expect_same(
    source: Source, found: GivenFile, layout: str, images: Images, normalisation: Normalisation, wanted: str
) -> None:
    """The file as it came, on images that numpy prepared, and as it is stored, on all at once, give the same."""
    each = source.shape[0] or 1
    pixels = images.x[: 4 * each].cpu().numpy()
    pixels = np.resize(pixels, (4 * each, *pixels.shape[1:]))
    names = [value.name for value in source.proto.graph.output]
    name = wanted if wanted in names else names[0]
    one, ours = (load_session(data, CPU, 1) for data in (source.proto.SerializeToString(), found.data))
    given = source.fed(pixels, layout, normalisation)
    alone = np.concatenate([_run(one, name, part, source) for part in np.split(given, len(given) // each)])
    fed = pixels.transpose(0, 2, 3, 1) if source.takes_bytes else pixels.astype(np.float32) / np.float32(255)
    together = _run(ours, name, np.ascontiguousarray(fed), source)
    if together.shape != alone.shape:
        raise GraphError(f"expected {alone.shape} for images together, got {together.shape}; {DYNAMIC_BATCH}")
    alone, together = (value.reshape(len(pixels), -1).astype(np.float64) for value in (alone, together))
    moved = np.linalg.norm(together - alone, axis=1) / np.maximum(np.linalg.norm(alone, axis=1), 1e-12)
    if not np.median(moved) <= SAME:
        raise GraphError(
            f"expected of {source.path.name} the same for images together and alone, got what differs by "
            f"{np.median(moved):.2g} of its length; {DYNAMIC_BATCH}"
        )


def _run(session: Any, name: str, x: Array, source: Source) -> Array:
    try:
        return np.asarray(session.run([name], {session.get_inputs()[0].name: x})[0])
    except Exception as error:  # onnxruntime's errors share no base
        raise GraphError(
            f"expected {source.path.name} to run on images, got: {reason(error)}; {DYNAMIC_BATCH}"
        ) from error
