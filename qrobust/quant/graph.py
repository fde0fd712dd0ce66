"""The graph of a network: one form for every operation, a module's name where it has none."""

from __future__ import annotations

import copy
import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..errors import ModelError
from .reading import ACTIVATIONS, LAYERS, Targets, is_size, is_stochastic_depth, keeps_grid

# Targets, the module, and the names that the arguments after the input have for it; "" is left out.
MODULES: tuple[tuple[Targets, Callable[..., nn.Module], tuple[str, ...]], ...] = (
    ((F.relu, F.relu_, torch.relu, torch.relu_), nn.ReLU, ()),
    ((F.relu6,), nn.ReLU6, ()),
    ((F.hardtanh, F.hardtanh_), nn.Hardtanh, ("min_val", "max_val")),
    ((F.silu,), nn.SiLU, ()),
    ((F.sigmoid, torch.sigmoid, torch.sigmoid_), nn.Sigmoid, ()),
    ((F.hardswish,), nn.Hardswish, ()),
    ((F.hardsigmoid,), nn.Hardsigmoid, ()),
    ((F.leaky_relu, F.leaky_relu_), nn.LeakyReLU, ("negative_slope",)),
    ((F.gelu,), nn.GELU, ("approximate",)),
    ((F.elu, F.elu_), nn.ELU, ("alpha",)),
    ((F.tanh, torch.tanh), nn.Tanh, ()),
    ((F.adaptive_avg_pool2d,), nn.AdaptiveAvgPool2d, ("output_size",)),
    (
        (F.avg_pool2d,),
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    (
        (F.max_pool2d, torch.max_pool2d),
        nn.MaxPool2d,
        ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    ),
    ((F.dropout, torch.dropout), nn.Dropout, ("p", "training", "inplace")),
    ((F.dropout2d,), nn.Dropout2d, ("p", "training", "inplace")),
)
NO_SETTING = ("training", "inplace")  # modules follow the mode; nothing happens in place, as values are shared
FUNCTIONS: dict[Any, Callable[..., Any]] = {  # the same arguments
    "add": torch.add, "add_": torch.add, operator.iadd: operator.add,
    "sub": torch.sub, "sub_": torch.sub, operator.isub: operator.sub,
    "mul": torch.mul, "mul_": torch.mul, operator.imul: operator.mul,
    "div": torch.div, "div_": torch.div, operator.itruediv: operator.truediv,
    "relu": torch.relu, "relu_": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "mean": torch.mean,
    "flatten": torch.flatten, "transpose": torch.transpose, "squeeze": torch.squeeze,
    "unsqueeze": torch.unsqueeze, "chunk": torch.chunk, "split": torch.split,
}  # fmt: skip
IN_PLACE: Targets = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
    operator.iand, operator.ior, operator.ixor, operator.imatmul,
)  # fmt: skip
# Of several numbers or one tuple. A view of a channels-last tensor may not exist: reshape copies it then.
OF_SHAPES: dict[Any, Callable[..., Any]] = {
    "view": torch.reshape,
    "reshape": torch.reshape,
    "permute": torch.permute,
}


def without_in_place(graph: fx.GraphModule) -> None:
    """What reads a value after it was changed in place reads the node that changed it; nothing happens in place then.

    Not through views, whose other side changes too: `check_capture` refuses what is lost there.
    """
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    sizes = set[fx.Node]()  # numbers: n += 1 leaves what else has that number
    for node in graph.graph.nodes:
        inputs = node.all_input_nodes
        if is_size(node) or (inputs and all(source in sizes for source in inputs)):
            sizes.add(node)
        elif inputs and _is_in_place(graph, node):
            _read_instead(node, inputs[0], order)
        elif isinstance(written := node.kwargs.get("out"), fx.Node):
            _read_instead(node, written, order)
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "out"}


def _read_instead(node: fx.Node, changed: fx.Node, order: dict[fx.Node, int]) -> None:
    changed.replace_all_uses_with(node, lambda user: order[user] > order[node])


