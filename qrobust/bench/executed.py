"""What really ran: every node's kind, type and provider, as onnxruntime's own profile of one call tells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..export.sessions import PROVIDERS, Timed, artifact_session, images_for, profiled
from ..runtime import OPENVINO, ArtifactError, LiteRtSession

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "QLinearConv", "Convolution")
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Node:
    """A node that was executed. inputs, outputs: type and shape of each; ones packed in advance have shape ()."""

    op: str
    provider: str
    inputs: Shapes = ()
    outputs: Shapes = ()


def executed(artifact: Timed, provider: str, threads: int = 1) -> list[Node]:
    """The nodes of one call with one image, in order. Raises ArtifactError if one left the provider."""
    session = artifact_session(artifact, provider, threads)
    if provider == OPENVINO:
        return [Node(kind, OPENVINO, ((precision, ()),)) for kind, precision in session.ops()]
    if isinstance(session, LiteRtSession):
        return [Node(kind, provider) for kind, count in session.kernels.items() for _ in range(count)]
    nodes = _profile(session, artifact)
    refuse_fallback(nodes, provider)
    return nodes


def refuse_fallback(nodes: Sequence[Node], provider: str) -> None:
    """Raises ArtifactError if onnxruntime gave a node to another provider: its copies spoil every figure.

    Arithmetic on shapes may run anywhere: providers of GPUs leave it to the CPU by design.
    """
    left = [node for node in nodes if node.provider != provider and not _on_shapes(node)]
    if left:
        counts = Counter(node.op for node in left).most_common(5)
        listed, elsewhere = ", ".join(f"{count} {op}" for op, count in counts), sorted({n.provider for n in left})
        text = f"expected all nodes on {provider}, got {listed} on {', '.join(elsewhere)}"
        raise ArtifactError(f"{text}; it lacks these kernels: export for a target of that provider")


def _on_shapes(node: Node) -> bool:
    return node.op == "Shape" or all(kind == "int64" for kind, _ in node.inputs)


def placement(nodes: Sequence[Node]) -> dict[str, dict[str, int]]:
    """How many nodes of each kind ran on each provider."""
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(node.provider, Counter())[node.op] += 1
    return {provider: dict(count.most_common()) for provider, count in counts.items()}


def compute_type(nodes: Sequence[Node]) -> str | None:
    """The type that most convolutions read, such as "float", "float16", "uint8"; None without convolutions."""
    types = Counter(node.inputs[0][0] for node in nodes if node.op in CONVOLUTIONS and node.inputs)
    return types.most_common(1)[0][0] if types else None


def multiply_adds(artifact: Timed) -> int:
    """Multiply-adds of the file's convolutions and matrix products for one image, zeros that an export adds included.

    Counted where shapes are plain: on the CPU without optimisation. A convolution takes out · c_in/groups · k_h · k_w,
    a matrix product out · k.
    """
    session = artifact.session(PROVIDERS["cpu"], 1, graph_optimization_level="disable")
    return sum(_macs(node) for node in _profile(session, artifact))


def _macs(node: Node) -> int:
    if node.op == "Conv":
        return math.prod(node.outputs[0][1]) * math.prod(node.inputs[1][1][1:])
    if node.op in ("Gemm", "MatMul"):
        return math.prod(node.outputs[0][1]) * node.inputs[0][1][-1]
    return 0


def _profile(session: Any, artifact: Timed) -> list[Node]:
    """The nodes of one call; `session` is used up."""
    events = profiled(session, artifact, images_for(artifact, 1))
    ran = [e["args"] for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    return [
        Node(args["op_name"], args["provider"], _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"]))
        for args in ran
    ]


def _shapes(listed: list[dict[str, list[int]]]) -> Shapes:
    return tuple((kind, tuple(shape)) for entry in listed for kind, shape in entry.items())
