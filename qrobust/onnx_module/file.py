"""The bytes of an ONNX file and what they hold; files may be hostile, and only `whole` opens what lies beside.

Torch is not needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, TensorProto, external_data_helper

from ..errors import GraphError

LARGEST_FILE = 2**31  # bytes: protobuf reads no more
OLDEST = 7  # the opset that brought numpy's broadcasting
LONGEST_NAME, LONGEST_REASON = 60, 160  # in an error


def parsed(data: bytes) -> ModelProto:
    """The file in these bytes. Raises GraphError for what is no ONNX file of a known opset."""
    try:
        model: ModelProto = ModelProto.FromString(data)
    except Exception as error:  # protobuf's errors share no base, and differ by implementation
        raise GraphError(f"expected an ONNX file, got {len(data)} bytes that are none: {reason(error)}") from error
    opset, newest = opset_of(model), onnx.defs.onnx_opset_version()
    if not OLDEST <= opset <= newest:
        raise GraphError(f"expected an ONNX file of opset {OLDEST} to {newest}, got {opset}; convert its version")
    return model


def opset_of(model: ModelProto) -> int:
    """The version of ONNX's own operators, 0 for none."""
    return next((int(entry.version) for entry in model.opset_import if not domain_of(entry.domain)), 0)


def whole(path: Path) -> tuple[ModelProto, list[Path]]:
    """A file with the data that lie beside it put inside, and the places of those.

    Raises GraphError for data that are missing or lie outside of its folder.
    """
    model = parsed(file_bytes(path))
    tensors = [one for one in _stored(model.graph) if external_data_helper.uses_external_data(one)]
    places = sorted({external_data_helper.ExternalDataInfo(one).location for one in tensors})
    try:
        for one in tensors:
            external_data_helper.load_external_data_for_tensor(one, str(path.parent))
            one.data_location = TensorProto.DEFAULT
            del one.external_data[:]
    except Exception as error:  # damaged references raise anything
        raise GraphError(
            f"expected the data of {path.name} beside it, in {', '.join(map(shown, places))}, got: {reason(error)}; "
            "put the files of one export into one folder"
        ) from error
    return model, [path.parent / place for place in places]


def _stored(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for attribute in (one for node in graph.node for one in node.attribute):
        yield from (attribute.t, *attribute.tensors)


def file_bytes(path: Path) -> bytes:
    """All of a file. Raises GraphError for none, or one that protobuf does not read."""
    try:
        size = path.stat().st_size
        if size <= LARGEST_FILE:
            return path.read_bytes()
    except OSError as error:
        raise GraphError(f"expected an ONNX file at {path}, got: {error.strerror}; check the path") from error
    raise GraphError(f"expected at most {LARGEST_FILE} bytes in {path}, got {size}; protobuf reads no more")


def domain_of(domain: str) -> str:
    return "" if domain == "ai.onnx" else text_of(domain)


def text_of(value: str | bytes) -> str:
    """A string of the file; protobuf gives bytes for what is no UTF-8."""
    if isinstance(value, bytes):
        raise GraphError(f"expected names in UTF-8, got {value[:40]!r}; the file is damaged")
    return value


def shown(name: str, longest: int = LONGEST_NAME) -> str:
    """A name from a file, safe to print on one line."""
    name = name if len(name) <= longest else f"{name[:longest]}…"
    return name if name.isprintable() else repr(name)


def reason(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return shown(" ".join(str(error).split()), LONGEST_REASON) or type(error).__name__
