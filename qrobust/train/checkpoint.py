"""Weights and training state as safetensors: loading them runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..errors import CheckpointError, shown
from ..quant import present_names
from ..storage import parse_json, write_bytes

FORMAT = "qrobust-1"
NUMBERS: dict[str, type] = {"key": str, "epoch": int, "history": list, "best": dict}  # of a training state
KNOWN = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # of a parameter, to SGD and to AdamW
MOST_HEADER = 100_000_000  # bytes, as safetensors has it
# What a damaged header raises.
UNREADABLE = (OSError, SafetensorError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
REMEDY = {
    "weights": "remove it and continue by qrobust run RECIPE, which makes it from the training state",
    "state": "remove it to train anew",
    "network": "name a file that qrobust.save wrote, or a folder of a run, or an artifact",
}


@dataclass
class State:
    """Where training stands after an epoch: tensors by name, and numbers that JSON can hold.

    key: digest of the settings. settings: these themselves, nested JSON values, to say which of them differ; empty in
    states of older versions. epoch: epochs done. history: one metrics record an epoch. best: the record of
    the best epoch of the "model" and, where there is one, of its "average"; `best_of` gives their weights.
    """

    key: str
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def best_of(self, name: str) -> dict[str, Tensor]:
        """Weights of the best epoch of "model" or "average"; empty if there is none."""
        return part(self.tensors, f"best.{name}.")


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """A network's weights with what describes them, written whole or not at all.

    path: a .safetensors file, replaced if it is there. metadata: values that JSON takes; `load_weights` returns them.
    """
    _write(path, dict(model.state_dict()), {**metadata, "kind": "weights"})


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Set a network's weights; returns what describes them. Raises CheckpointError if they do not fit."""
    metadata, tensors = _read(path, "weights")
    fill(model, tensors, path)
    return metadata


def save_network(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """A network's weights with all that it takes to make it again (JSON), written whole or not at all."""
    _write(path, dict(model.state_dict()), {**metadata, "kind": "network"})


def read_network(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `save_network` wrote: the description, and tensors by name. Raises CheckpointError for other files."""
    return _read(path, "network")


def read_metadata(path: Path) -> dict[str, Any]:
    """What describes a file's tensors, without loading them. Raises CheckpointError."""
    return _header(path, "state")


def is_whole(path: Path) -> bool:
    """Whether a file holds weights, every one of them."""
    try:
        return bool(_read(path, "weights"))
    except CheckpointError:
        return False


def save_state(path: Path, state: State) -> None:
    """Write training state whole or not at all."""
    numbers = {"key": state.key, "epoch": state.epoch, "history": state.history, "best": state.best}
    _write(path, state.tensors, {**numbers, "settings": dict(state.settings), "kind": "state"})


def load_state(path: Path) -> State:
    """Raises CheckpointError for what is not training state written by `save_state`."""
    metadata, tensors = _read(path, "state")
    for name, kind in NUMBERS.items():
        found = metadata.get(name)
        if type(found) is not kind or (kind is int and found not in range(2**31)):
            raise CheckpointError(
                f"expected training state with {name} of type {kind.__name__} in {path}, got {shown(found)}; "
                f"{REMEDY['state']}"
            )
    numbers = {name: metadata[name] for name in NUMBERS}
    return State(**numbers, tensors=tensors, settings=metadata.get("settings", {}))


def capture(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights, buffers and all that the optimiser knows of each parameter (momentum, moments, steps) by name."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        known = optimizer.state.get(parameter, {})
        tensors |= {f"{_stored(key)}.{name}": value for key, value in known.items() if value is not None}
    return tensors


def restore(state: State, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Undo `capture`. Raises CheckpointError if the state is of another network."""
    fill(model, part(state.tensors, "model."), path)
    parameters, names = dict(model.named_parameters()), present_names(model, part(state.tensors, "model."))
    for key in KNOWN:
        for name, value in part(state.tensors, f"{_stored(key)}.").items():
            parameter = parameters[names[name]]
            if key == "step":  # a number
                optimizer.state[parameter][key] = value.to(parameter.device)
            else:
                buffer = torch.empty_like(parameter)  # keeps the memory format, and so the order of summation
                optimizer.state[parameter][key] = buffer.copy_(value)


def _stored(key: str) -> str:
    """What an optimiser knows of a parameter, as files name it."""
    return "momentum" if key == "momentum_buffer" else f"optimizer.{key}"


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    header = {FORMAT: json.dumps(metadata)}  # one key: safetensors writes several in any order
    dense = {name: value.detach().cpu().contiguous().clone() for name, value in sorted(tensors.items())}
    write_bytes(path, save(dense, metadata=header))


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    metadata = _header(path, kind)
    if metadata.get("kind") != kind:
        raise CheckpointError(f"expected {kind} in {path}, got {_plain(metadata.get('kind'))}; {REMEDY[kind]}")
    try:
        return metadata, load(path.read_bytes())
    except UNREADABLE as error:
        raise _unreadable(path, error, kind) from error


def _header(path: Path, kind: str) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = dict(parse_json(file.read(size)).get("__metadata__", {}))
        content = parse_json(header.get(FORMAT, "{}"), finite=kind != "state")  # what was measured may be neither
    except UNREADABLE as error:
        raise _unreadable(path, error, kind) from error
    if FORMAT not in header or not isinstance(content, dict):
        found = _plain(", ".join(header) or "a foreign file")
        raise CheckpointError(f"expected a checkpoint of format {FORMAT} at {path}, got {found}; {REMEDY[kind]}")
    if not isinstance(settings := content.get("settings", {}), dict):
        raise CheckpointError(f"expected a table as settings in {path}, got {shown(settings)}; {REMEDY[kind]}")
    return content


def fill(
    model: nn.Module, tensors: Mapping[str, Tensor], path: Path, do: str = "use the recipe it was trained with"
) -> None:
    """Set a network's weights, those of a file. Raises CheckpointError, with `do`, if they do not fit."""
    own = model.state_dict()
    if set(own) != set(tensors):
        names = present_names(model, tensors)
        tensors = {names[name]: value for name, value in tensors.items()}
    wrong = sorted(set(own) ^ set(tensors)) or [name for name in own if _form(own[name]) != _form(tensors[name])]
    if wrong:
        raise CheckpointError(
            f"expected weights of this network in {path}, got others (first difference: {wrong[0]}); {do}"
        )
    model.load_state_dict(dict(tensors))


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _unreadable(path: Path, error: Exception, kind: str) -> CheckpointError:
    reason = _plain(str(error) or type(error).__name__)
    return CheckpointError(f"expected a whole checkpoint at {path}, got {reason}; {REMEDY[kind]}")


def _plain(value: object) -> str:
    """As an error names it, without quotes."""
    return shown(value).strip("'\"")
