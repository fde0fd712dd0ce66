"""Networks that a user brings: a factory in a file or a package, torchvision's, timm's; weights from elsewhere.

A factory is code: it is loaded where a user names it, never out of an artifact. Weights are tensors: no code runs.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import importlib.util
import inspect
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import resources
from ..errors import CheckpointError, ModelError, RecipeError, did_you_mean, one_line, shown
from ..torchvision_cpu import declare_operators, import_torchvision

FORMS = "'FILE.py:factory', 'package.module:factory', 'torchvision:NAME' or 'timm:NAME'"
CLASSES, CHANNELS = ("classes", "num_classes"), ("in_channels", "in_chans")  # what a factory may call them
LIBRARIES = ("torchvision", "timm")
# Of torchvision and timm: they would load what no digest is kept of, or from the network.
LOADING = ("pretrained", "checkpoint_path", "weights_backbone", "pretrained_cfg", "pretrained_cfg_overlay")


def is_own(name: str) -> bool:
    """Whether a network's name is a user's, not one of the registry."""
    return ":" in name


def is_users(name: str) -> bool:
    """Whether what makes a network is code of a file or package that a user names, not torchvision's or timm's."""
    return is_own(name) and name.partition(":")[0] not in LIBRARIES


def build(name: str, *, in_channels: int, classes: int, **options: Any) -> nn.Module:
    """A fresh network of one of `FORMS`; options go to its factory.

    A factory is given the image's channels and the number of classes if its signature names them (`in_channels` or
    `in_chans`, `classes` or `num_classes`). Raises ModelError: no such factory, one that raises, or one that returns
    no module.
    """
    declare_operators()  # for factories that import torchvision
    kind, _, rest = name.partition(":")
    if kind in LIBRARIES:
        for option in options.keys() & set(LOADING):
            raise ModelError(f"expected no option {option!r} of {name}, which loads weights; set model.weights = PATH")
        factory = _torchvision(rest) if kind == "torchvision" else _timm(rest)
        given = {"num_classes": classes, **({"in_chans": in_channels} if kind == "timm" else {}), **options}
    else:
        factory = _factory(name)
        given = _given(name, factory, {CHANNELS: in_channels, CLASSES: classes}, options)
    try:
        made = factory(**given)
    except (Exception, SystemExit) as error:  # the user's code
        raise ModelError(f"expected a network of {name}, got {_reason(error)}; mend it or its options") from error
    if not isinstance(made, nn.Module):
        raise ModelError(f"expected a torch module of {name}, got {shown(made)}; return the network")
    return made


def check_network(model: nn.Module, name: str, shape: Sequence[int], classes: int) -> None:
    """Raises ModelError unless a network gives logits (n, classes) for images (n, *shape), in eval and train mode."""
    trial, x = copy.deepcopy(model), torch.zeros(2, *shape)
    for training in (False, True):
        try:
            with torch.no_grad():
                logits = trial.train(training)(x)
        except Exception as error:
            raise ModelError(
                f"expected {name} to take images {tuple(x.shape)} (n, c, h, w), got {_reason(error)}; make it for these"
            ) from error
        if not isinstance(logits, Tensor):
            mode, got = "train" if training else "eval", type(logits).__name__
            raise ModelError(f"expected logits of {name} in {mode} mode, got {got}; return one tensor")
        if tuple(logits.shape) != (2, classes):
            raise ModelError(
                f"expected logits {(2, classes)} of {name} for two images, got {tuple(logits.shape)}; "
                f"make it for {classes} classes"
            )


def source_of(name: str) -> Path | None:
    """The file that a factory stands in; None for networks of the registry, torchvision and timm.

    Raises ModelError where there is none.
    """
    module, _, factory = name.rpartition(":")
    if not is_users(name):
        return None
    if module.endswith(".py"):
        path = Path(module)
    else:
        try:
            spec = importlib.util.find_spec(module)
        except Exception as error:  # of its parent packages
            raise ModelError(f"expected a package that can be imported for {name}, got {_reason(error)}") from error
        path = Path(spec.origin) if spec is not None and spec.has_location and spec.origin else Path(module)
    if not factory or not path.is_file():
        what = path if module.endswith(".py") else f"module {module}"
        raise ModelError(f"expected a network as {FORMS}, got {name!r}: no {what}; correct the path or the name")
    return path


def digest_of(path: Path) -> str:
    """sha256 of a file. Raises ModelError where there is none."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ModelError(f"expected a file at {path}, got: {error.strerror}; correct the path") from error


class Normalised(nn.Module):
    """A network behind (x - mean) / std, per channel; images stay in [0,1] for whoever calls and attacks it."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images (n, c, h, w) in [0,1]."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def normalised(model: nn.Module, channels: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """A network behind its normalisation. mean, std: one number for all channels, or one each; () for 0 and 1.

    Raises ModelError for another count.
    """
    if not mean and not std:
        return model
    whole = []
    for key, values, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
        if len(values) not in (0, 1, channels):
            raise ModelError(f"expected model.{key} of 1 or {channels} numbers, one a channel, got {len(values)}")
        whole.append([*values] * channels if len(values) == 1 else [*values] or [usual] * channels)
    return Normalised(model, *whole)


def _given(
    name: str, factory: Callable[..., Any], known: Mapping[tuple[str, ...], int], options: dict[str, Any]
) -> dict[str, Any]:
    """A factory's arguments: of `known` what it names. Raises ModelError for options that it does not take."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # of C, without one
        return options
    parameters = signature.parameters
    given = {next((one for one in names if one in parameters), ""): value for names, value in known.items()}
    given = {key: value for key, value in given.items() if key} | options
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    for option in options:
        if option not in parameters and not open_ended:
            raise ModelError(f"{name} has no option {option!r}{did_you_mean(option, parameters)}")
    try:
        signature.bind(**given)
    except TypeError as error:
        raise ModelError(f"expected options that {name} takes, got: {error}; add them to the table model") from error
    return given


