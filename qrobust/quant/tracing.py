"""The graph of a network, with a module's name where it has none."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from ..errors import ModelError
from .forms import simplify, unused_name, without_in_place
from .rules import ACTIVATIONS, LAYERS, is_stochastic_depth, keeps_grid


class CapturedGraph(fx.GraphModule):
    """The graph of a network, of which a state can be saved, but not the object: Brevitas makes classes as it goes."""

    def __reduce__(self) -> tuple[Any, ...]:
        """What pickle asks for. Raises ModelError, with the way that works."""
        raise ModelError(
            "expected the state of a quantised network to save, got the object, which cannot be pickled; save "
            "net.state_dict(), and load it into quantize(..., calibration=None) with the same arguments"
        )


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