def _is_in_place(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return _is_trailing(str(node.target))
    if node.op != "call_function":
        return False
    return node.target in IN_PLACE or _is_trailing(getattr(node.target, "__name__", "")) or _asks_in_place(node)


def _is_trailing(name: str) -> bool:
    """As torch names what it does in place."""
    return name.endswith("_") and not name.endswith("__")


def _asks_in_place(node: fx.Node) -> bool:
    try:
        given = inspect.signature(node.target).bind_partial(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin, which has no such argument
        return False
    return given.arguments.get("inplace") is True


def simplify(graph: fx.GraphModule) -> None:
    """Put functions and methods into the form of modules and functions, in place; drop what does nothing."""
    for module in graph.modules():
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False
    for name, module in list(graph.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and module.weight is None and module.running_mean is not None:
            graph.set_submodule(name, _affine(module))
    for node in list(graph.graph.nodes):
        if node.op in ("call_function", "call_method"):
            _as_function(node)
        if isinstance(shuffle := _called(graph, node), nn.ChannelShuffle):
            _spell_out(graph, node, shuffle)
            continue
        modules = tuple(_modules(graph, node))
        if modules:
            _replace(graph, node, modules)


def _as_function(node: fx.Node) -> None:
    if node.target in FUNCTIONS:
        node.op, node.target = "call_function", FUNCTIONS[node.target]
    elif node.target in OF_SHAPES and not node.kwargs:
        first, *shape = node.args
        whole = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else tuple(shape)
        node.op, node.target, node.args = "call_function", OF_SHAPES[node.target], (first, whole)


def _called(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def _affine(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """The same with γ = 1 and β = 0, which no optimiser moves: what rounds biases needs a place for them."""
    made = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum).to(norm.running_mean)
    made.load_state_dict(norm.state_dict(), strict=False)
    return made.requires_grad_(False).train(norm.training)


def _spell_out(graph: fx.GraphModule, node: fx.Node, shuffle: nn.ChannelShuffle) -> None:
    """Channels as (groups, each), turned: the module is none that torch exports."""
    with graph.graph.inserting_before(node):
        groups = graph.graph.call_function(torch.unflatten, (node.args[0], 1, (shuffle.groups, -1)))
        turned = graph.graph.call_function(torch.transpose, (groups, 1, 2))
        node.replace_all_uses_with(graph.graph.call_function(torch.flatten, (turned, 1, 2)))
    graph.graph.erase_node(node)


def _modules(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, ...]:
    """What stands for a node: none if it is to stay, an identity if it does nothing."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return (nn.Identity(),) if is_stochastic_depth(module) and module.p == 0 else ()
    if node.op == "call_method":
        return (nn.Identity(),) if node.target == "contiguous" else ()
    if node.op != "call_function":
        return ()
    if node.target is torch.mean:
        return _mean(node)
    if node.target is F.batch_norm:
        return _batch_norm(graph, node)
    if getattr(node.target, "__name__", "") == "stochastic_depth":
        return (_as_stochastic_depth(node),)
    for targets, module_class, names in MODULES:
        if node.target in targets:
            settings = _settings(node, names)
            return () if _is_dynamic(settings) else (module_class(**settings),)
    return ()


def _batch_norm(graph: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, ...]:
    """The module for what a subclass of batch-norm calls, as timm's, which has its activation inside."""
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    places = {name: str(one.target) for name in names[:4] if isinstance(one := given.get(name), fx.Node)}
    if not {"running_mean", "running_var"} <= places.keys():
        return ()
    tensors = {name: operator.attrgetter(place)(graph) for name, place in places.items()}
    mean = tensors["running_mean"]
    made = nn.BatchNorm2d(len(mean), given.get("eps", 1e-5), given.get("momentum", 0.1), "weight" in tensors).to(mean)
    for name, value in tensors.items():  # the same ones
        setattr(made, name, value)
    return (made if "weight" in tensors else _affine(made),)


def _settings(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return {name: value for name, value in given.items() if name not in (*NO_SETTING, "input")}


def _is_dynamic(settings: dict[str, Any]) -> bool:
    return any(isinstance(value, fx.Node) for value in settings.values())


def _mean(node: fx.Node) -> tuple[nn.Module, ...]:
    """Pooling for a mean over height and width; others stay as they are."""
    settings = _settings(node, ("dim", "keepdim"))
    dims = settings.get("dim")
    if settings.keys() - {"dim", "keepdim"} or not isinstance(dims, (tuple, list)) or len(dims) != 2:
        return ()
    if _is_dynamic(settings) or {dim % 4 for dim in dims} != {2, 3}:
        return ()
    pool = nn.AdaptiveAvgPool2d(1)
    return (pool,) if settings.get("keepdim", False) else (pool, nn.Flatten())


def _as_stochastic_depth(node: fx.Node) -> nn.Module:
    settings = _settings(node, ("p", "mode"))
    if settings["p"] == 0:
        return nn.Identity()
    from ..torchvision_cpu import import_torchvision  # loaded already: the function is from there

    module: nn.Module = import_torchvision().ops.StochasticDepth(**settings)
    return module


def _replace(graph: fx.GraphModule, node: fx.Node, modules: tuple[nn.Module, ...]) -> None:
    source, name = node.all_input_nodes[0], node.name
    with graph.graph.inserting_before(node):
        for module in modules:
            if isinstance(module, nn.Identity):
                continue
            path = unused_name(graph, name)
            graph.add_submodule(path, module)
            source = graph.graph.call_module(path, (source,))
    node.replace_all_uses_with(source)
    graph.graph.erase_node(node)


def unused_name(graph: fx.GraphModule, name: str) -> str:
    """`name`, with underscores behind it until no module has it."""
    taken = dict(graph.named_modules())
    while name in taken:
        name += "_"
    return name


ORIGIN = "qrobust.origin"  # in the graph's `meta`: what `quantize` made it from, which makes it again


class CapturedGraph(fx.GraphModule):
    """The graph of a network, which is pickled by what it was made from: Brevitas makes classes as it goes."""

    def __reduce__(self) -> Any:
        """What pickle asks for."""
        origin = self.meta.get(ORIGIN)
        return super().__reduce__() if origin is None else origin.reduce(self)


def trace(model: nn.Module) -> fx.GraphModule:
    """A copy of a network as a graph of modules, each activation called once; in the mode of the original.

    The graph is that of eval mode: what training alone computes (auxiliary heads) is left out. Dropout and
    stochastic depth stay, as modules that follow the mode. Raises ModelError, with the innermost module that
    torch.fx could not trace.
    """
    copied = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        graph = CapturedGraph(copied, tracer.trace(copied))
    except Exception as error:  # torch.fx raises many kinds; all mean that control flow depends on data
        raise ModelError(
            f"{tracer.failed or type(model).__name__}: expected a network that torch.fx can trace, got "
            f"{_first_line(error)}; make its forward static"
        ) from error
    without_in_place(graph)
    simplify(graph)
    _separate(graph)
    _hoist(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph.train(model.training)


class _Tracer(fx.Tracer):
    """Remembers in which module tracing failed; stochastic depth stays one call, so that it follows the mode."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=_stochastic_depth())
        self.failed = ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call in the graph."""
        return is_stochastic_depth(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """As torch.fx's; an error names the innermost module, which it leaves first."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def _stochastic_depth() -> tuple[Callable[..., Any], ...]:
    """torchvision's function, if anything has loaded it."""
    module = sys.modules.get("torchvision.ops.stochastic_depth")
    return (module.stochastic_depth,) if module is not None else ()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _separate(graph: fx.GraphModule) -> None:
    """Every further call of one activation gets a copy, and so a clip of its own."""
    calls: Counter[str] = Counter()
    for node in graph.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        module = graph.get_submodule(target)
        calls[target] += 1
        if calls[target] > 1 and isinstance(module, LAYERS):
            raise ModelError(f"expected layers called once, got {target} twice; give every call its own layer")
        if calls[target] > 1 and isinstance(module, ACTIVATIONS):
            node.target = unused_name(graph, f"{target}_{calls[target]}")
            graph.add_submodule(node.target, copy.deepcopy(module))


def _hoist(graph: fx.GraphModule) -> None:
    """Activations move before max-pooling and dropout, with which they commute.

    A runtime makes an integer layer of one whose output is quantised at once, with nothing between.
    """
    modules = dict(graph.named_modules())
    for node in list(graph.graph.nodes):
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        while isinstance(module, ACTIVATIONS) and _commutes(module, node.all_input_nodes[0], modules):
            before = node.all_input_nodes[0]
            source = before.all_input_nodes[0]
            node.replace_all_uses_with(before)
            node.replace_input_with(before, source)
            before.replace_input_with(source, node)
            before.prepend(node)


def _commutes(activation: nn.Module, before: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = modules.get(str(before.target)) if before.op == "call_module" else None
    if module is None or not keeps_grid(before, module) or len(before.users) > 1:
        return False
    scales = isinstance(module, (nn.Dropout, nn.Dropout2d)) or is_stochastic_depth(module)
    return isinstance(activation, nn.ReLU) or not scales
