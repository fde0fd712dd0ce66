"""What stands for an ATen operator in a captured graph: a module that follows the mode, or a function of torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

# ATen's name (without the underscore of work in place), the module, and what its arguments after the input are called.
MODULES: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "relu6": (nn.ReLU6, ()),
    "hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "silu": (nn.SiLU, ()),
    "sigmoid": (nn.Sigmoid, ()),
    "hardswish": (nn.Hardswish, ()),
    "hardsigmoid": (nn.Hardsigmoid, ()),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope",)),
    "gelu": (nn.GELU, ()),
    "elu": (nn.ELU, ("alpha",)),
    "tanh": (nn.Tanh, ()),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "avg_pool2d": (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "max_pool2d": (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "dropout": (nn.Dropout, ("p",)),
    "feature_dropout": (nn.Dropout2d, ("p",)),
}
DROPOUTS = ("dropout", "feature_dropout")
# The same arguments. A view of a channels-last tensor may not exist: reshape copies it then.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div, "cat": torch.cat, "mean": torch.mean,
    "pad": F.pad, "flatten": torch.flatten, "unflatten": torch.unflatten, "view": torch.reshape,
    "reshape": torch.reshape, "permute": torch.permute, "transpose": torch.transpose, "swapaxes": torch.transpose,
    "squeeze": torch.squeeze, "unsqueeze": torch.unsqueeze, "chunk": torch.chunk, "split": torch.split,
    "split_with_sizes": torch.split, "roll": torch.roll,
}  # fmt: skip
UNCHANGED = ("contiguous", "clone", "alias", "to", "type_as", "expand_as", "expand")  # of the same form
Settings = dict[str, Any]


class Attention(nn.Module):
    """Scaled dot-product attention whose dropout follows the mode."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **settings: Any) -> Tensor:
        """As torch's function."""
        p = self.p if self.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, mask, p, **settings)


def module_for(name: str, arguments: tuple[Any, ...], settings: Settings) -> nn.Module | None:
    """The module that does what an operator without weights does; None for none, or sizes that are not known."""
    if name not in MODULES:
        return None
    kind, names = MODULES[name]
    given = {**dict(zip(names, arguments[1:], strict=False)), **settings}
    if any(isinstance(value, fx.Node) for value in given.values()):
        return None
    return kind(**given)


def pooling(rank: int, arguments: tuple[Any, ...]) -> tuple[nn.Module, ...]:
    """Modules for a mean over height and width of images; none for another."""
    _, dims, *rest = (*arguments, None) if len(arguments) < 2 else arguments
    if rank != 4 or not isinstance(dims, (tuple, list)) or {dim % 4 for dim in dims} != {2, 3}:
        return ()
    pool = nn.AdaptiveAvgPool2d(1)
    return (pool,) if rest and rest[0] else (pool, nn.Flatten())


def weighted(model: nn.Module, name: str, arguments: tuple[Any, ...], rank: int) -> tuple[str, nn.Module] | None:
    """Path of the weight's holder, and a layer on the same parameters, for a layer that is called as a function.

    None for other operators, and for weights that are computed.
    """
    made = LAYERS.get(name)
    if made is None or not ((len(arguments) > 1 and _path(arguments[1])) or name == "batch_norm"):
        return None
    return made(model, arguments, rank)


def _linear(model: nn.Module, arguments: tuple[Any, ...], _: int) -> tuple[str, nn.Module]:
    _, weight, bias = (*arguments, None)[:3]
    values = _get(model, weight)
    layer = nn.Linear(values.shape[1], values.shape[0], bias=bias is not None, device="meta")
    return _with(model, layer, weight=weight, bias=bias)


def _conv(model: nn.Module, arguments: tuple[Any, ...], _: int) -> tuple[str, nn.Module]:
    _, weight, bias, stride, padding, dilation, groups = (*arguments, *CONV_DEFAULTS[len(arguments) - 2 :])[:7]
    values = _get(model, weight)
    layer = nn.Conv2d(
        values.shape[1] * groups, values.shape[0], (values.shape[2], values.shape[3]), stride=_pair(stride),
        padding=padding if isinstance(padding, str) else _pair(padding), dilation=_pair(dilation), groups=groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    return _with(model, layer, weight=weight, bias=bias)


def _batch_norm(model: nn.Module, arguments: tuple[Any, ...], rank: int) -> tuple[str, nn.Module] | None:
    """For what a subclass calls, as timm's, which has its activation inside; None if it does not follow the mode."""
    _, weight, bias, mean, variance, training, momentum, eps = arguments[:8]
    if not training or not all(_path(one) for one in (mean, variance)):
        return None
    kind = nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d
    norm = kind(len(_get(model, mean)), eps, momentum, weight is not None)
    made = _with(model, norm, weight=weight, bias=bias, running_mean=mean, running_var=variance)
    return made[0], affine(norm) if weight is None else norm


CONV_DEFAULTS = (None, (1, 1), (0, 0), (1, 1), 1)
LAYERS: dict[str, Callable[[nn.Module, tuple[Any, ...], int], tuple[str, nn.Module] | None]] = {
    "linear": _linear,
    "conv2d": _conv,
    "batch_norm": _batch_norm,
}


def affine(norm: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """The same with γ = 1 and β = 0, which no optimiser moves: what rounds biases needs a place for them."""
    made = type(norm)(norm.num_features, norm.eps, norm.momentum).to(norm.running_mean)
    made.load_state_dict(norm.state_dict(), strict=False)
    return made.requires_grad_(False).train(norm.training)


def _with(model: nn.Module, layer: nn.Module, **tensors: Any) -> tuple[str, nn.Module]:
    """The layer, on the very tensors that these nodes read."""
    paths = {name: path for name, node in tensors.items() if (path := _path(node))}
    for name, path in paths.items():
        setattr(layer, name, operator.attrgetter(path)(model))
    first = next(iter(paths.values()))
    holder, _, last = first.rpartition(".")
    name = last.removesuffix("weight").removesuffix("running_mean").removesuffix("_")
    return ".".join(filter(None, (holder, name))) or "layer", layer


def _path(node: Any) -> str:
    """Of a tensor of the network, "" for what is computed."""
    return str(node.target) if isinstance(node, fx.Node) and node.op == "get_attr" else ""


def _get(model: nn.Module, node: Any) -> Tensor:
    found: Tensor = operator.attrgetter(_path(node))(model)
    return found


def _pair(value: Any) -> tuple[int, int]:
    first, *rest = value if isinstance(value, (tuple, list)) else (value,)
    return first, rest[0] if rest else first
