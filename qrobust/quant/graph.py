"""The graph of a network: captured by torch.export, made of the network's own modules, of functions and operators."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import operator
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_unflatten

from .. import progress
from ..errors import ModelError
from ..models.inference import in_eval_mode
from .forms import affine
from .reading import ACTIVATIONS, LAYERS, is_drop_path, keeps_grid
from .regraft import MARK, regraft

ORIGIN = "qrobust.origin"  # in the graph's `meta`: what `quantize` made it from, which makes it again
NAMES = "qrobust.names"  # there too: the network's name of each of its tensors
SIZES = (8, 16, 28, 32, 48, 64, 96, 128, 224, 299)  # of images that are made where none are given
BATCH = 4  # two at least: batch-norm trains on several values, and torch.export takes a batch of one for a constant
# What computes the same whatever the images' height and width, as long as no number among its arguments is one.
OF_ANY_SIZE = (torch.cat, torch.flatten, torch.mean, torch.transpose, torch.permute, operator.getitem)
Shape = tuple[int, ...]


class CapturedGraph(fx.GraphModule):
    """The graph of a network, which is pickled by what it was made from: Brevitas makes classes as it goes."""

    def __reduce__(self) -> Any:
        """What pickle asks for."""
        origin = self.meta.get(ORIGIN)
        return super().__reduce__() if origin is None else origin.reduce(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        """With what refuses images of another size, which torch.fx leaves out."""
        made = super().__deepcopy__(memo)
        for hook in self._forward_pre_hooks.values():
            made.register_forward_pre_hook(hook)
        return made


def capture(model: nn.Module, shape: Shape | None = None) -> CapturedGraph:
    """A copy of a network as a graph, each activation called once; in the mode of the original.

    shape: (c, h, w) of its images; None for any. What has the numbers of one size in it needs one, and refuses others.
    What train mode alone gives besides the logits (auxiliary heads) is left out; dropout, stochastic depth and
    batch-norm follow the mode. Raises ModelError, with the innermost module that torch.export cannot follow.
    """
    _check_layers(model)
    copied = copy.deepcopy(model)
    images = example_images(copied, shape)
    with _as_it_was(copied):
        found = _exported(copied, images).module()
    assert isinstance(found, fx.GraphModule)
    names = {id(tensor): name for name, tensor in _tensors(copied)}
    _tell_outputs(found)
    graph = _graph_module(copied, found)
    for name, module in list(graph.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and module.weight is None and module.running_mean is not None:
            graph.set_submodule(name, affine(module))
    _separate(graph)
    _hoist(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    graph.meta[NAMES] = {name: names[id(tensor)] for name, tensor in _tensors(graph) if id(tensor) in names}
    if not all(_takes_any_size(graph, node) for node in graph.graph.nodes):
        if shape is None:
            raise ModelError(
                "expected the size of the images of a network that has sizes in it, got none; "
                "pass calibration images, or shape=(c, h, w)"
            )
        graph.register_forward_pre_hook(OneSize(tuple(images.shape[1:])))
    return graph.train(model.training)


def _tell_outputs(exported: fx.GraphModule) -> None:
    """With -v, what a network gives besides its logits while it trains."""
    spec = exported.graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    paths, _ = tree_flatten_with_path(tree_unflatten(range(spec.num_leaves), spec))
    if spec.num_leaves > 1:
        left = ", ".join(keystr(path).strip(".") for path, _ in paths[1:])
        progress.detail(f"quantised without what training alone gives: {left}")


def _graph_module(model: nn.Module, exported: fx.GraphModule) -> CapturedGraph:
    """The network's own modules in the order of execution, and those that stand for functions behind them."""
    own = set(model._modules)
    nodes = regraft(model, exported)
    _drop_unread(nodes)
    graph = CapturedGraph(model, nodes)
    for name in [name for name in graph._modules if name not in own]:
        graph._modules[name] = graph._modules.pop(name)
    return graph


def _drop_unread(graph: fx.Graph) -> None:
    """What no logits depend on: nothing happens in place any more."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


class OneSize:
    """Refuses images of another size than a graph was captured for."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Before every pass."""
        if tuple(given[0].shape[1:]) != self.shape:
            raise ModelError(
                f"expected images (batch, {', '.join(map(str, self.shape))}), for which this network was captured, got "
                f"{tuple(given[0].shape)}; quantise it with images of that size"
            )


