"""From torch.export's graph, made of ATen operators, back to one of modules that trains and follows the mode.

What torch.export gives of a network in train mode cannot be switched to eval mode, and has dropout and batch-norm as
functions. So the calls of the network's own modules (convolutions, norms, activations, pools, dropout) are put back,
and functions that do what a module does become one; what is left are functions of torch and ATen operators.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from ..distributed import SharedBatchNorm
from .forms import DROPOUTS, FUNCTIONS, UNCHANGED, Attention, module_for, pooling, weighted
from .reading import is_drop_path, is_random

NORMS = (SharedBatchNorm, nn.SyncBatchNorm)  # one call, as `torch.nn`'s
SCATTERS = {"slice": torch.ops.aten.slice_scatter.default, "select": torch.ops.aten.select_scatter.default}
VIEWS = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
ATTENTION = "scaled_dot_product_attention"
MARK = 11  # a batch by which what hangs on it is told from other sizes: few are multiples
DROPS = 4  # place of its dropout among the arguments


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one call of the graph: torch's own without children, and what drops paths."""
    if is_drop_path(module) or type(module) in NORMS:
        return True
    own = type(module).__module__.startswith("torch.nn.modules.")
    return own and not any(True for _ in module.children()) and not isinstance(module, nn.ChannelShuffle)


def regraft(model: nn.Module, exported: fx.GraphModule) -> fx.Graph:
    """A graph over `model`, whose modules it calls; modules that stand for functions are added to `model`.

    exported: what torch.export made of `model` in train mode. Each node has in `meta` "where", the path of the module
    that it is computed in, and "shape", its sizes: None for the batch, -1 for what hangs on it (None for no tensor).
    Of several outputs the first stays, and nothing happens in place: what reads a value after it was changed reads the
    node that changed it.
    """
    return _Regraft(model, exported).run()


@dataclass
class _Call:
    """The nodes of one call of a module."""

    path: str
    nodes: list[fx.Node] = field(default_factory=list)

    def inputs(self) -> list[fx.Node]:
        """Activations from outside."""
        inside = set(self.nodes)
        found = dict.fromkeys(source for node in self.nodes for source in node.all_input_nodes)
        return [node for node in found if node not in inside and node.op != "get_attr" and _shape(node) is not None]

    def results(self) -> list[fx.Node]:
        """What others read."""
        inside = set(self.nodes)
        return [node for node in self.nodes if any(user not in inside for user in node.users)]

    def is_plain(self) -> bool:
        return len(self.inputs()) == len(self.results()) == 1


