"""Which images a network gets right, the file that keeps it, and two of them side by side."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import devices
from ..attacks import Attack, PartResult
from ..distributed import is_first
from ..errors import RunError, shown
from ..progress import note
from ..runtime import wilson
from ..storage import is_stream, read_json, write_bytes, write_json
from ..threat import Threat


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided McNemar p-value for two networks on the same images.

    lost, gained: images that only the first, only the second gets right. Under the null each such image is a
    coin toss: p = min(1, 2·P[Bin(lost + gained, 1/2) ≤ min(lost, gained)]); 1 where none changed.

    >>> round(mcnemar(2, 10), 4)
    0.0386
    """
    from scipy.stats import binomtest  # half a second, which most commands need not wait for

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def at_least(k: int, n: int, p: float) -> float:
    """P[Bin(n, p) ≥ k], p in (0, 1].

    >>> round(at_least(9, 10, 0.5), 4)
    0.0107
    """
    from scipy.stats import binom

    return float(binom.sf(k - 1, n, p))


def most_by_chance(n: int, p: float) -> int:
    """The most of n images that have what a share p of all has, in 19 of 20 draws: the smallest k with
    P[Bin(n, p) ≤ k] ≥ 0.95.

    >>> most_by_chance(100, 0.01), most_by_chance(10000, 0.01)
    (3, 117)
    """
    from scipy.stats import binom

    return int(binom.ppf(0.95, n, p))


CLEAN = "clean"
# What numpy and zipfile raise for a file that is no .npz, or one that was cut or changed.
UNREADABLE = (OSError, EOFError, KeyError, RuntimeError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)
REMEDY = "write one by qrobust eval --json, or a run's own by qrobust run"
Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]


@dataclass
class Outcomes:
    """`correct[name]` is a bool mask (n,) for "clean" and every attack; `seconds[name]` what it took.

    images: sha256 over the pixels and labels attacked; results compare only where it agrees. indices: their positions
    among all images, as `data.choose` gives them; None for all, in their order. labels: (n,), in [0, classes); None
    where they are not known, and nothing is said by class. parts: of a cascade's name, what each of its parts took.
    """

    threat: Threat
    seed: int
    attacks: tuple[Attack, ...]
    images: str
    correct: dict[str, Mask] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    indices: list[int] | None = None
    labels: Labels | None = None
    classes: int = 0
    parts: dict[str, list[PartResult]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.correct[CLEAN])

    def worst_case(self) -> Mask:
        """Right when clean and under every attack bounded by the threat; others (noise, CW-L2) are left out."""
        bounded = [self.correct[attack.name] for attack in self.attacks if attack.bounded]
        result: Mask = np.logical_and.reduce([self.correct[CLEAN], *bounded])
        return result

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: accuracies are shares of all n images, `ci95` Wilson intervals; "per_class" as `by_class`."""
        attacks = {
            attack.name: accuracy(self.correct[attack.name])
            | {"settings": attack.settings, "bounded": attack.bounded}
            | {"seconds": round(self.seconds[attack.name], 3)}
            | ({"parts": [asdict(part) for part in self.parts[attack.name]]} if attack.name in self.parts else {})
            for attack in self.attacks
        }
        return {
            "n": self.n,
            "seed": self.seed,
            "images": self.images,
            "indices": self.indices,
            "threat": {"norm": self.threat.norm, "eps": self.threat.eps},
            "clean": accuracy(self.correct[CLEAN]),
            "attacks": attacks,
            "worst_case": accuracy(self.worst_case()),
            **self._per_class(),
            "versions": devices.versions(),
            "hardware": devices.hardware(),
        }

    def _per_class(self) -> dict[str, Any]:
        if self.labels is None:
            return {}
        found = {"clean": self.correct[CLEAN], "worst_case": self.worst_case()}
        return {"per_class": by_class(self.labels, self.classes, found)}

    def save(self, path: Path, **more: Any) -> None:
        """`to_dict` and `more` as JSON, and the masks packed to bits beside it, in a .npz of the same stem."""
        self.save_masks(path.with_suffix(".npz"))
        write_json(path, self.to_dict() | more)

    def save_masks(self, path: Path) -> None:
        """The masks packed to bits, as .npz."""
        buffer = io.BytesIO()
        packed = {name: np.packbits(mask) for name, mask in self.correct.items()}
        np.savez_compressed(buffer, **packed)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())


def result_file(json: Path | None) -> Path | None:
    """Where a result goes that masks can lie beside; None for a stream, which gets the result alone.

    Raises RunError for a name without .json: the masks of all networks would share one .npz.
    """
    if json is None or is_stream(json):
        return None
    if json.suffix != ".json":
        raise RunError(f"expected a file that ends in .json for --json, got {json}; masks go to .npz beside it")
    return json


def stream(json: Path | None, content: object) -> None:
    """Write a result's JSON where `result_file` has none for it: to a stream."""
    if json is not None and is_stream(json) and is_first():
        note(f"{json}: no masks, which qrobust compare needs; name a file to keep them")
        write_json(json, content)


