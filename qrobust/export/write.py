"""From a torch network to the bytes of an ONNX file for a target."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from .. import devices
from ..errors import ExportError
from ..onnx_module.file import opset_of
from ..quant import bits_per_layer, fold_fat
from ..quant.graph import exported as export_program
from ..runtime import LITERT
from ..storage import write_bytes
from .lowering import FORMS, Names, Quantised, lower_program
from .parity import check_parity
from .sessions import CPU, has_signed, open_session, present_provider
from .target import Target, load_target
from .tflite import to_tflite

INPUT, OUTPUT = "x", "logits"
GIVEN_TARGET = "as-given"  # which asks nothing of a graph
FLOAT_LAYERS = ("Conv", "FusedConv")
PRODUCT, FUSED_PRODUCT = "MatMulInteger", "MatMulIntegerToFloat"
INPUTS = ("float32-nchw", "uint8-nhwc")
FEWEST, MOST = 32, 1000  # images that a file is judged on
EXPLICIT = ("WebGpuExecutionProvider",)  # of attributes: onnxruntime-web refuses convolutions without their dilations


def export_model(
    model: nn.Module, example: Tensor, *, target: str | Target = "ort-cpu", path: str | Path, input: str = INPUTS[0]
) -> Path:
    """Write a network as ONNX for a target, or as .tflite for one of LiteRT; returns the path. What is written is what
    `evaluate` measures.

    model: float, or from `quantize`; it is not changed. example: images (n, c, h, w) in [0,1], for the shape; file
    and network are compared on them, and on random ones if they are few.
    input: "float32-nchw": the file takes "x" float32 (batch, c, h, w) in [0,1]; "uint8-nhwc": uint8
    (batch, h, w, c), as a camera gives it. It gives "logits" float32 (batch, classes).
    Raises ExportError if the graph is not what the target asks for, or a bias lies off its grid (after training:
    `round_biases`), and ParityError if file and network differ by more than it tolerates; then nothing is written.
    """
    path = Path(path)
    chosen = load_target(target) if isinstance(target, str) else target
    images = _some_images(example)
    network = copy.deepcopy(model).cpu().eval()
    made = written(network, images[:1], chosen, input=input)
    if chosen.executable:
        check_ops(made.data, chosen, network)
        check_parity(network, made.data, images, chosen, activations=made.activations)
    write_bytes(path, made.tflite or made.data)
    return path


def _some_images(example: Tensor) -> Tensor:
    """The first of these on the 8-bit grid, and random ones up to `FEWEST`."""
    if example.dim() != 4 or not len(example) or not (example.min() >= 0 and example.max() <= 1):
        raise ExportError(
            f"expected example images (n, c, h, w) in [0, 1], got {tuple(example.shape)}; pass some of the test images"
        )
    given = (example[:MOST].detach().float().cpu() * 255).round()
    missing = (max(0, FEWEST - len(given)), *given.shape[1:])
    made = torch.randint(256, missing, generator=torch.Generator().manual_seed(0))
    return torch.cat([given, made]) / 255


@dataclass(frozen=True)
class Written:
    """A file and its quantised activations, in the order of execution; tflite: the file of it that LiteRT runs."""

    data: bytes
    activations: tuple[Quantised, ...]
    tflite: bytes = b""


def lower(
    model: nn.Module,
    example: Tensor,
    target: Target,
    metadata: dict[str, str] | None = None,
    *,
    input: str = INPUTS[0],
) -> bytes:
    """The file of `export_model` as bytes, `metadata` in it; the same network gives the same bytes."""
    return written(model, example, target, metadata, input=input).data


@devices.exact_products()
def written(
    model: nn.Module,
    example: Tensor,
    target: Target,
    metadata: dict[str, str] | None = None,
    *,
    input: str = INPUTS[0],
) -> Written:
    """As `lower`, with what the file calls the activations that the network quantises."""
    if input not in INPUTS:
        raise ExportError(f"expected input {' or '.join(INPUTS)}, got {input!r}")
    from ..quant.exported import as_exported

    form = FORMS[target.format](target.storage, target.linear)
    try:
        program = exported(as_exported(fold_fat(_sharing(model))).eval(), example)
        graph, activations = lower_program(
            program,
            form,
            opset=target.opset,
            takes_bytes=input == "uint8-nhwc",
            names=Names(INPUT, OUTPUT, short=target.names == "short", explicit=target.provider in EXPLICIT),
        )
    except ExportError as error:
        raise ExportError(f"{target.name}: {error}") from error
    graph.producer_name, graph.producer_version = "qrobust", None
    graph.metadata_props.update(metadata or {})
    data = _checked(graph, target)
    return Written(data, tuple(activations), as_tflite(data, target))


def as_tflite(data: bytes, target: Target) -> bytes:
    """The .tflite file of an ONNX one where the target runs that, else nothing. Raises ExportError as `to_tflite`."""
    try:
        return to_tflite(data, target.provider).data if target.provider in LITERT else b""
    except ExportError as error:
        raise ExportError(f"{target.name}: {error}") from error


def exported(model: nn.Module, example: Tensor) -> ExportedProgram:
    """A network in eval mode as a graph of torch's operators, for any number of images. Raises ExportError."""
    pair = example[:1].detach().cpu().float().repeat(2, *[1] * (example.dim() - 1))
    try:
        with torch.no_grad():
            return export_program(model, pair)
    except Exception as error:  # of many kinds; all mean that what the network does hangs on numbers of the images
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"expected a network that torch.export captures for any number of images, got: {first[:200]}; "
            "write what it names without control flow on values or sizes of images"
        ) from error


