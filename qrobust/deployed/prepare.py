"""Somebody's ONNX file as an artifact stores it: images in [0,1] or bytes go in, logits come out, for any number.

F.onnx ─ data beside it put inside ─ batch made open ─ nodes before it: cast, transpose, normalise ─ logits chosen

Nothing that stands in the graph is taken away: what is new stands before it, or is one more output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper, helper, numpy_helper

from ..data import Images
from ..errors import GraphError, shown
from ..export.artifact import GivenFile
from ..onnx_module.module import load_onnx
from ..onnx_module.node import reason
from ..onnx_module.qoperators import DYNAMIC
from ..onnx_module.reading import file_bytes, parsed
from ..runtime import MAX_FILE_BYTES, load_session
from .model import CPU, Array, as_floats

FLOATS: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.FLOAT16: np.float16,
    TensorProto.DOUBLE: np.float64,
}
WIDTHS = {
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4), 4),
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16), 16),
}
PASSED = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")  # what may stand behind a softmax
NCHW, NHWC = "NCHW", "NHWC"
BATCH = "batch"
SAME = 1e-2  # of their length: logits of images passed together and alone differ by what float32 and ties round
DYNAMIC_BATCH = "export it with a dynamic batch axis, as torch.onnx.export(..., dynamic_axes={INPUT: {0: 'batch'}})"


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std of pixels x in [0,1]; each one number, or one a channel. () leaves x as it is.

    Raises GraphError for numbers of another count, or a std that is not above 0.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def constants(self, channels: int) -> tuple[Array, Array] | None:
        """Mean and std, float32 (1, channels or 1, 1, 1); None for none."""
        if not self.mean and not self.std:
            return None
        found = self.mean or (0.0,), self.std or (1.0,)
        for name, values in zip(("mean", "std"), found, strict=True):
            if len(values) not in (1, channels):
                raise GraphError(f"expected 1 or {channels} numbers as {name}, got {len(values)}; give one a channel")
        if not (np.isfinite(found[0]).all() and np.isfinite(found[1]).all() and min(found[1]) > 0):
            raise GraphError(f"expected finite mean and std above 0, got {found}; give those of pixels in [0, 1]")
        mean, std = (np.array(values, np.float32).reshape(1, -1, 1, 1) for values in found)
        return mean, std


@dataclass(frozen=True)
class _Source:
    """A file as it came: its one input of images, and sizes (batch, ...), None where they are open."""

    proto: ModelProto
    path: Path
    record: dict[str, Any]
    name: str
    kind: int
    shape: tuple[int | None, ...]

    @property
    def takes_bytes(self) -> bool:
        return self.kind == TensorProto.UINT8


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


def open_file(path: Path) -> _Source:
    """A file with the data that lie beside it. Raises GraphError unless it is ONNX with one input, images."""
    data = file_bytes(path)
    proto = parsed(data)
    record = {"name": path.name, **_digest(data), "beside": _embed(proto, path)}
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(shown(value.name) for value in inputs[:5]) or "none"
        raise GraphError(
            f"expected a graph with one input, images, got {len(inputs)}: {names}; make the others initializers"
        )
    kind = inputs[0].type.tensor_type
    dims = tuple(int(dim.dim_value) if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    what = f"images (batch, channels, height, width) in {shown(inputs[0].name)}"
    if len(dims) == 3:
        raise GraphError(f"expected {what}, got {dims}, no batch dimension; {DYNAMIC_BATCH}")
    if len(dims) != 4:
        raise GraphError(f"expected {what}, got {len(dims)} dimensions; pass a classifier of images")
    if kind.elem_type not in (*FLOATS, TensorProto.UINT8):
        names = TensorProto.DataType.Name
        raise GraphError(f"expected {what} as floats or uint8, got {names(kind.elem_type)}; put a Cast before it")
    return _Source(proto, path, record, inputs[0].name, kind.elem_type, dims)


def size_of(path: Path) -> tuple[int, int] | None:
    """Height and width that a file's images must have; None where it leaves them open."""
    _, first, second, last = open_file(path).shape
    height, width = (first, second) if last in (1, 3) and first not in (1, 3) else (second, last)
    return None if height is None or width is None else (height, width)


def prepare(
    path: Path, images: Images, *, normalisation: Normalisation = Normalisation(), output: str | None = None
) -> GivenFile:
    """The file for images of this shape. output: name of what gives logits, any value of the graph; None for the only
    output.

    Raises GraphError for a graph that cannot take any number of these images, whose logits cannot be told from
    probabilities, with an operator that `OnnxModule` does not cover, or that gives something else once changed.
    """
    source = open_file(path)
    wanted = _wanted(source.proto.graph, output)
    if source.takes_bytes and normalisation != Normalisation():
        raise GraphError(
            f"expected no mean and std for {path.name}, which takes bytes and normalises them itself; leave them out"
        )
    tried: list[GraphError] = []
    for layout in _layouts(source, images.shape[1:]):
        for reshaped in (False, True):
            try:
                found = _changed(source, layout, images.shape[1:], normalisation, wanted, reshaped=reshaped)
            except GraphError as error:
                tried.append(error)
                continue
            _expect_same(source, found, layout, images, normalisation, wanted)
            return found
    raise tried[0]


def weight_bits(proto: ModelProto) -> dict[str, int]:
    """Width by name of every weight that is stored in fewer than 32 bits, or that a quantiser rounds."""
    large = {tensor.name: tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) > 1}
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    found = {name: WIDTHS[kind] for name, kind in large.items() if kind in WIDTHS}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in large:
            found[node.input[0]] = WIDTHS.get(kinds.get(node.input[2] if len(node.input) > 2 else "", 0), 8)
    return found


