"""Reading a traced network: what each operation means to quantisation, and where images, sizes and edges are."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..errors import ModelError

aten = torch.ops.aten
Targets = tuple[Callable[..., Any], ...]

LAYERS = (nn.Conv2d, nn.Linear)
ACTIVATIONS = (nn.ReLU, nn.Hardtanh)  # the clip of a quantiser does their work; relu6 is a hardtanh from 0 to 6
POSITIVE_FUNCTIONS = (nn.Sigmoid, nn.Hardsigmoid)
FUNCTIONS = (*POSITIVE_FUNCTIONS, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.GELU, nn.ELU, nn.Tanh)  # stay float

POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
POOL_FUNCTIONS: Targets = (F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean)

SUMS: Targets = (operator.add, torch.add)
DIFFERENCES: Targets = (operator.sub, torch.sub)
PRODUCTS: Targets = (operator.mul, torch.mul)
QUOTIENTS: Targets = (operator.truediv, torch.div)  # by a constant
CONCATENATIONS: Targets = (torch.cat, torch.concat, torch.concatenate)
ARITHMETIC: Targets = (*SUMS, *DIFFERENCES, *PRODUCTS, *QUOTIENTS, *CONCATENATIONS)

ON_GRID_FUNCTIONS: Targets = (
    operator.getitem, F.pad, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze,
    torch.unsqueeze, torch.unflatten, torch.chunk, torch.split, torch.roll, aten.slice.Tensor, aten.select.int,
    aten.unbind.int, aten.expand.default, aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.detach.default,
)  # fmt: skip
PARTITIONS: Targets = (torch.chunk, torch.split, aten.unbind.int)  # give several tensors
ON_GRID_MODULES = (
    nn.Identity, nn.Flatten, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d,
    nn.PixelShuffle, nn.PixelUnshuffle,
)  # fmt: skip

SUPPORTED = (
    "Conv2d, Linear, BatchNorm2d, ReLU, ReLU6, Hardtanh, SiLU, Sigmoid, Hardswish, Hardsigmoid, LeakyReLU, GELU, ELU, "
    "Tanh, average and max pooling, Dropout, StochasticDepth, Flatten, reshaping, padding with zeros, +, -, *, cat"
)


def is_drop_path(module: object) -> bool:
    """Whether this drops whole paths in training, by the names that torchvision and timm have for it."""
    named = type(module).__name__ in ("StochasticDepth", "DropPath")
    return named and isinstance(module, nn.Module) and not any(True for _ in module.children())


def is_size(node: fx.Node) -> bool:
    """Whether a node asks for a size."""
    return node.target is aten.sym_size.int


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws numbers."""
    if node.target is aten.scaled_dot_product_attention.default:
        return len(node.args) > 4 and bool(node.args[4])
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def keeps_grid(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node's output has its input's values, zeros or some of both, at inference."""
    if node.op == "call_function":
        return node.target in ON_GRID_FUNCTIONS and not _pads_with_others(node)
    return isinstance(module, ON_GRID_MODULES) or is_drop_path(module)


def _pads_with_others(node: fx.Node) -> bool:
    value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value")
    return node.target is F.pad and value not in (None, 0)


def bounds(module: nn.ReLU | nn.Hardtanh) -> tuple[float, float]:
    """Lowest and highest value of an activation that a quantiser replaces."""
    return (module.min_val, module.max_val) if isinstance(module, nn.Hardtanh) else (0.0, float("inf"))


UNSUPPORTED = ("float", "refuse")


@dataclass
class Reading:
    """One walk over a captured graph. Raises ModelError for what no file can hold, by module.

    unsupported: what has no integer form stays "float", or is a ModelError ("refuse"). shortcuts: "float" for residual
    sums of floats. plain: sizes and constants,
    which hold no activations. of_image: the image, and what is computed of it before the first layers. signed: whether
    a node's values may be negative. floats: nodes whose values are floats that no quantiser need stand behind: what
    has no integer form, layers of tokens, and what is computed of those (a residual stream with its norms). layers: in
    the order of execution. edges: those that read the image, and those that nothing but pooling, activations and
    reshaping parts from the output (the `classifiers`).
    """

    graph: fx.GraphModule
    unsupported: str = "float"
    shortcuts: str = "n"
    plain: set[fx.Node] = field(default_factory=set)
    of_image: set[fx.Node] = field(default_factory=set)
    signed: dict[fx.Node, bool] = field(default_factory=dict)
    floats: set[fx.Node] = field(default_factory=set)
    float_sums: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._modules = dict(self.graph.named_modules())
        for node in self.graph.graph.nodes:
            self._visit(node)
        layers = [node for node in self.graph.graph.nodes if isinstance(self.module(node), LAYERS)]
        self.layers = [node for node in layers if node not in self.plain]  # others compute a table, as of positions
        if not self.layers:
            raise ModelError("expected a network with a convolution or a linear layer, got none to quantise")
        self.classifiers = set(self._classifiers())
        self.edges = {node for node in self.layers if self.tensors(node)[0] in self.of_image} | self.classifiers

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, as it was captured; None for a quantiser put in since."""
        return self._modules.get(str(node.target)) if node.op == "call_module" else None

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """The activations that a node reads."""
        return [source for source in node.all_input_nodes if source not in self.plain]

    def keeps(self, node: fx.Node) -> bool:
        """Whether a node leaves values on their grid."""
        return keeps_grid(node, self.module(node))

    def computes(self, node: fx.Node) -> bool:
        """Whether a node is a pool, a function or arithmetic that runs on integers between 8-bit quantisers."""
        if node in self.floats:
            return False
        if node.op == "call_function":
            return node.target in (*ARITHMETIC, *POOL_FUNCTIONS)
        return isinstance(self.module(node), (*POOLS, *FUNCTIONS))

    def _visit(self, node: fx.Node) -> None:
        if self._is_plain(node):
            self.plain.add(node)
            return
        if node.op == "output":
            return
        if is_random(node):
            raise ModelError(
                f"{where(node)}: expected a network whose random numbers are dropout's, as a module that follows the "
                f"mode, got {_kind(node, None)}; leave it out, or use nn.Dropout or StochasticDepth"
            )
        sources = self.tensors(node)
        if not isinstance(self.module(node), LAYERS) and all(source in self.of_image for source in sources):
            self.of_image.add(node)
        check_settings(where(node), self.module(node))
        sign = self._sign(node, sources)
        if sign is None and self.unsupported == "refuse":
            raise ModelError(f"{where(node)}: no integer form of {_kind(node, self.module(node))}, of which there are: "
                             f'{SUPPORTED}; leave it in float by unsupported="float"')  # fmt: skip
        if self.shortcuts == "float" and node.target in SUMS and len(sources) > 1:
            self.float_sums.add(node)
        if node in self.float_sums or self._is_float(node, sources, has_form=sign is not None):
            self.floats.add(node)
        self.signed[node] = sign is not False

    def _is_plain(self, node: fx.Node) -> bool:
        if node.op == "get_attr" or is_size(node):
            return True
        inputs = node.all_input_nodes
        return node.op != "output" and bool(inputs) and all(source in self.plain for source in inputs)

    def _is_float(self, node: fx.Node, sources: list[fx.Node], *, has_form: bool) -> bool:
        module = self.module(node)
        if isinstance(module, nn.Linear):
            return is_of_tokens(node)
        return not isinstance(module, LAYERS) and (not has_form or any(source in self.floats for source in sources))

    def _sign(self, node: fx.Node, sources: list[fx.Node]) -> bool | None:
        """Whether values may be negative; None for what has no integer form."""
        module = self.module(node)
        signed = any(self.signed[source] for source in sources)
        if node.op == "placeholder":
            return False
        if isinstance(module, LAYERS):
            return True
        if isinstance(module, (nn.BatchNorm2d, *FUNCTIONS)):
            return not isinstance(module, POSITIVE_FUNCTIONS)
        if isinstance(module, ACTIVATIONS):
            low, high = bounds(module)
            return low < 0 if low in (0, -high) else None
        if isinstance(module, nn.AdaptiveAvgPool2d) and not divides(node):
            return None
        if self.keeps(node) or self._is_pool(node):
            return signed
        if _is_arithmetic(node) and not (node.target in QUOTIENTS and len(sources) > 1):
            return signed or _may_turn_negative(node, len(sources))
        return None

    def _is_pool(self, node: fx.Node) -> bool:
        return node.target in POOL_FUNCTIONS if node.op == "call_function" else isinstance(self.module(node), POOLS)

    def _classifiers(self) -> Iterator[fx.Node]:
        """The layers met first on the ways up from the output; sums and concatenations end a way."""
        (output,) = (node for node in self.graph.graph.nodes if node.op == "output")
        ways = self.tensors(output)
        while ways:
            node = ways.pop()
            sources = self.tensors(node)
            if node in self.layers:
                yield node
            elif len(sources) == 1:
                ways += sources


def divides(node: fx.Node) -> bool:
    """Whether all windows of an adaptive pool are of one size; a file holds others as products with floats."""
    before, after = (one.meta.get("shape") for one in (node.all_input_nodes[0], node))
    if before is None or after is None or len(before) != 4 or len(after) != 4:
        return True
    return all(size is None or not size % part for size, part in zip(before[2:], after[2:], strict=True))


def is_of_tokens(node: fx.Node) -> bool:
    """Whether a linear layer reads more than one vector of an image; its sums stay floats, and its bias."""
    shape = node.meta.get("shape")
    return shape is not None and (len(shape) > 2 or shape[0] == -1)


def check_settings(where: str, module: nn.Module | None) -> None:
    """Raises ModelError for a setting that has no form in a file."""
    if isinstance(module, nn.BatchNorm2d) and module.running_mean is None:
        raise ModelError(
            f"{where}: expected batch-norm with running statistics, got one without, whose logits depend on the batch; "
            "train it with track_running_stats=True"
        )
    if isinstance(module, nn.AvgPool2d) and module.divisor_override:
        raise ModelError(
            f"{where}: expected a pool that divides by its pixels, got divisor_override={module.divisor_override}; "
            "leave it out and multiply by the kernel's pixels / divisor behind the pool"
        )
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and _leaves_open(module.output_size):
        raise ModelError(
            f"{where}: expected an adaptive pool of a known size, got {module.output_size}; give both numbers"
        )
    if isinstance(module, (nn.MaxPool2d, nn.AdaptiveMaxPool2d)) and module.return_indices:
        raise ModelError(f"{where}: expected a pool that gives values alone, got return_indices; leave it out")


def _leaves_open(size: object) -> bool:
    return size is None or (isinstance(size, tuple) and None in size)


def _is_arithmetic(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in ARITHMETIC


def _may_turn_negative(node: fx.Node, count: int) -> bool:
    """Whether arithmetic on `count` tensors without a sign can give one: by a difference or a constant."""
    if node.target in (*CONCATENATIONS, *DIFFERENCES):
        return node.target in DIFFERENCES
    numbers = [value for value in node.args if isinstance(value, (int, float))]
    known = not node.kwargs and count + len(numbers) == len(node.args)
    return not known or any(number < 0 for number in numbers)


def _kind(node: fx.Node, module: nn.Module | None) -> str:
    return type(module).__name__ if module is not None else str(getattr(node.target, "__name__", node.target))


def where(node: fx.Node) -> str:
    """The path of the module that a node calls or is called in."""
    return str(node.target) if node.op == "call_module" else node.meta.get("where") or node.name