def read_outcomes(path: Path) -> tuple[dict[str, Any], dict[str, Mask]]:
    """A saved result: its JSON, and the mask (n,) of "clean" and of every attack. Raises RunError.

    A result without "indices" was made by a version that took the first n images.
    """
    result, masks = read_json(path, REMEDY), {}
    try:
        with np.load(io.BytesIO(path.with_suffix(".npz").read_bytes()), allow_pickle=False) as stored:
            for name, stated in {CLEAN: {"bounded": True, **result[CLEAN]}, **result["attacks"]}.items():
                masks[name] = _mask(stored[name], result["n"], **{key: stated[key] for key in ("accuracy", "bounded")})
    except (*UNREADABLE, AttributeError) as error:
        raise RunError(f"expected an evaluation at {path} with its .npz beside it, got: {error}; {REMEDY}") from error
    return result, masks


def _mask(packed: npt.NDArray[np.uint8], n: int, accuracy: float, bounded: bool) -> Mask:
    """The mask in its bits. Raises ValueError unless it is of n images, with this accuracy."""
    if type(n) is not int or type(bounded) is not bool or packed.shape != ((n + 7) // 8,) or n < 1:
        raise ValueError(f"{packed.shape} bytes of masks for n = {shown(n)}, bounded = {shown(bounded)}")
    mask: Mask = np.unpackbits(packed, count=n).astype(bool)
    if not abs(mask.mean() - accuracy) < 1e-9:
        raise ValueError(f"masks with an accuracy of {mask.mean():.4f}, not {shown(accuracy)}")
    return mask


def accuracy(correct: Mask) -> dict[str, Any]:
    """Share of true entries, with its Wilson 95 % interval."""
    low, high = wilson(int(correct.sum()), len(correct))
    return {"accuracy": float(correct.mean()), "ci95": [low, high]}


def by_class(labels: Labels, classes: int, masks: Mapping[str, Mask]) -> dict[str, list[Any]]:
    """By label k: "n", the number of images, and of each mask (n,) the share of them that is true; None without images.

    >>> by_class(np.array([0, 0, 2]), 3, {"clean": np.array([True, False, True])})
    {'n': [2, 0, 1], 'clean': [0.5, None, 1.0]}
    """
    counts = np.bincount(labels, minlength=classes)
    found: dict[str, list[Any]] = {"n": counts.tolist()}
    for name, mask in masks.items():
        right = np.bincount(labels[mask], minlength=classes)
        found[name] = [float(k / n) if n else None for k, n in zip(right, counts, strict=True)]
    return found


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Paired difference of two saved results, per attack that both have, and of their worst cases.

    Returns {"n", "sets": {NAME: {"first", "second", "difference", "p_value", "gained", "lost"}}}: accuracies as
    shares, the exact McNemar p-value, and the positions of images that only the second, only the first gets
    right. "worst_case" is over the bounded attacks that both have. Raises RunError for other images or threats.
    """
    (a, masks_a), (b, masks_b) = read_outcomes(first), read_outcomes(second)
    for key in ("images", "threat"):
        if a.get(key) != b.get(key):
            raise RunError(
                f"expected results on the same {key}, got {first} and {second} on different ones; "
                "evaluate both anew on the same data, threat, -n and --seed"
            )
    shared = [name for name in masks_a if name in masks_b]
    bounded = [CLEAN, *(name for name in shared if name != CLEAN and a["attacks"][name]["bounded"])]
    sets = {name: _paired(masks_a[name], masks_b[name]) for name in shared}
    worst = [np.logical_and.reduce([masks[name] for name in bounded]) for masks in (masks_a, masks_b)]
    return {"n": a["n"], "sets": {**sets, "worst_case": _paired(*worst)}}


def _paired(first: Mask, second: Mask) -> dict[str, Any]:
    gained, lost = np.flatnonzero(second & ~first), np.flatnonzero(first & ~second)
    return {
        "first": float(first.mean()),
        "second": float(second.mean()),
        "difference": float(second.mean() - first.mean()),
        "p_value": mcnemar(len(lost), len(gained)),
        "gained": gained.tolist(),
        "lost": lost.tolist(),
    }