def _factory(name: str) -> Callable[..., Any]:
    source_of(name)  # says what a name looks like
    try:
        return resources.named_factory(name, Path())
    except RecipeError as error:
        raise ModelError(str(error)) from error


def _torchvision(name: str) -> Callable[..., Any]:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"expected a classifier of torchvision, got {name!r}{did_you_mean(name, known)}")
    return lambda **options: models.get_model(name, weights=None, **options)


def _timm(name: str) -> Callable[..., Any]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise ModelError(f'expected timm for {name!r}, got {error}; pip install "qrobust[timm]"') from error
    known = timm.list_models()
    if name not in known:  # which no name of a hub is
        raise ModelError(f"expected a network of timm, got {name!r}{did_you_mean(name, known)}")
    return lambda **options: timm.create_model(name, pretrained=False, **options)


def _reason(error: BaseException) -> str:
    """An error of the user's code, with its place."""
    (*_, last) = traceback.extract_tb(error.__traceback__) or [None]
    place = f" ({Path(last.filename).name}, line {last.lineno})" if last is not None else ""
    return f"{type(error).__name__}: {one_line(error)[:200]}{place}"


# Weights

NESTED = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "model_ema", "state_dict_ema",
          "ema_state_dict", "params", "weights")  # fmt: skip
PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.")
NORMALISATION = ("mean", "std", "mu", "sigma")  # buffers of a network that normalises itself
COUNTER = "num_batches_tracked"  # of batch-norm, which old files do not have
MOST_FORMS = 64  # of one table, whatever its keys are
NAMED = 3  # keys of a kind in an error


def load_weights_into(model: nn.Module, path: str | Path, *, normalised: bool = False) -> None:
    """Fill a network with the weights in a .safetensors, .pth or .pt file, which runs no code of it.

    State dicts are found in tables called `state_dict`, `model`, `model_state_dict`, `net`, `ema` and alike, the first
    that fits best; of their keys the prefixes of wrappers (`module.`, `model.`, `_orig_mod.`) are taken away where the
    network has none. normalised: leave out a mean and std that the file has beside the network's weights.
    Raises CheckpointError: no such file, pickled code, or weights of another network, with what differs.
    """
    path, own = Path(path), model.state_dict()
    candidates = [one for found in _state_dicts(_read(path)) for one in _without_prefixes(found)]
    if not candidates:
        raise CheckpointError(f"expected weights by name in {path}, got none; save model.state_dict()")
    best = max(candidates, key=lambda one: (_fitting(own, one), -len(one.keys() - own.keys())))
    best = {key: value for key, value in best.items() if key in own or not (normalised and _normalises(key))}
    best = {key: value for key, value in own.items() if key.endswith(COUNTER)} | best
    wrong = {
        "missing": sorted(own.keys() - best.keys()),
        "unexpected": sorted(best.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(best[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in best and best[key].shape != own[key].shape
        ],
    }
    if any(wrong.values()):
        differing = "; ".join(f"{len(keys)} {kind} ({_first(keys)})" for kind, keys in wrong.items() if keys)
        hint = "; it normalises: set model.mean and model.std" if any(map(_normalises, wrong["unexpected"])) else ""
        raise CheckpointError(f"expected weights of this network in {path}, got others: {differing}{hint}")
    model.load_state_dict(best)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"expected weights at {path}, got no file; correct the path")
    if path.suffix not in (".safetensors", ".pth", ".pt", ".ckpt", ".tar", ".bin"):
        raise CheckpointError(f"expected weights as .safetensors, .pth or .pt, got {path}; save model.state_dict()")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            return load(path.read_bytes())
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises any
        reason = one_line(error)
        if "weights_only" in reason or "GLOBAL" in reason:
            _, _, what = reason.partition("GLOBAL ")
            code = what.partition(" ")[0] or "objects"
            raise CheckpointError(
                f"expected tensors alone in {path}, got pickled code ({code}), which is not run; where you trust it, "
                "save model.state_dict() of it to another file"
            ) from error
        raise CheckpointError(f"expected whole weights in {path}, got {reason[:200]}; write the file anew") from error


def _harmless() -> list[Any]:
    """What training scripts keep beside weights: their arguments, and numbers of numpy."""
    import numpy as np

    kinds = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    return [Namespace, np._core.multiarray.scalar, np.dtype, *kinds]  # type: ignore[attr-defined]


def _state_dicts(found: Any) -> Iterator[dict[str, Tensor]]:
    """Tables of tensors in what a file holds, the outer and the usual ones first."""
    if not isinstance(found, Mapping):
        return
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if tensors:
        yield tensors
    for key in NESTED:
        yield from _state_dicts(found.get(key))


def _without_prefixes(found: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """As it is, and without each row of prefixes that some of its keys have."""
    made = [found]
    for one in made:  # which grows
        for prefix in PREFIXES:
            if len(made) < MOST_FORMS and any(key.startswith(prefix) for key in one):
                made.append({key.removeprefix(prefix): value for key, value in one.items()})
    return made


def _fitting(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> int:
    return sum(key in own and own[key].shape == value.shape for key, value in found.items())


def _normalises(key: str) -> bool:
    return key.rpartition(".")[2].removesuffix("_cuda") in NORMALISATION


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:NAMED]) + (", …" if len(keys) > NAMED else "")
