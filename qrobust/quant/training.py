"""What training and the artifact need to know of a quantised network, and regularisers of its weights.

Both look at latent weights, the float ones that an optimiser moves, before FAT and quantisers. Neither looks at
activations, so their time does not grow with the batch: 0.3 and 0.5 s with gradients for a ResNet-18 on one CPU core.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import ModelError
from ..spectrum.fat import FAT
from .quantizer import Quantizer

UNIFORM_KURTOSIS = 1.8
QUANTISER = ".act_quant."  # in the name of an activation quantiser's tensor, behind that of its module


def kurtosis(model: nn.Module, *, target: float = UNIFORM_KURTOSIS) -> Tensor:
    """mean over layers of (K(W) - target)², K(W) = mean(((W - mean W) / std W)⁴), std without Bessel's correction.

    A scalar with gradient to the latent weights of all convolutions and linear layers. target: 1.8 is the
    kurtosis of a uniform distribution, whose quantisation depends least on the step; a normal one has 3. K is
    free of the weights' scale and mean, so it is also that of the weights FAT standardises. Weights that are
    all equal have K = 0 and no gradient. Raises ModelError for a network without such layers.

    KURE: Chmiel et al. 2020, "Robust Quantization: One Model to Rule Them All", arXiv 2002.07686. The authors'
    code leaves out the first convolution and the classifier, and has Bessel's correction.
    """
    terms = [(_kurtosis(latent(layer)) - target).square() for layer in _layers(model)]
    return torch.stack(terms).mean()


def lipschitz(model: nn.Module) -> Tensor:
    """Σ over layers of ½ ‖W Wᵀ - I‖²_F: 0 where all rows are orthonormal, so that no layer amplifies a disturbance.

    A scalar with gradient to the latent weights W, flattened to (C_out, C_in·kh·kw), of all convolutions and
    linear layers. The smaller of the Gram matrices W Wᵀ and Wᵀ W is taken: for a matrix with R rows and N columns
    ½‖WᵀW - I‖² - ½‖WWᵀ - I‖² = (N - R)/2, so gradients agree and the least value is 0. A grouped convolution
    counts as one matrix per group, as its groups share no input. Raises ModelError for a network without such
    layers.

    Lin et al. 2019, "Defensive Quantization: When Efficiency Meets Robustness", arXiv 1904.08444; their β is left
    to the caller. A convolution whose flattened rows are orthonormal may still amplify by up to √(kh·kw), where
    its windows overlap. FAT, and a batch-norm that follows, undo a layer's scale: there the term shapes directions
    and bounds no Lipschitz constant.
    """
    return torch.stack([_distance_from_orthonormal(layer) for layer in _layers(model)]).sum()


def latent(layer: nn.Module) -> Tensor:
    """The weight that an optimiser moves, before any parametrisation."""
    holder: Any = layer
    weight: Tensor = holder.parametrizations.weight.original if parametrize.is_parametrized(layer) else holder.weight
    return weight


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    if not layers:
        raise ModelError(
            "expected a network with a convolution or a linear layer, got none; there is nothing to regularise"
        )
    return iter(layers)


def _kurtosis(weight: Tensor) -> Tensor:
    deviation = weight.std(correction=0).clamp_min(torch.finfo(weight.dtype).tiny)
    return ((weight - weight.mean()) / deviation).pow(4).mean()


def _distance_from_orthonormal(layer: nn.Module) -> Tensor:
    weight, groups = latent(layer), getattr(layer, "groups", 1)
    rows = weight.reshape(groups, len(weight) // groups, -1)
    gram = rows @ rows.mT if rows.shape[1] <= rows.shape[2] else rows.mT @ rows
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return (gram - identity).square().sum() / 2


# Learning rates relative to the weights' (0.1 and 0.02 at 0.04) and weight decay of clips, as FAT trains.
ACTIVATION_CLIP_RATE = 2.5
WEIGHT_CLIP_RATE = 0.5
CLIP_WEIGHT_DECAY = 1e-4


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, matrices_only: bool = False
) -> list[dict[str, Any]]:
    """Groups for an optimiser: weights; activation clips; weight clips and FAT mixing. Each parameter that asks for a
    gradient stands in one; empty groups are left out.

    lr, weight_decay: of the weights; clips have multiples of lr as rates, and a decay of their own. matrices_only:
    whether decay is for weights of two dimensions or more alone, as transformers are trained, not for norms, biases,
    embeddings of positions, class tokens and layer scales, which get a group of their own at the end.
    """
    activation: list[nn.Parameter] = []
    weight: list[nn.Parameter] = []
    for module in model.modules():
        if isinstance(module, Quantizer) and not module.fixed:
            (activation if module.masked else weight).append(module.clip)
        elif isinstance(module, FAT) and module.mixing.requires_grad:
            weight.append(module.mixing)
    special = {id(parameter) for parameter in (*activation, *weight)}
    rest = {name: p for name, p in model.named_parameters() if id(p) not in special and p.requires_grad}
    spared = {name: p for name, p in rest.items() if matrices_only and not _is_matrix(name, p)}
    groups = [
        {"params": [p for name, p in rest.items() if name not in spared], "lr": lr, "weight_decay": weight_decay},
        {"params": activation, "lr": lr * ACTIVATION_CLIP_RATE, "weight_decay": CLIP_WEIGHT_DECAY},
        {"params": weight, "lr": lr * WEIGHT_CLIP_RATE, "weight_decay": CLIP_WEIGHT_DECAY},
        {"params": list(spared.values()), "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it is the weight of a layer, by torch's name for it: also `in_proj_weight`, also behind FAT."""
    return parameter.dim() > 1 and re.search(r"weight(\.original\d*)?$", name) is not None