def example_images(model: nn.Module, shape: Shape | None) -> Tensor:
    """Random images of a size, or of the first that a network takes, on its device. Raises ModelError for none."""
    like = next(iter((*model.parameters(), *model.buffers())), torch.zeros(()))
    channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    shapes = [shape] if shape is not None else [(channels, size, size) for size in SIZES]
    error = ""
    for one in shapes:
        pixels = torch.rand(BATCH, *one, generator=torch.Generator().manual_seed(0))
        images = pixels.to(like.device, like.dtype if like.is_floating_point() else None)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), in_eval_mode(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                logits = model(images)
        except ModelError:
            raise
        except Exception as reason:  # whatever a network raises on images that it does not take
            error = error or _first_line(reason).split(" - got (")[0]
        else:
            _check_logits(logits)
            return images
    expected = "images that a network takes" if shape is None else f"a network that takes images {(BATCH, *shapes[0])}"
    raise ModelError(f"expected {expected}, got: {error}; pass calibration images of its own size")


def _check_layers(model: nn.Module) -> None:
    for path, module in model.named_modules():
        if isinstance(module, LAYERS) and parametrize.is_parametrized(module):
            raise ModelError(
                f"{path}: expected a plain weight, got a parametrised one; "
                "call quant.fold_fat for FAT, torch.nn.utils.parametrize.remove_parametrizations for others"
            )
    given = inspect.signature(model.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    inputs = [one for one in given if one.kind in kinds and one.default is inspect.Parameter.empty]
    if len(inputs) > 1:
        raise _ends(len(inputs), "1")


def _check_logits(logits: object) -> None:
    if not isinstance(logits, Tensor):
        raise _ends(1, type(logits).__name__)


def _ends(inputs: int, outputs: str) -> ModelError:
    return ModelError(
        f"expected a network of one input, images, and one output, logits, got {inputs} and {outputs}; "
        "wrap it in a module that gives its logits"
    )


@torch.enable_grad()  # so that what cannot be trained is seen
def _exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """What torch.export makes of a network in train mode, where dropout is seen.

    In eval mode where it cannot train on such images, as with auxiliary heads that want larger ones.
    """
    try:
        return _of_one_batch(model.train(), images) or exported(model, images)
    except Exception:  # torch.export raises many kinds
        model.eval()
    try:
        return exported(model, images)
    except Exception as error:  # all mean that control flow depends on data
        where = failed_in(error, model) or type(model).__name__
        raise ModelError(
            f"{where}: expected a network that torch.export can capture, got {_first_line(error)}; "
            "make its forward static"
        ) from error


def _of_one_batch(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram | None:
    """The same traced for one batch, which is cheaper, if its number is in no operator; else None."""
    program = exported(model, images.new_zeros(MARK, *images.shape[1:]), any_batch=False)
    arguments = [(node.args, node.kwargs) for node in program.graph.nodes if node.op == "call_function"]
    numbers = (one for one in tree_leaves(arguments) if isinstance(one, int))
    return None if any(one and one % MARK == 0 for one in numbers) else program


def exported(model: nn.Module, images: Tensor, *, any_batch: bool = True) -> torch.export.ExportedProgram:
    """A network in the mode it is in as a graph of ATen operators; raises what torch does.

    images: two or more, of the size that is meant. any_batch: for any number of them.
    """
    sizes = ({0: torch.export.Dim.DYNAMIC},) if any_batch else None
    with _silently(), _without_sources(), torch.random.fork_rng(devices=[]):
        return torch.export.export(model, (images,), dynamic_shapes=sizes, strict=False)


@contextmanager
def _silently() -> Iterator[None]:
    """Torch warns, logs and prints the graph that it cannot export; the error is enough."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def _without_sources() -> Iterator[None]:
    """Torch notes of each operator which lines called it: a quarter of its time, for what is not read here."""
    config: Any = fx.config  # an older torch notes them whatever stands there
    before, config.do_not_emit_stack_traces = getattr(config, "do_not_emit_stack_traces", False), True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def failed_in(error: BaseException, model: nn.Module) -> str:
    """Path of the innermost module of a network that was running when an error was raised; "" for itself or none."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Leaves buffers as found: a trace in train mode counts a batch."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    yield
    for buffer, before in buffers:
        buffer.copy_(before)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _takes_any_size(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node has no number in it that may be a height or a width."""
    if node.op == "call_module":
        module = graph.get_submodule(str(node.target))
        return is_drop_path(module) or not any(True for _ in module.children())
    if node.op != "call_function":
        return True
    if node.target is torch.reshape:
        sizes = node.args[1]
        return isinstance(sizes, (tuple, list)) and all(isinstance(one, fx.Node) or one == -1 for one in sizes)
    if node.target is torch.ops.aten.sym_size.int:
        return bool(node.args[1] == 0)
    numbers = any(isinstance(one, (int, float)) for one in node.args)
    return node.target in OF_ANY_SIZE or (node.target in (torch.add, torch.mul) and not numbers)


def unused_name(graph: fx.GraphModule, name: str) -> str:
    """`name`, with underscores behind it until no module has it."""
    taken = dict(graph.named_modules())
    while name in taken:
        name += "_"
    return name


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


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
            node.meta = {**node.meta, "shape": source.meta["shape"]}


def _commutes(activation: nn.Module, before: fx.Node, modules: dict[str, nn.Module]) -> bool:
    module = modules.get(str(before.target)) if before.op == "call_module" else None
    if module is None or not keeps_grid(before, module) or len(before.users) > 1:
        return False
    scales = isinstance(module, (nn.Dropout, nn.Dropout2d)) or is_drop_path(module)
    return isinstance(activation, nn.ReLU) or not scales
