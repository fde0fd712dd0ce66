"""A network in inference: in eval state, batch-norm folded into convolutions, weights computed once.

In eval mode batch-norm is an affine map with constants, so it can be folded into the weights before it. On a CPU
that saves a fifth of an attack step on a ResNet-20; logits move by rounding alone.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from ..distributed import SharedBatchNorm

NORMS = (nn.BatchNorm2d, SharedBatchNorm, nn.SyncBatchNorm)  # the same in eval mode
Pair = tuple[str, str]  # names of a convolution and of the batch-norm that alone reads it


@runtime_checkable
class Computing(Protocol):
    """A layer that computes something from parameters alone, such as a quantised weight, and uses `computed` for it
    wherever that is not None.
    """

    computed: Any

    def compute(self) -> Any:
        """A fresh one; of a convolution or a linear layer its weight and bias."""
        ...


@contextmanager
def computed_once(model: nn.Module, kind: type | tuple[type, ...] = nn.Module) -> Iterator[None]:
    """Inside, every `Computing` layer of a kind computes once, now. Where gradients are asked for, that of a weight
    passes last, when activations that were kept for theirs are gone. What an outer one computed without gradients
    stays: a batch-norm may have been folded into it.
    """
    found = [module for module in model.modules() if isinstance(module, kind) and isinstance(module, Computing)]
    layers = [layer for layer in found if not _is_constant(layer.computed)]
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(setattr, layer, "computed", layer.computed)
            layer.computed = None
            layer.computed = layer.compute()
        yield


def _is_constant(computed: Any) -> bool:
    parts = computed if isinstance(computed, tuple) else (computed,)
    return computed is not None and not any(getattr(part, "requires_grad", False) for part in parts)


@contextmanager
def frozen(model: nn.Module, *, training: bool = False, fold: bool = True) -> Iterator[None]:
    """Inside: eval mode (or train mode), no gradients for parameters, each weight computed once.

    Gradients pass to images even where the caller switched them off (`no_grad`, `inference_mode`): an attack without
    them would find nothing, and look like robustness. Images from inference mode must be copied: see `ordinary`.
    fold: in eval mode, batch-norms are folded into the convolutions before them, which moves logits by rounding.
    Leaves every module's mode and every parameter's `requires_grad` as found, also after an error.
    """
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        _replace_inference(stack, model)
        stack.callback(_restore, modes)
        for parameter in [parameter for parameter in model.parameters() if parameter.requires_grad]:
            parameter.requires_grad_(False)
            stack.callback(parameter.requires_grad_, True)
        model.train(training)
        stack.enter_context(computed_once(model))
        if fold and not training:
            stack.enter_context(folded(model))
        stack.enter_context(parametrize.cached())  # of others than `Computing` ones
        yield


class PassOn(nn.Identity):
    """Stands for a batch-norm that is folded."""


@contextmanager
def folded(model: nn.Module) -> Iterator[None]:
    """Inside, batch-norms pass their input on and the convolutions before them do their work.

    A network in train mode, that torch.fx cannot trace, or that has no such pair, stays as it is; so does a
    pair in which somebody listens (forward hooks) or has changed what a layer does. The network is traced each time
    (3 ms for a resnet8): which pairs it has may hang on attributes and buffers that change.
    """
    with ExitStack() as stack:
        pairs = list(_found(model))
        for conv, norm in pairs:
            _set_weight(stack, conv, *_fold(conv, norm))
            _neutralise(stack, norm)
        _pass_by(stack, model, [norm for _, norm in pairs])
        yield


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    weight, bias = conv.compute() if isinstance(conv, Computing) else (conv.weight, conv.bias)
    factor, offset = norm_factor(norm, bias)
    return weight * factor[:, None, None, None], -offset if norm.bias is None else norm.bias - offset


def norm_factor(norm: _BatchNorm, bias: Tensor | None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """γ/σ, which a batch-norm multiplies the weight before it by, and (μ - b)·γ/σ, which it subtracts then, besides
    adding its β; each (channels,), computed in `dtype` if given.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = (norm.running_var.to(dtype) + norm.eps).sqrt()
    factor = 1 / deviation if norm.weight is None else norm.weight.to(dtype) / deviation
    mean = norm.running_mean.to(dtype)
    return factor, (mean if bias is None else mean - bias.to(dtype)) * factor


