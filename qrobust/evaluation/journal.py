"""Verdicts of an evaluation, kept in a file while it runs, so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from .. import devices
from ..attacks import Scene
from ..attacks.cascade import Arrays
from ..data import Images, to_unit
from ..models.inference import frozen, raw_gradient
from ..objectives import margin
from ..storage import digest, write_bytes
from .outcomes import UNREADABLE, Outcomes

UNKNOWN, WRONG, RIGHT = -1, 0, 1
SAVE_EVERY = 5.0  # seconds
WITNESSES = 16  # images
TOLERANCE = 1e-3  # of the largest number; a GPU's sums differ from run to run
KEY, WITNESS = "key", "witness"  # names in the file; those of verdicts have a slash
MEMORY = "memory/"  # begins the names of what a cascade remembers
Verdicts = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]


class Journal:
    """Verdicts by name, in a file that is written whole every few seconds; without a path, in memory.

    What the file holds is believed if it has this key and witness, and verdicts of n images; else it is begun anew.
    witness: numbers that the networks gave, since equal weights do not make equal networks.
    """

    def __init__(self, path: Path | None, key: str, witness: Floats, n: int) -> None:
        self._path, self._key, self._witness, self._n = path, key, witness, n
        self._saved = time.monotonic()
        self._arrays: Arrays = self._read(path) if path is not None and path.exists() else {}

    @classmethod
    def of(cls, scene: Scene, images: Images, outcomes: Outcomes, batch_size: int, path: Path | None) -> Journal:
        """The journal of an evaluation; a path that is there already is continued."""
        if path is None:
            return cls(None, "", np.zeros(0, np.float32), len(images))
        networks = [network for network in (scene.model, scene.float_model) if network is not None]
        attacks = [(attack.name, attack.settings) for attack in outcomes.attacks]
        settings = [attacks, scene.threat.norm, scene.threat.eps, scene.seed, batch_size, outcomes.images]
        key = digest([settings, [[_structure(network), _weights(network)] for network in networks]])
        some = images.take(slice(0, WITNESSES))
        return cls(path, key, np.concatenate([_witness(network, some) for network in networks]), len(images))

    def verdicts(self, name: str) -> Verdicts:
        """int8 (n,): right, wrong or unknown; changes are kept by `save`."""
        return self._arrays.setdefault(name, unknown(self._n))

    def memory(self, name: str) -> Arrays:
        """What `remember` was given last under a name; empty if nothing."""
        prefix = f"{MEMORY}{name}/"
        return {key.removeprefix(prefix): one for key, one in self._arrays.items() if key.startswith(prefix)}

    def memories(self, above: str) -> list[Arrays]:
        """Those under all names that begin with this one and a slash."""
        found = {key.removeprefix(MEMORY).rpartition("/")[0] for key in self._arrays if key.startswith(MEMORY)}
        return [self.memory(name) for name in sorted(found) if name.startswith(f"{above}/")]

    def remember(self, name: str, arrays: Arrays) -> None:
        """Keep these, and nothing else, under a name; `save` writes them."""
        prefix = f"{MEMORY}{name}/"
        others = {key: one for key, one in self._arrays.items() if not key.startswith(prefix)}
        self._arrays = others | {f"{prefix}{key}": one for key, one in arrays.items()}

    def save(self) -> None:
        """Write if the last time was a while ago."""
        if self._path is None or time.monotonic() - self._saved < SAVE_EVERY:
            return
        buffer, text = io.BytesIO(), {KEY: np.array(self._key), WITNESS: self._witness}
        np.savez(buffer, **text, **self._arrays)  # type: ignore[arg-type]
        write_bytes(self._path, buffer.getvalue())
        self._saved = time.monotonic()

    def _read(self, path: Path) -> dict[str, Verdicts]:
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
                if stored[KEY].tolist() != self._key or not _agree(stored[WITNESS], self._witness):
                    return {}
                found = {name: stored[name] for name in stored if name not in (KEY, WITNESS)}
        except UNREADABLE:
            return {}
        verdicts = [array for name, array in found.items() if not name.startswith(MEMORY)]
        return found if all(self._are_verdicts(array) for array in verdicts) else {}

    def _are_verdicts(self, array: npt.NDArray[Any]) -> bool:
        known = (UNKNOWN, WRONG, RIGHT)
        return array.dtype == np.int8 and array.shape == (self._n,) and bool(np.isin(array, known).all())


def unknown(n: int) -> Verdicts:
    """Of n images."""
    return np.full(n, UNKNOWN, np.int8)


def _agree(stored: npt.NDArray[Any], ours: Floats) -> bool:
    if stored.dtype != ours.dtype or stored.shape != ours.shape:
        return False
    limit = TOLERANCE * float(np.abs(ours[np.isfinite(ours)]).max(initial=0))
    return np.allclose(stored, ours, rtol=0, atol=limit, equal_nan=True)


def _witness(model: nn.Module, images: Images) -> Floats:
    """Logits, and the margin's gradient in units of its largest: one network may have several backward passes."""
    x = to_unit(images.x, devices.device_of(model), channels_last=True)
    with devices.own_randomness(), frozen(model):
        asked = x.clone().requires_grad_(True)
        logits = model(asked)
        gradient = raw_gradient(margin(logits, images.y.to(x.device)).sum(), asked).nan_to_num()
    scaled = gradient / gradient.abs().max().clamp_min(1e-30) * logits.detach().abs().max()
    parts = [part.detach().float().flatten().cpu().numpy() for part in (logits, scaled)]
    return np.concatenate(parts)


def _structure(model: nn.Module) -> list[str]:
    """Class names of all modules, and the code of a network that was traced."""
    kinds = [f"{name} {type(part).__module__}.{type(part).__qualname__}" for name, part in model.named_modules()]
    return [*kinds, *(part.code for part in model.modules() if isinstance(part, fx.GraphModule))]


def _weights(model: nn.Module) -> str:
    """sha256 over all parameters and buffers."""
    state = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        state.update(name.encode() + str((value.dtype, tuple(value.shape))).encode())
        state.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
