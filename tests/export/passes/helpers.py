"""Small graphs made by hand, and how they are run."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

FEATURES = 5
PADS = [1, 1, 1, 1]


def random(seed=0):
    return np.random.default_rng(seed)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs, [output], **attributes)


def model_of(nodes, initialisers, shape=("batch", 4, 6, 6), opset=20, also_inputs=(), rank=4):
    """A graph from x to y, of that rank; initialisers are arrays by name."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in initialisers.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors if t.name in also_inputs]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "channels", "h", "w"][:rank])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(proto)


def data_of(model):
    """The bytes of a valid file."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def run(model, x):
    """What the graph says, without optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data_of(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def images(n=3, channels=4, seed=0):
    return (random(seed).integers(0, 256, (n, channels, 6, 6)) / 255).astype(np.float32)


def pixels(n=3, channels=4, seed=0):
    """The same images as a camera gives them."""
    return random(seed).integers(0, 256, (n, channels, 6, 6)).astype(np.uint8).transpose(0, 2, 3, 1)


def kinds(model):
    return [node.op_type for node in model.graph]


def of_kind(model, kind):
    """The only node of a kind."""
    (found,) = (node for node in model.graph if node.op_type == kind)
    return found


def quantised_input():
    """x → xq, uint8 → xd."""
    nodes = [
        node("QuantizeLinear", ["x", "x_scale", "x_zero"], "xq"),
        node("DequantizeLinear", ["xq", "x_scale", "x_zero"], "xd"),
    ]
    return nodes, {"x_scale": np.float32(1 / 255), "x_zero": np.uint8(0)}


def integer_weight(name, shape, *, per_channel=True, largest=7, seed=0):
    """An int8 weight in DequantizeLinear, `{name}d`; its largest integers are there in both signs."""
    integers = random(seed).integers(-largest, largest + 1, shape).astype(np.int8)
    integers.flat[:2] = (-largest, largest)
    scale = random(seed + 2).uniform(0.01, 0.1, shape[0]).astype(np.float32)
    scale = scale if per_channel else scale[0]
    values = {name: integers, f"{name}_scale": scale, f"{name}_zero": np.zeros(np.shape(scale), np.int8)}
    return [node("DequantizeLinear", list(values), f"{name}d", axis=0)], values


def integer_conv(per_channel=True, bias=None, largest=7, channels=4, output="c", **attributes):
    """x → uint8 → Conv with int8 weights → output."""
    nodes, values = quantised_input()
    group = attributes.get("group", 1)
    weight, more = integer_weight("w", (FEATURES, channels // group, 3, 3), per_channel=per_channel, largest=largest)
    values |= more
    inputs = ["xd", "wd"]
    if bias is not None:
        values["bias"] = np.asarray(bias, np.float32)
        inputs.append("bias")
    return [*nodes, *weight, node("Conv", inputs, output, pads=PADS, **attributes)], values


def float_conv(bias, output="c"):
    values = {"w": random().normal(size=(FEATURES, 4, 3, 3)).astype(np.float32)}
    if bias:
        values["bias"] = random(3).normal(size=FEATURES).astype(np.float32)
    return [node("Conv", ["x", "w", *(["bias"] if bias else [])], output, pads=PADS)], values


def activation(source, output, bits, *, signed=False, narrow=False, scale=0.02):
    """source → Quantize → Clip, where a type holds more than these bits → Dequantize → output, as Brevitas has it."""
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    low, kind = (-high if narrow else low), np.int8 if signed else np.uint8
    q, c = f"{output}_q", f"{output}_c"
    values = {f"{output}_s": np.float32(scale), f"{output}_z": kind(0)}
    constants = [*values]
    nodes, clipped = [node("QuantizeLinear", [source, *constants], q)], q
    if (low, high) != (np.iinfo(kind).min, np.iinfo(kind).max):
        values |= {f"{output}_low": kind(low), f"{output}_high": kind(high)}
        nodes, clipped = [*nodes, node("Clip", [q, f"{output}_low", f"{output}_high"], c)], c
    return [*nodes, node("DequantizeLinear", [clipped, *constants], output)], values


def classifier(source, output="y", seed=9):
    """source → Flatten → Gemm with an int8 weight → output (batch, 3)."""
    weight, values = integer_weight("g", (3, FEATURES), largest=100, seed=seed)
    values["g_bias"] = random(seed).normal(size=3).astype(np.float32)
    nodes = [node("Flatten", [source], "flat"), node("Gemm", ["flat", "gd", "g_bias"], output, transB=1)]
    return [*weight, *nodes], values


def side_by_side():
    """A sum of what an integer convolution and a float one make of the image."""
    nodes, values = integer_conv()
    floats, others = float_conv(True, output="f")
    floats[0].input[1], values["fw"] = "fw", others.pop("w")
    return model_of([*nodes, *floats, node("Add", ["f", "c"], "y")], values | others)


def small_network(bits=4, channels=4):
    """x → Conv → unsigned activation of `bits` → Conv → signed one of 8 bits → pool → signed one → Gemm → y.

    Biases lie on the accumulator's grid, so that the integer form is exact.
    """
    first = integer_conv(bias=np.zeros(FEATURES), channels=channels)
    inner = activation("c", "a", bits, scale=3 / 2**bits)
    weight = integer_weight("v", (FEATURES, FEATURES, 3, 3), largest=1, seed=5)
    conv = [node("Conv", ["a", "vd", "v_bias"], "e", pads=PADS)], {}
    outer, pooled = activation("e", "s", 8, signed=True), activation("p", "t", 8, signed=True, scale=0.01)
    pool = [node("GlobalAveragePool", ["s"], "p")], {}
    parts = [first, inner, weight, conv, outer, pool, pooled, classifier("t")]
    values = {name: array for _, some in parts for name, array in some.items()}
    for name, steps in {
        "bias": ("x_scale", "w_scale"),
        "v_bias": ("a_s", "v_scale"),
        "g_bias": ("t_s", "g_scale"),
    }.items():
        step = values[steps[0]].astype(float) * values[steps[1]]
        values[name] = (np.rint(random(7).normal(size=len(step)) / step) * step).astype(np.float32)
    return model_of([n for some, _ in parts for n in some], values, ("batch", channels, 6, 6), rank=2)
