"""A small transformer with quantisers placed by hand, and its file in each form that a writer may choose, by hand."""

import functools
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import fx, nn

from qrobust.quant import quantizers, round_biases
from qrobust.quant.layers import QuantizedActivation, QuantizedLinear, quantized_activation, quantized_linear
from qrobust.quant.quantizer import calibrating

from ..quant.helpers import images

WIDTH, HEADS, TOKENS = 8, 2, 4
FORMS = ("integer", "gemm", "float")


def linear(inputs, outputs, bits=8):
    return quantized_linear(nn.Linear(inputs, outputs), bits, per_channel=True, inner=True)


def signed():
    return quantized_activation(8, signed=True)


class Block(nn.Module):
    """Attention and a network of two layers, each on a normalised stream that stays float."""

    def __init__(self, bits):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q1, self.q2, self.q3, self.q4 = (signed() for _ in range(4))
        self.qkv, self.proj = linear(WIDTH, 3 * WIDTH, bits), linear(WIDTH, WIDTH, bits)
        self.fc1, self.fc2 = linear(WIDTH, 2 * WIDTH, bits), linear(2 * WIDTH, WIDTH, bits)
        self.gelu = nn.GELU()

    def forward(self, x):
        qkv = self.qkv(self.q1(self.norm1(x))).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        mixed = (torch.softmax(scores, -1) @ qkv[2]).transpose(1, 2).reshape(-1, TOKENS, WIDTH)
        x = x + self.proj(self.q2(mixed))
        return x + self.fc2(self.q4(self.gelu(self.fc1(self.q3(self.norm2(x))))))


class Tokens(nn.Module):
    """Rows of images of 4 × 4 pixels as tokens."""

    def __init__(self, bits):
        super().__init__()
        self.q0, self.embed = quantized_activation(8, signed=False, fixed=True), linear(TOKENS, WIDTH, bits)
        self.blocks = nn.Sequential(Block(bits), Block(bits))
        self.norm, self.q5, self.head = nn.LayerNorm(WIDTH), signed(), linear(WIDTH, 3)

    def forward(self, x):
        x = self.blocks(self.embed(self.q0(x).reshape(-1, TOKENS, TOKENS)))
        return self.head(self.q5(self.norm(x).mean(1)))


class Tracer(fx.Tracer):
    def is_leaf_module(self, module, path):
        return isinstance(module, (QuantizedActivation, QuantizedLinear)) or super().is_leaf_module(module, path)


@functools.cache
def network(bits=8):
    """In eval mode, calibrated, biases on their grids. Not to be changed."""
    torch.manual_seed(0)
    model = Tokens(bits).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape) / 4)
        with calibrating(model):
            model(images(32, side=TOKENS))
    graph = Tracer().trace(model)
    made = fx.GraphModule(model, graph)
    round_biases(made)
    return made.eval()


@dataclass(frozen=True)
class Named:
    """As a writer names an activation."""

    module: str
    value: str
    zero: int