class _Regraft:
    """now: what stands for an exported node, a node of the new graph, or its value where no image decides it."""

    def __init__(self, model: nn.Module, exported: fx.GraphModule) -> None:
        self.model, self.exported = model, exported
        self.graph = fx.Graph()
        self.now: dict[fx.Node, Any] = {}
        self.called: set[str] = set()
        images = next(node for node in exported.graph.nodes if node.op == "placeholder")
        self.marked = images.meta["val"].shape[0] == MARK

    def run(self) -> fx.Graph:
        """The graph, each leaf module one call of it."""
        nodes = list(self.exported.graph.nodes)
        calls = self._calls(nodes)
        for node in nodes:
            call = calls.get(node)
            if call is None:
                self._visit(node)
            elif node is call.nodes[0]:
                self._call(call)
        return self.graph

    def _calls(self, nodes: list[fx.Node]) -> dict[fx.Node, _Call]:
        """The call of a leaf module that each node is part of, if that has one input and one output."""
        calls: dict[str, _Call] = {}
        for node in nodes:
            if node.op == "call_function" and (found := self._leaf(node)) is not None:
                key, path = found
                calls.setdefault(key, _Call(path)).nodes.append(node)
        return {node: call for call in calls.values() if call.is_plain() for node in call.nodes}

    def _leaf(self, node: fx.Node) -> tuple[str, str] | None:
        """Key of the call and path of the outermost leaf module that a node is computed in."""
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            module = _module(self.model, path := path.split("@")[0])
            if module is not None and module is not self.model and is_leaf(module):
                return key, path
        return None

    def _call(self, call: _Call) -> None:
        (source,), (result,) = call.inputs(), call.results()
        given, module = self._argument(source), self.model.get_submodule(call.path)
        self.called.add(call.path)
        made = self.now[result] = self._described(self.graph.call_module(call.path, (given,)), result, call.path)
        if any(_changes(node) is source for node in call.nodes):
            self.now[source] = made
        if hasattr(module, "inplace"):
            vars(module)["inplace"] = False

    def _visit(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder":
                self.now[node] = self._described(self.graph.placeholder(str(node.target)), node, "")
            case "get_attr":
                self.now[node] = self._attribute(node)
            case "call_function":
                self._function(node)
            case "output":
                self.graph.output(self._argument(_first(node.args[0])))

    def _attribute(self, node: fx.Node) -> Any:
        """A tensor of the network by its path; what torch.export made by its value."""
        path = str(node.target)
        try:
            operator.attrgetter(path)(self.model)
        except AttributeError:
            return operator.attrgetter(path)(self.exported)
        return self._described(self.graph.get_attr(path), node, path.rpartition(".")[0])

    def _function(self, node: fx.Node) -> None:
        if not is_random(node) and not any(isinstance(self.now[one], fx.Node) for one in _decides(node)):
            with torch.no_grad():
                self.now[node] = node.target(*self._values(node.args), **self._values(node.kwargs))  # type: ignore[operator]
            return
        if self._shape(node) is None and not node.users:  # it asserts something
            return
        args, kwargs = self._argument(node.args), self._argument(node.kwargs)
        made = self.now[node] = self._made(node, args, kwargs)
        changed = _changes(node)
        if changed is not None:
            self._change(changed, made)

    def _change(self, node: fx.Node, made: fx.Node) -> None:
        """Let whoever reads a node from now on read `made`; what it is a part or a view of changes with it."""
        self.now[node] = made
        name, base = operator_name(node), node.args[0] if node.args else None
        if not isinstance(base, fx.Node) or not isinstance(self.now.get(base), fx.Node):
            return
        if name in SCATTERS:
            whole = self.graph.call_function(SCATTERS[name], (self.now[base], made, *self._argument(node.args[1:])))
        elif name in VIEWS:
            sizes = tuple(-1 if size is None else size for size in self._shape(base) or ())
            whole = self.graph.call_function(torch.reshape, (made, sizes))
        else:
            return
        self._change(base, self._described(whole, base, _where(node)))

    def _values(self, arguments: Any) -> Any:
        """Numbers and tensors for nodes; an empty tensor for one of which type and device alone are asked."""

        def value(one: Any) -> Any:
            if not isinstance(one, fx.Node):
                return one
            now = self.now[one]
            if not isinstance(now, fx.Node):
                return now
            kind: Tensor = one.meta["val"]
            return torch.empty(0, dtype=kind.dtype, device=kind.device)

        return tree_map(value, arguments)

    def _argument(self, arguments: Any) -> Any:
        """Nodes as they are now; tensors that no image decides as buffers, which a state leaves out."""
        return fx.node.map_aggregate(arguments, lambda one: self._known(one) if isinstance(one, fx.Node) else one)

    def _known(self, node: fx.Node) -> Any:
        value = self.now[node]
        if isinstance(value, Tensor):
            name = self._unused(f"{node.name}_constant")
            self.model.register_buffer(name, value.detach(), persistent=False)
            value = self.now[node] = self._described(self.graph.get_attr(name), node, "")
        return value

    def _made(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """What does in the new graph what an exported node does."""
        name, source = operator_name(node), args[0] if args else None
        if (name in UNCHANGED and _is_unchanged(node)) or (name in DROPOUTS and not args[2]):
            assert isinstance(source, fx.Node)
            return source
        if name == ATTENTION and len(args) > DROPS and args[DROPS]:
            settings = {**dict(zip(("is_causal",), args[DROPS + 1 :], strict=False)), **kwargs}
            return self._module(node, name, Attention(args[DROPS]), args[:DROPS], settings)
        found = weighted(self.model, name, args, len(self._shape(node) or ()))
        if found is not None:
            return self._layer(node, *found, args)
        if name == "mean" and (pools := pooling(len(self._shape(node.all_input_nodes[0]) or ()), args)):
            for pool in pools:
                source = self._module(node, name, pool, (source,))
            assert isinstance(source, fx.Node)
            return source
        if name == "channel_shuffle":
            return self._shuffled(node, *args)
        module = module_for(name, args, kwargs)
        if module is not None:
            return self._module(node, name, module, (source,))
        made = self.graph.create_node("call_function", _target(node, name), args, kwargs, name=name)
        return self._described(made, node, _where(node))

    def _layer(self, node: fx.Node, holder: str, layer: nn.Module, args: tuple[Any, ...]) -> fx.Node:
        """A layer under its holder's path, or inside where others read what is there; a computed bias comes behind."""
        held, name = _module(self.model, holder), operator_name(node)
        bias = args[2] if len(args) > 2 else None
        computed = name != "batch_norm" and isinstance(bias, fx.Node) and bias.op != "get_attr"
        inside = computed or (held is not None and (holder in self.called or any(True for _ in held.children())))
        path = f"{holder}.{name}" if inside else holder
        if computed:
            layer.register_parameter("bias", None)
        self.called.add(path)
        self.model.set_submodule(path, layer)
        made = self._described(self.graph.call_module(path, (args[0],)), node, path)
        if not computed:
            return made
        shaped = bias if name == "linear" else self.graph.call_function(torch.reshape, (bias, (-1, 1, 1)))
        return self._described(self.graph.call_function(torch.add, (made, shaped)), node, _where(node))

    def _module(
        self, node: fx.Node, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        path = self._unused(name)
        self.model.add_module(path, module)
        return self._described(self.graph.call_module(path, args, kwargs), node, path)

    def _shuffled(self, node: fx.Node, source: fx.Node, groups: int) -> fx.Node:
        """Channels as (groups, each), turned."""
        shape = (None, *(self._shape(node) or ())[1:])
        parted = self.graph.call_function(torch.unflatten, (source, 1, (groups, -1)))
        turned = self.graph.call_function(torch.transpose, (parted, 1, 2))
        parted.meta = {"where": _where(node), "shape": (None, groups, (shape[1] or 0) // groups, *shape[2:])}
        turned.meta = {"where": _where(node), "shape": (None, (shape[1] or 0) // groups, groups, *shape[2:])}
        return self._described(self.graph.call_function(torch.flatten, (turned, 1, 2)), node, _where(node))

    def _shape(self, node: fx.Node) -> tuple[int | None, ...] | None:
        return _shape(node, self.marked)

    def _described(self, made: fx.Node, node: fx.Node, where: str) -> fx.Node:
        made.meta = {"where": where, "shape": self._shape(node)}
        return made

    def _unused(self, name: str) -> str:
        """As torch.fx names modules that are put in: by their node."""
        free, count = name, 0
        while hasattr(self.model, free):
            count += 1
            free = f"{name}_{count}"
        return free


def operator_name(node: fx.Node) -> str:
    """ATen's name of an operator, "" for what is none: without the underscore of work in place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return str(getattr(target, "__name__", target))
    name = target._opname
    return name.removesuffix("_") if target._schema.is_mutable else name


def _target(node: fx.Node, name: str) -> Any:
    """A function of torch, or the operator that does the same not in place."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):  # arithmetic of sizes is Python's
        return target
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    if target._schema.is_mutable:
        packet = getattr(torch.ops.aten, name)
        overload = target._overloadname
        return getattr(packet, overload if overload in packet.overloads() else packet.overloads()[-1])
    return target


def _decides(node: fx.Node) -> list[fx.Node]:
    """What an operator's result depends on: not on the values of what it takes a type from, as `x.new_zeros(4, 4)`."""
    made_like = operator_name(node).startswith("new_")
    return [one for one in node.all_input_nodes if not (made_like and one is node.args[0])]


def _changes(node: fx.Node) -> fx.Node | None:
    """The node whose value an operator changes."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    given = dict(zip((argument.name for argument in target._schema.arguments), node.args, strict=False)) | node.kwargs
    for argument in target._schema.arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            changed = given.get(argument.name)
            return changed if isinstance(changed, fx.Node) else None
    return None


def _is_unchanged(node: fx.Node) -> bool:
    source, made = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    if not isinstance(source, Tensor) or not isinstance(made, Tensor) or source.dtype != made.dtype:
        return False
    return source.device == made.device and tuple(source.shape) == tuple(made.shape)


def _shape(node: fx.Node, marked: bool = False) -> tuple[int | None, ...] | None:
    """Sizes of a tensor, as `meta` has them. marked: of a graph that was traced for a batch of `MARK`."""
    value = node.meta.get("val", node.meta.get("example_value"))
    if not isinstance(value, Tensor):
        return None
    sizes = tuple(size if isinstance(size, int) else None if is_symbol(size) else -1 for size in value.shape)
    first = sizes[0] if sizes and marked else None
    if not first or first % MARK:
        return sizes
    return (None if first == MARK else -1, *sizes[1:])


def is_symbol(size: Any) -> bool:
    """Whether a size is the batch itself: not a multiple of it, as where tokens of all images stand in rows."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.is_Symbol)


def _where(node: fx.Node) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]).split("@")[0] if stack else ""


def _first(output: Any) -> Any:
    while isinstance(output, (tuple, list)):
        output = output[0]
    return output


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