def _set_weight(stack: ExitStack, conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    """Weight and bias of a convolution, until the stack is left."""
    if isinstance(conv, Computing):
        stack.callback(setattr, conv, "computed", conv.computed)
        conv.computed = weight, bias
        return
    for name, value in (("weight", weight), ("bias", bias)):
        _replace(stack, conv._parameters, name, value)


def _neutralise(stack: ExitStack, norm: _BatchNorm) -> None:
    """The identity, for whoever calls a norm by another way than its parents."""
    assert norm.running_mean is not None
    mean = torch.zeros_like(norm.running_mean)
    for table, name, value in (
        (norm._parameters, "weight", None),
        (norm._parameters, "bias", None),
        (norm._buffers, "running_mean", mean),
        (norm._buffers, "running_var", mean + 1),
        (vars(norm), "eps", 0.0),
    ):
        _replace(stack, table, name, value)


def _pass_by(stack: ExitStack, model: nn.Module, norms: Iterable[_BatchNorm]) -> None:
    """What passes its input on stands for each of these modules wherever a parent holds it."""
    stand_ins: dict[nn.Module | None, nn.Module] = {norm: PassOn().eval() for norm in norms}
    for parent in list(model.modules()):
        for name in [name for name, child in parent._modules.items() if child in stand_ins]:
            _replace(stack, parent._modules, name, stand_ins[parent._modules[name]])


def _replace(stack: ExitStack, table: dict[str, Any], name: str, value: object) -> None:
    stack.callback(table.__setitem__, name, table[name])
    table[name] = value


def _found(model: nn.Module) -> Iterator[tuple[nn.Conv2d, _BatchNorm]]:
    if model.training:  # there the graph may be another
        return
    for names in _pairs(model):
        conv, norm = (model.get_submodule(name) for name in names)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, NORMS) and _can_fold(conv, norm):
            yield conv, norm


class _Tracer(fx.Tracer):
    """Looks only into what holds a batch-norm and has no hooks: these, quantisers and parametrised layers are never
    handed a proxy.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one call in the graph."""
        holds = any(isinstance(child, NORMS) for child in m.modules() if child is not m)
        return not holds or _has_hooks(m) or super().is_leaf_module(m, module_qualified_name)


def _pairs(model: nn.Module) -> Iterator[Pair]:
    nodes = [node for node in _nodes(model) if node.op == "call_module"]
    # How often a module runs, as a call of its own or inside another.
    runs = Counter(part for node in nodes for part in model.get_submodule(str(node.target)).modules())
    for node in nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None or source.op != "call_module" or len(source.users) != 1:
            continue
        names = str(source.target), str(node.target)
        if all(runs[model.get_submodule(name)] == 1 for name in names):
            yield names


def _nodes(model: nn.Module) -> list[fx.Node]:
    """The calls of a forward pass as the network is now; none where torch.fx cannot follow it."""
    if type(model).__base__ is fx.GraphModule and "forward" not in vars(model):  # runs what its graph says
        return list(model.graph.nodes)  # type: ignore[union-attr, arg-type]
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(_Tracer().trace(model).nodes)
    except Exception:  # torch.fx raises many kinds; none of them is the attack's concern
        return []


def _can_fold(conv: nn.Conv2d, norm: _BatchNorm) -> bool:
    constant = not norm.training and norm.running_mean is not None and norm.running_var is not None
    known = conv.padding_mode == "zeros" and (type(conv) is nn.Conv2d or isinstance(conv, Computing))
    return constant and known and type(norm) in NORMS and not (_is_changed(conv) or _is_changed(norm))


def _is_changed(module: nn.Module) -> bool:
    """Whether something happens before or after the forward pass (as with weight_norm), or in its place."""
    return _has_hooks(module) or "forward" in vars(module)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)


def ordinary(*tensors: Tensor) -> tuple[Tensor, ...]:
    """These tensors, copied where they come from inference mode: no gradient may pass those. Call inside `frozen`."""
    return tuple(tensor.clone() if tensor.is_inference() else tensor for tensor in tensors)


def input_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """`raw_gradient` with 0 for NaN and the largest number for infinity, so that the other pixels lead the attack."""
    return raw_gradient(loss, x).nan_to_num()


def raw_gradient(loss: Tensor, x: Tensor) -> Tensor:
    """∂loss/∂x, zero where the network cuts the way back (rounding, detached parts): a sanity check will say so."""
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(loss, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def _replace_inference(stack: ExitStack, model: nn.Module) -> None:
    """Copies stand in for weights and buffers that were made in inference mode."""
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None and value.is_inference():
                    copied = value.detach().clone()
                    _replace(
                        stack, table, name, nn.Parameter(copied, False) if isinstance(value, nn.Parameter) else copied
                    )


def _restore(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training


@contextmanager
def statistics_anew(model: nn.Module) -> Iterator[None]:
    """Inside, in train mode; batch-norm's running statistics become plain means over the batches that pass.

    Leaves the mode and the momenta as they were.
    """
    training, norms = model.training, [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Inside, in eval mode; leaves the mode of every module as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Batch-norm's statistics as plain means over batches of images (n, c, h, w) in [0,1]."""
    with statistics_anew(model):
        for x in batches:
            model(x)


def freeze_statistics(model: nn.Module) -> None:
    """Batch-norm in eval mode in a network that trains; `train()` undoes it."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