class File:
    """The same as an ONNX graph. form: "integer": MatMulInteger; "gemm": Quantize, Dequantize and MatMul; "float":
    Div, Round, Clip, Mul.
    """

    def __init__(self, model, form):
        self.model, self.form = model, form
        self.nodes, self.constants, self.activations = [], {}, []
        x = self.quantise("x", "q0")
        x = self.linear(self.move("Reshape", x, self.constant("rows", np.array([-1, TOKENS, TOKENS]))), "embed")
        for index in range(2):
            x = self.block(x, f"blocks.{index}.")
        x = self.op("ReduceMean", self.norm(x, "norm"), self.constant("one", np.array([1])), keepdims=0)
        self.nodes[-1].output[0] = x = "mean"
        self.linear(self.quantise(x, "q5"), "head", result="logits")

    def op(self, kind, *inputs, name=None, **attributes):
        name = name or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, name, value):
        self.constants[name] = np.asarray(value)
        return name

    def tensor(self, path):
        return self.constant(path, self.model.get_parameter(path).detach().numpy())

    def move(self, kind, x, *inputs, **attributes):
        """Of a quantised activation, its integers."""
        if self.form == "float":
            return self.op(kind, x, *inputs, **attributes), None
        return self.op(kind, x[0], *inputs, **attributes), x[1]

    def quantise(self, x, path):
        quantizer = next(quantizers(self.model.get_submodule(path)))
        scale = self.constant(f"{path}.scale", quantizer.scale().detach().numpy())
        if self.form == "float":
            bounds = (self.constant(f"{path}.{end}", np.float32(getattr(quantizer, end))) for end in ("low", "high"))
            value = self.op("Clip", self.op("Round", self.op("Div", x, scale)), *bounds, name=f"{path}.clip")
            self.activations.append(Named(path, value, 0))
            return self.op("Mul", value, scale)
        zero = 128 if quantizer.low < 0 else 0
        value = self.op("QuantizeLinear", x, scale, self.constant(f"{path}.zero", np.uint8(zero)), name=f"{path}.q")
        self.activations.append(Named(path, value, zero))
        return value, path

    def linear(self, x, path, result=None):
        layer = self.model.get_submodule(path)
        quantizer = next(quantizers(layer))
        steps = quantizer.scale().detach()
        levels = (layer.weight.detach() / steps).round().clamp(quantizer.low, quantizer.high)
        scale = self.constant(f"{path}.scale", steps.flatten().numpy())
        integers = self.constant(f"{path}.integers", levels.t().contiguous().numpy().astype(np.int8))
        if self.form == "float" or self.form == "gemm":
            x = x if isinstance(x, str) else x[0] if x[1] is None else self.dequantised(x)
            y = self.op("MatMul", x, self.weight(integers, scale))
        else:
            grid, one = f"{x[1]}.scale", self.constant("one8", np.int8(1))
            sums = self.op("Cast", self.op("MatMulInteger", x[0], integers, f"{x[1]}.zero"), to=TensorProto.FLOAT)
            y = self.op("Mul", sums, self.op("Mul", self.op("DequantizeLinear", one, grid), scale))
        return self.op("Add", y, self.tensor(f"{path}.bias"), name=result or path)

    def weight(self, integers, scale):
        """onnxruntime rounds activations by itself in front of weights that it dequantises."""
        if self.form == "gemm":
            # One zero a channel: onnxruntime gives one number to a weight without any, and refuses that.
            zeros = self.constant(f"{scale}.zeros", np.zeros(len(self.constants[scale]), np.int8))
            return self.op("DequantizeLinear", integers, scale, zeros, axis=1)
        return self.op("Mul", self.op("Cast", integers, to=TensorProto.FLOAT), scale)

    def dequantised(self, x):
        return self.op("DequantizeLinear", x[0], f"{x[1]}.scale", f"{x[1]}.zero")

    def norm(self, x, path):
        parameters = (self.tensor(f"{path}.{name}") for name in ("weight", "bias"))
        return self.op("LayerNormalization", x, *parameters, name=path, axis=-1, epsilon=1e-5)

    def block(self, x, path):
        qkv = self.linear(self.quantise(self.norm(x, f"{path}norm1"), f"{path}q1"), f"{path}qkv")
        apart = self.op("Reshape", qkv, self.constant("apart", np.array([-1, TOKENS, 3, HEADS, WIDTH // HEADS])))
        turned = self.op("Transpose", apart, perm=[2, 0, 3, 1, 4])
        q, k, v = (self.op("Gather", turned, self.constant(f"part{i}", np.array(i)), axis=0) for i in range(3))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scaled = self.op("Mul", scores, self.constant(f"{path}temperature", np.float32((WIDTH // HEADS) ** -0.5)))
        mixed = self.op("Transpose", self.op("MatMul", self.op("Softmax", scaled, axis=-1), v), perm=[0, 2, 1, 3])
        mixed = self.op("Reshape", mixed, self.constant("together", np.array([-1, TOKENS, WIDTH])))
        x = self.op("Add", x, self.linear(self.quantise(mixed, f"{path}q2"), f"{path}proj"))
        hidden = self.linear(self.quantise(self.norm(x, f"{path}norm2"), f"{path}q3"), f"{path}fc1")
        hidden = self.op("Gelu", hidden, name=f"{path}gelu")
        return self.op("Add", x, self.linear(self.quantise(hidden, f"{path}q4"), f"{path}fc2"))

    def data(self, **changed):
        """The bytes, some constants times a factor."""
        constants = {name: (value * changed.get(name, 1)).astype(value.dtype) for name, value in self.constants.items()}
        assert changed.keys() <= constants.keys()
        graph = helper.make_graph(
            self.nodes, "tokens",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, TOKENS, TOKENS])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        onnx.checker.check_model(model)
        return model.SerializeToString()


@functools.cache
def file(form, bits=8):
    """Not to be changed."""
    return File(network(bits), form)