def _digest(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}


def _embed(proto: ModelProto, path: Path) -> dict[str, Any]:
    """Put tensors that lie in files beside the graph into it; returns the digests of those files."""
    tensors = [one for one in _tensors(proto.graph) if external_data_helper.uses_external_data(one)]
    places = sorted({external_data_helper.ExternalDataInfo(one).location for one in tensors})
    try:
        for one in tensors:
            external_data_helper.load_external_data_for_tensor(one, str(path.parent))
            one.data_location = TensorProto.DEFAULT
            del one.external_data[:]
        digests = {place: _digest((path.parent / place).read_bytes()) for place in places}
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise GraphError(
            f"expected the data of {path.name} beside it, in {', '.join(places)}, got: {reason(error)}; "
            "put the files of one export into one folder"
        ) from error
    if (size := proto.ByteSize()) > MAX_FILE_BYTES:
        raise GraphError(f"expected {path.name} of up to {MAX_FILE_BYTES} bytes, which a check reads, got {size}; "
                         "pass a smaller network, or quantised weights")  # fmt: skip
    return digests


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for attribute in (one for node in graph.node for one in node.attribute):
        yield from (one for one in (attribute.t, *attribute.tensors) if one.ByteSize())


def _wanted(graph: GraphProto, output: str | None) -> str:
    """The name of what gives logits: an output, or any other value of the graph."""
    outputs: list[str] = [value.name for value in graph.output]
    known = [*outputs, *(name for node in graph.node for name in node.output if name)]
    if output is None and len(outputs) == 1:
        return outputs[0]
    if output is None or output not in known:
        listed = ", ".join(map(shown, outputs[:5])) or "none"
        got = f"{len(outputs)}" if output is None else shown(repr(output))
        raise GraphError(f"expected one output, or the name of one of {listed}, got {got}; name it by --output NAME")
    return output


def _layouts(source: _Source, shape: Sequence[int]) -> list[str]:
    """How the file may take images of shape (c, h, w), the likelier first."""
    channels, height, width = shape
    sizes = {NCHW: (channels, height, width), NHWC: (height, width, channels)}
    found = [name for name, wanted in sizes.items()
             if all(size in (None, own) for size, own in zip(source.shape[1:], wanted, strict=True))]  # fmt: skip
    if not found:
        taken = tuple("any" if size is None else size for size in source.shape[1:])
        raise GraphError(
            f"expected images as {source.path.name} takes them, {taken}, got (c, h, w) = {tuple(shape)}; "
            "give images of that size"
        )
    return found


def _changed(
    source: _Source,
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


def _expect_any_number(source: _Source, plan: Any) -> None:
    if plan.batch is None:
        return
    if any(step.node.op == DYNAMIC for step in plan.steps):
        raise GraphError(
            f"expected logits of an image that do not depend on those beside it, got {DYNAMIC} in {source.path.name}; "
            "quantise it with fixed ranges (onnxruntime.quantization.quantize_static)"
        )
    raise GraphError(f"expected a graph for any number of images, got one for {plan.batch}; {DYNAMIC_BATCH}")


def _open_batch(change: _Change, source: _Source, *, reshaped: bool) -> None:
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
    """Constants that reshape to this batch copy it instead: 0 stands for the size that was there."""
    named = {node.input[1] for node in graph.node if node.op_type == "Reshape" and not _allows_zero(node)}
    for tensor in graph.initializer:
        if tensor.name in named:
            tensor.CopyFrom(_copying(tensor, fixed))
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] in named and node.attribute[0].name == "value":
            node.attribute[0].t.CopyFrom(_copying(node.attribute[0].t, fixed))


def _allows_zero(node: NodeProto) -> bool:
    return any(one.name == "allowzero" and one.i for one in node.attribute)


def _copying(tensor: TensorProto, fixed: int) -> TensorProto:
    sizes = numpy_helper.to_array(tensor).copy()
    if sizes.ndim == 1 and len(sizes) and sizes[0] == fixed:
        sizes[0] = 0
    return numpy_helper.from_array(sizes, tensor.name)


def _prepend_all(
    change: _Change, source: _Source, layout: str, shape: Sequence[int], normalisation: Normalisation
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
    source: _Source, found: GivenFile, layout: str, images: Images, normalisation: Normalisation, wanted: str
) -> None:
    """The file as it came, on images that numpy prepared, and as it is stored, on all at once, give the same."""
    each = source.shape[0] or 1
    pixels = images.x[: 4 * each].cpu().numpy()
    pixels = np.resize(pixels, (4 * each, *pixels.shape[1:]))
    names = [value.name for value in source.proto.graph.output]
    name = wanted if wanted in names else names[0]
    one, ours = (load_session(data, CPU, 1) for data in (source.proto.SerializeToString(), found.data))
    given = _prepared(source, layout, pixels, normalisation)
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


def _prepared(source: _Source, layout: str, pixels: Array, normalisation: Normalisation) -> Array:
    """Images as the file took them when it came."""
    x: Array = pixels
    if not source.takes_bytes:
        constants = normalisation.constants(pixels.shape[1])
        x = pixels.astype(np.float32) / np.float32(255)
        x = (x if constants is None else (x - constants[0]) / constants[1]).astype(FLOATS[source.kind])
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1) if layout == NHWC else x)


def _run(session: Any, name: str, x: Array, source: _Source) -> Array:
    try:
        return np.asarray(session.run([name], {session.get_inputs()[0].name: x})[0])
    except Exception as error:  # onnxruntime's errors share no base
        raise GraphError(
            f"expected {source.path.name} to run on images, got: {reason(error)}; {DYNAMIC_BATCH}"
        ) from error