def _sharing(model: nn.Module) -> nn.Module:
    """A copy whose modules are its own and whose numbers are the network's; of one on another device, copies."""
    shared: dict[int, Tensor] = {}
    if all(tensor.device.type == "cpu" for tensor in (*model.parameters(), *model.buffers())):
        shared = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in model.parameters()}
        shared |= {id(one): one for one in model.buffers()}
    copied = copy.deepcopy(model, shared).cpu()
    if isinstance(copied, fx.GraphModule):
        for node in copied.graph.nodes:
            node.meta.pop("nn_module_stack", None)  # of the network that it was captured from
    return copied


def _checked(graph: ir.Model, target: Target) -> bytes:
    proto = ir.to_proto(graph)
    opset = graph.graph.opset_imports[""]
    if opset is not None and opset > target.opset:
        raise ExportError(
            f"{target.name}: expected opset {target.opset} or lower, got {opset}; raise the target's opset"
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{target.name}: expected a valid graph, got: {str(error).splitlines()[0]}") from error
    return bytes(proto.SerializeToString(deterministic=True))


def optimised_ops(model: Path | bytes, target: Target) -> Counter[str]:
    """How many nodes of each kind the target's provider executes, or onnxruntime's on the CPU where that is missing and
    where LiteRT, which shows no layers that it fused, runs another file; maybe none.
    """
    return Counter(node.op_type for node in _executed(model, target))


def _executed(model: Path | bytes, target: Target) -> list[onnx.NodeProto]:
    if not target.executable:
        return []
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        provider = CPU if target.provider in LITERT else present_provider(target)
        open_session(model, target.session.graph_optimization_level, provider, written)
        return list(onnx.load(str(written)).graph.node)


def check_given(data: bytes, target: Target) -> None:
    """Raises ExportError unless a file that somebody else wrote is what a target asks for.

    A required operator must be there for every convolution of quantised weights, and at least once.
    """
    proto = onnx.load_from_string(data)
    if not target.executable or target.provider in LITERT:
        kind = "onnxruntime" if target.executable else "a runtime"
        raise ExportError(f"{target.name}: expected a target that {kind} executes; choose {GIVEN_TARGET}")
    if (opset := opset_of(proto)) > target.opset:
        raise ExportError(f"{target.name}: expected opset {target.opset} or lower, got {opset}; choose {GIVEN_TARGET}")
    if target.session.x64quantprecision and has_signed(proto):
        raise ExportError(
            f"{target.name}: expected no INT8 activations, which x64quantprecision = 1 breaks, got some; choose "
            f"{GIVEN_TARGET}"
        )
    ran = optimised_ops(data, target)
    least = max(1, sum(_is_quantised(node, proto) for node in proto.graph.node))
    for op in target.required_ops:
        if ran[op] < least:
            raise ExportError(
                f"{target.name}: expected {least} {op} once optimised, one for every quantised convolution, got "
                f"{ran[op]}; choose a target that does not require it, as {GIVEN_TARGET}"
            )
    _expect_none_forbidden(ran, target)


def _is_quantised(node: onnx.NodeProto, proto: onnx.ModelProto) -> bool:
    """Whether it is a convolution whose weights are integers."""
    rounded = {one.output[0] for one in proto.graph.node if one.op_type == "DequantizeLinear"}
    return node.op_type in ("QLinearConv", "ConvInteger") or (node.op_type == "Conv" and node.input[1] in rounded)


def check_ops(file: Path | bytes, target: Target, model: nn.Module) -> None:
    """Raises ExportError unless the optimised graph holds what the target requires and nothing it forbids.

    A required operator must be there for every quantised convolution of `model`, from `quantize`; and every product of
    integers must be one layer with its scale.
    """
    layers, executed = dict(model.named_modules()), _executed(file, target)
    ran = Counter(node.op_type for node in executed)
    least = sum(bits < 32 and isinstance(layers[name], nn.Conv2d) for name, bits in bits_per_layer(model).items())
    for op in target.required_ops:
        if ran[op] < least:
            floats = (node.output[0] for node in executed if node.op_type in FLOAT_LAYERS)
            named = next((f", and a float one for {path}" for path in floats if path in layers), "")
            raise ExportError(
                f"{target.name}: expected {least} {op} once optimised, one for every quantised convolution, got "
                f"{ran[op]}{named}; choose a target that does not require it, as compact, or replace what it reads"
            )
    proto = onnx.load_from_string(file) if isinstance(file, bytes) else onnx.load(str(file))
    products = sum(node.op_type == PRODUCT for node in proto.graph.node)
    if ran[PRODUCT] or ran[FUSED_PRODUCT] < products:
        raise ExportError(
            f"{target.name}: expected {products} {FUSED_PRODUCT} once optimised and no {PRODUCT}, got "
            f'{ran[FUSED_PRODUCT]} and {ran[PRODUCT]}; choose linear = "qdq", or a higher graph_optimization_level'
        )
    _expect_none_forbidden(ran, target)


def _expect_none_forbidden(ran: Counter[str], target: Target) -> None:
    for op in target.forbidden_ops:
        if ran[op]:
            raise ExportError(f"{target.name}: expected no {op} once optimised, got {ran[op]}; choose another target")