def latent_weights(model: nn.Module) -> list[nn.Parameter]:
    """What weight perturbation moves: weights of two dimensions or more, before FAT and quantisers."""
    return [p for p in parameter_groups(model, lr=1, weight_decay=0)[0]["params"] if p.dim() > 1]


def bits_per_layer(model: nn.Module) -> dict[str, int]:
    """Width of every convolution's and linear layer's weight by module path; 32 is float."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            bits = [m.bits for m in module.modules() if isinstance(m, Quantizer) and not m.masked]
            widths[name] = bits[0] if bits else 32
    return widths


KIND = re.compile(r"^(?P<kind>.*?)(?P<style>_*)(?P<number>\d*)(?P<behind>_quant)?$")
ALIASES = {"iadd": "add", "isub": "sub", "imul": "mul", "truediv": "div", "itruediv": "div"}  # as Python calls them


def present_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """The names that a network's tensors have, by those that versions up to 0.2.0 gave them.

    These numbered the quantisers of functions (`torch.add`, `F.relu`) by other nodes; those of modules are the same.
    Quantisers of one kind of function stand in the same order under both, if their numbers tell which comes first. A
    name without a counterpart is its own.
    """
    names = list(names)
    theirs, ours = _by_kind(names), _by_kind(model.state_dict())
    renamed = {
        old: new
        for kind, found in theirs.items()
        if set(found) != set(ours.get(kind, ())) and len(found) == len(ours.get(kind, ()))
        for old, new in zip(found, ours[kind], strict=True)
    }
    split = {name: name.partition(QUANTISER) for name in names}
    return {name: "".join((renamed.get(head, head), *rest)) for name, (head, *rest) in split.items()}


def _by_kind(names: Iterable[str]) -> dict[str, list[str]]:
    """Modules that stand for functions, and quantisers behind them, by kind in the order of their numbers."""
    found = dict.fromkeys(
        head for name in names if (parts := name.partition(QUANTISER))[1] and "." not in (head := parts[0])
    )
    kinds = defaultdict[str, list[tuple[int, str]]](list)
    for head in found:
        match = KIND.match(head)
        assert match is not None
        kind = ALIASES.get(match["kind"], match["kind"])
        kinds[kind + (match["behind"] or "")].append((int(match["number"] or 0), head))
    ordered = {kind: heads for kind, heads in kinds.items() if len({number for number, _ in heads}) == len(heads)}
    return {kind: [head for _, head in sorted(heads)] for kind, heads in ordered.items()}


@torch.no_grad()
def mask_statistics(model: nn.Module) -> dict[str, dict[str, float]]:
    """Least, mean, greatest and standard deviation of every FAT mask, by layer; empty without masks."""
    found = {}
    for name, layer in model.named_modules():
        fat = _mask_of(layer)
        if fat is not None and fat.form != "identity":
            mask = fat.mask(layer.parametrizations.weight.original)
            numbers = {"min": mask.min(), "mean": mask.mean(), "max": mask.max(), "std": mask.std()}
            found[name] = {key: round(float(value), 6) for key, value in numbers.items()}
    return found


def _mask_of(layer: nn.Module) -> FAT | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((p for p in layer.parametrizations.weight if isinstance(p, FAT)), None)  # type: ignore[union-attr]
